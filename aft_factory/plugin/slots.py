"""What a template of LLaMA-Factory writes, as texts, and the chat template that writes the same.

A template is asked by its own methods, with a tokenizer that hands texts back as they are: so its
kind does not matter, nor does a class that a later version brings.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.prompts.prelude import fill, quoted

_SYSTEM, _QUERY, _ANSWER = "\ue000system\ue001", "\ue000query\ue001", "\ue000answer\ue001"
# Where the tokenizer is not known: as Jinja names them.
_BOS, _EOS = "\ue000bos_token\ue001", "\ue000eos_token\ue001"


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Stands in for a tokenizer: the ids of a text are a list of just this text.

    Attributes:
        bos_token_id: What is written where a text begins; None for nothing.
        eos_token_id: What is written where an answer ends; None for nothing.
    """

    bos_token_id: str | None = _BOS
    eos_token_id: str | None = _EOS

    @classmethod
    def of(cls, tokenizer: Any) -> TextTokenizer:
        """Return one with the tokens of a real tokenizer."""
        return cls(tokenizer.bos_token, tokenizer.eos_token)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Return the text."""
        return [text]

    def convert_tokens_to_ids(self, token: str) -> str:
        """Refuse a token that is not written as a text.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"it writes the token {token!r} by its number, where a chat template writes texts only"
        )


def written(
    template: Any, tokenizer: TextTokenizer, turns: Sequence[Mapping[str, Any]], system: str = ""
) -> list[str]:
    """Return what a template writes in training: each turn as a text.

    Args:
        template: LLaMA-Factory's.
        tokenizer: What it is asked with.
        turns: Of user and assistant, the assistant's last.
        system: The system message.

    Raises:
        UsageError: If a chat template cannot write the same.
    """
    more = {}
    # As the plugin trains: without the thoughts of earlier answers, unless they are to be kept.
    if "discarding_history_cot" in inspect.signature(template.encode_multiturn).parameters:
        more["discarding_history_cot"] = not _keeps_thoughts(template)
    pairs = template.encode_multiturn(tokenizer, [*turns], system or None, None, **more)
    return ["".join(ids) for pair in pairs for ids in pair]


def written_prompt(
    template: Any, tokenizer: TextTokenizer, messages: Sequence[Mapping[str, Any]]
) -> str:
    """Return what a template writes before the answer to a conversation; see `written`."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = [message for message in messages if message["role"] != "system"]
    answer = {"role": "assistant", "content": "6"}
    return "".join(written(template, tokenizer, [*turns, answer], system)[:-1])


def thinks(template: Any) -> bool:
    """Tell whether a template sees to thoughts: it refines how turns are encoded."""
    kind: Any = type(template)
    plain: Any = kind.__mro__[-2]  # all templates are of this kind or refine it
    return kind.encode_multiturn is not plain.encode_multiturn


def chat_template_of(template: Any, tokenizer: TextTokenizer) -> str:
    """Return the chat template that writes what a template of LLaMA-Factory writes.

    Whether to think is left to the variable `enable_thinking`, which a prelude sets.

    Args:
        template: LLaMA-Factory's.
        tokenizer: What it is asked with.

    Raises:
        UsageError: If a chat template cannot write the same.
    """
    bare = copy.copy(template)
    bare.default_system = ""
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", _QUERY), ("assistant", _ANSWER)) * 3
    ]
    first, answer, user, *later = map("".join, bare._encode(tokenizer, turns, "", ""))
    with_system = "".join(bare._encode(tokenizer, turns[:1], _SYSTEM, "")[0])
    if [answer, user, answer] != later:
        raise UsageError("it writes later turns otherwise than earlier ones")
    places = dict(zip(("bare_before", "bare_after"), _around(first, _QUERY), strict=True))
    places |= zip(("user_before", "user_after"), _around(user, _QUERY), strict=True)
    places |= zip(("answer_before", "answer_after"), _around(answer, _ANSWER), strict=True)
    before = ("system_before", "system_after", "first_after")
    places |= zip(before, _around(with_system, _SYSTEM, _QUERY), strict=True)
    values = {name: _jinja(text) for name, text in places.items()}
    values |= {"default_system": quoted(template.default_system or ""), "macros": ""}
    values |= {"answer": f"{values['answer_before']} + message.content", "opening": ""}
    if thinks(template):
        begins, ends = template.thought_words
        nothing = quoted(template.add_thought())
        values["macros"] = fill(
            "thinking",
            thought_begins=quoted(begins),
            thought_ends=quoted(ends),
            first_word=quoted(begins.strip()),
            last_word=quoted(ends.strip()),
            no_thought=nothing,
            answer_before=values["answer_before"],
            preserve=str(_keeps_thoughts(template)).lower(),
        )
        values["answer"] = "answer(message.content, loop.last)"
        asked = "turns[-1].role == 'user' and not enable_thinking"
        values["opening"] = f"{{%- if {asked} -%}}{{{{- {nothing} -}}}}{{%- endif -%}}"
    return fill("slots", **values)


def written_by(template: Any) -> str:
    """Return all that one of LLaMA-Factory's templates may write by itself, or looks for in texts.

    Words around thoughts count where the template sees to thoughts, and placeholders of images and
    the like where it takes them for such.
    """
    slots = [part.slots for part in vars(template).values() if hasattr(part, "slots")]
    words = [template.stop_words]
    if thinks(template):
        words.append(template.thought_words)
    media = vars(template.mm_plugin)
    tokens = [media.get(f"{name}_token") for name in ("image", "video", "audio")]
    if any(tokens):
        words += [tokens, ("<image>", "<video>", "<audio>")]
    texts = (text for part in (*slots, *words) for text in part)
    named = (text.get("token") if isinstance(text, dict) else text for text in texts)
    return "\n".join(text for text in named if isinstance(text, str))


def _keeps_thoughts(template: Any) -> bool:
    return bool(getattr(template, "preserve_thinking", False))  # LLaMA-Factory 0.9.3 has none


def _around(text: str, *marks: str) -> list[str]:
    """Return what stands before, between and after some marks in a text."""
    if any(text.count(mark) != 1 for mark in marks):
        raise UsageError(f"it does not write each message once, as a whole: {text!r}")
    return re.split("|".join(map(re.escape, marks)), text)


def _jinja(text: str) -> str:
    """Return a text as an expression of Jinja, in which BOS and EOS may stand by their names."""
    parts = re.split(f"{_BOS[0]}(bos_token|eos_token){_BOS[-1]}", text)
    written = [part if i % 2 else quoted(part) for i, part in enumerate(parts) if part]
    return " + ".join(written) or "''"

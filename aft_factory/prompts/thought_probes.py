"""The words around a model's thoughts and answers, found out from its chat template by probes.

There is no list of families: a template shows the words where it writes a thought, takes one out
of an earlier answer, opens one or leaves it out, or tells the model of the format to write. Pure
but for the template that is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aft_factory.prompts.probing import alike
from aft_factory.prompts.thoughts import SWITCHES, ThoughtWords
from aft_factory.records.messages import THOUGHT_FIELDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTION = [{"role": "user", "content": "How many?"}]
THOUGHT, ANSWER = "Let me count.", "Forty-two."  # of probes
# An answer; to some templates, it and the thought before it are parts or blocks.
_ANSWERS: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": ANSWER},
    {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}],
    },
    {
        "role": "assistant",
        "content": {
            "blocks": [{"type": "thoughts", "text": THOUGHT}, {"type": "response", "text": ANSWER}]
        },
    },
)
_DUMPED = re.compile(r"['\"]type['\"]: ")  # parts that a template does not know, as Python or JSON
_TAG = re.compile(r"<[^<>/\s]+>$")
_LAST = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s]+\])$")
_CLOSING = re.compile(r"</[^<>/\s]+>")
_MARK = re.compile(r"(<[^<>]+>|\[[^\[\]]+\])")
_ELLIPSES = ("", "...", "…")
_PHRASE = re.compile(r"\bafter ['\"]([^'\"\n]{2,80}:)['\"]")  # what a section begins with


def thought_words(
    tokenizer: PreTrainedTokenizerFast | None,
    chat_template: str | None,
    kwargs: Mapping[str, Any] | None = None,
) -> ThoughtWords:
    """Return the words around a thought by a chat template; the usual ones where it tells none.

    Args:
        tokenizer: Whose template it is.
        chat_template: Jinja text.
        kwargs: What it is rendered with, such as `enable_thinking`.
    """
    if tokenizer is None or chat_template is None:
        return ThoughtWords()

    def render(*more: dict[str, Any], prompt: bool = False, **switches: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                [*QUESTION, *more],
                chat_template=chat_template,
                add_generation_prompt=prompt,
                tokenize=False,
                **{**(kwargs or {}), **switches},
            )
        except Exception:  # a template is a program, and can fail in any way
            return ""
        return str(text)

    before = render(prompt=True).rstrip()
    words = _shown(render, chat_template, before) or ThoughtWords()
    return _framed(words, render, chat_template, before)


def _shown(render: Callable[..., str], chat_template: str, before: str) -> ThoughtWords | None:
    """Return the words that a chat template writes around a thought, or takes out with one."""

    def words(opening: str, closing: str) -> ThoughtWords:
        return ThoughtWords(opening, closing, opened=before.endswith(opening), own=True)

    plain = render(_ANSWERS[0]).partition(ANSWER)[0]
    for answer in _ANSWERS:
        thought, closed, behind = render(answer | dict.fromkeys(THOUGHT_FIELDS, THOUGHT)).partition(
            THOUGHT
        )
        if closed and ANSWER in behind and not _DUMPED.search(behind):
            opening = _opening(thought, plain, before)
            closing = behind.partition(ANSWER)[0].strip()
            if opening and closing:
                return words(opening, closing)
    for closing in dict.fromkeys(_CLOSING.findall(chat_template)):
        earlier = {"role": "assistant", "content": f"{THOUGHT}{closing}{ANSWER}"}
        shown = render(earlier, *QUESTION)
        if ANSWER in shown and THOUGHT not in shown:  # it takes thoughts out of earlier answers
            return words(closing.replace("/", "", 1), closing)
    on, off = (
        render(prompt=True, **dict.fromkeys(SWITCHES, think)).rpartition(QUESTION[0]["content"])[2]
        for think in (True, False)
    )
    nothing = off.removeprefix(on).strip()  # a thought without a word, where it is not to think
    ended = _LAST.search(nothing) if on and off.startswith(on) else None
    if ended is not None and (opening := nothing.removesuffix(ended[0]).strip()):
        return words(opening, ended[0])
    usual = ThoughtWords()  # which a prompt may open, and say no more of
    return words(usual.opening, usual.closing) if before.endswith(usual.opening) else None


def _framed(
    words: ThoughtWords, render: Callable[..., str], chat_template: str, before: str
) -> ThoughtWords:
    """Return the words with those around an answer, if there are such."""
    said = before.partition(QUESTION[0]["content"])[0]
    phrases = list(dict.fromkeys(_PHRASE.findall(said)))
    if len(phrases) == 2 and not words.own:
        return ThoughtWords(phrases[0], phrases[1], own=True)
    pairs = _announced(said)
    if pairs and pairs[-1][0].startswith("[BEGIN ") and not words.own:
        opening, closing = pairs[-1]  # before it comes the thought
        return ThoughtWords("", opening, opened=True, own=True, frame=("", closing))
    if len(pairs) > 1 and (not words.own or pairs[-2] == (words.opening, words.closing)):
        opening, closing = pairs[-2]
        opened = before.endswith(opening)
        return ThoughtWords(opening, closing, opened=opened, own=True, frame=pairs[-1])
    plain = render(_ANSWERS[0], *QUESTION)
    for closing in dict.fromkeys(_CLOSING.findall(chat_template)):
        opening = closing.replace("/", "", 1)
        thought = f"{words.opening}{THOUGHT}{words.closing}"
        answer = f"{thought}{opening}{ANSWER}{closing}"
        shown = render({"role": "assistant", "content": answer}, *QUESTION)
        if closing != words.closing and shown and shown == plain:  # it takes it out of them
            return replace(words, frame=(opening, closing))
    return words


def _announced(text: str) -> list[tuple[str, str]]:
    """Return the pairs of words that a text shows around nothing, or an ellipsis.

    >>> _announced("Write your thoughts between <a></a>, the answer as [BEGIN B] ... [END B].")
    [('<a>', '</a>'), ('[BEGIN B]', '[END B]')]
    """
    _, *parts = _MARK.split(text)
    found = []
    for opening, gap, closing in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
        closes = (opening[0] + "/" + opening[1:], opening.replace("[BEGIN ", "[END "))
        if closing != opening and closing in closes and gap.strip() in _ELLIPSES:
            found.append((opening, closing))
    return list(dict.fromkeys(found))


def _opening(thought: str, plain: str, before: str) -> str:
    """Return the word that opens a thought; "" where none does.

    Args:
        thought: What stands before a thought.
        plain: What stands before an answer without one.
        before: The prompt, to its last character that is no blank.
    """
    if plain.endswith(thought):  # only a prompt may have it
        bare = plain.rstrip()
        return before.removeprefix(bare).strip() if bare and before.startswith(bare) else ""
    opening = thought.rstrip().removeprefix(before).strip().split("\n")[-1]
    if not opening:  # the prompt wrote it
        return _last_tag(before)
    # What follows where the prompt goes on otherwise, as by an empty thought; a tag is one word.
    same = alike(opening, before.rpartition("\n")[2])
    tag = opening.rfind("<", 0, same)
    rest = opening[tag if tag >= 0 and ">" not in opening[tag:same] else same :]
    return rest or _last_tag(opening)


def _last_tag(text: str) -> str:
    ended = _TAG.search(text)
    return ended[0] if ended else ""


class Thoughts:
    """The words around thoughts of one model, by what its template is rendered with."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast | None, chat_template: str | None
    ) -> None:
        self._template = (tokenizer, chat_template)
        self._words: dict[str, ThoughtWords] = {}

    def __call__(self, settings: Mapping[str, Any]) -> ThoughtWords:
        """Return them for a request with these settings of the engine."""
        kwargs = settings.get("chat_template_kwargs") or {}
        key = repr(sorted(kwargs.items(), key=repr))
        if key not in self._words:
            self._words[key] = thought_words(*self._template, kwargs)
        return self._words[key]

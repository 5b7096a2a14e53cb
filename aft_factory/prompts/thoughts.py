r"""Thoughts: what a model writes before its answer, told apart from it.

The words around a thought are the chat template's own, found by rendering probes, never by a list
of families. Pure but for the template that is rendered.

    >>> ThoughtWords().split("<think>\nSix pails of 7.\n</think>\n\nThe answer is 42.")
    ('Six pails of 7.', 'The answer is 42.')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTION = [{"role": "user", "content": "How many?"}]
THOUGHT, ANSWER = "Let me count.", "Forty-two."  # of probes
FIELDS = ("reasoning_content", "reasoning", "thinking")  # what servers and templates call thoughts
SWITCHES = ("enable_thinking", "thinking")  # what templates are told whether to think by
# An answer; to some templates, it and the thought before it are parts or blocks.
_ANSWERS: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": ANSWER},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": THOUGHT},
            {"type": "text", "text": ANSWER},
        ],
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


@dataclass(frozen=True, slots=True)
class ThoughtWords:
    """The words around a thought.

    Attributes:
        opening: Before it. The defaults are what most families write.
        closing: Behind it.
        opened: Whether the prompt ends with the opening word, so that a model writes only the
            closing one.
        own: Whether they are a template's own; else a text that only holds the closing word has to
            have it on a line of its own, as it may be about such words.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    opened: bool = False
    own: bool = False

    def split(self, text: str, *, cut_off: bool = False) -> tuple[str, str]:
        """Return the thought in what a model wrote, and the answer behind it.

        Either is "" where there is none: a thought that does not end has no answer.

        Args:
            text: What it wrote.
            cut_off: Whether a limit of tokens ended it.
        """
        bare = text.lstrip()
        if header := self._header(bare):
            return "", bare.removeprefix(header).lstrip()
        begins = bare.startswith(self.opening)
        head, closed, tail = text.partition(self.closing)
        if not begins and closed and self.opening in head:
            return "", text  # it speaks of thoughts
        if closed and not begins and not self.own:
            alone = head.rpartition("\n")[2] + tail.partition("\n")[0]
            closed = "" if alone.strip() else closed
        if closed:
            return head.strip().removeprefix(self.opening).strip(), tail.lstrip()
        if begins:
            return text.strip().removeprefix(self.opening).strip(), ""
        return (text.strip(), "") if self.opened and cut_off else ("", text)

    @property
    def headers(self) -> list[str]:
        """What may begin an answer that has no thought before it.

        The closing word may be several: the end of a thought, and a header of the answer.
        """
        closing = self.closing
        return [closing[i:] for i in range(1, len(closing)) if closing[i] == "<"]

    def _header(self, text: str) -> str:
        """Return the header that a text begins with; "" if it does with none."""
        return next((header for header in self.headers if text.startswith(header)), "")

    def around(self, thought: str, answer: str) -> str:
        """Return a thought and the answer behind it as one text, which `split` takes apart."""
        return f"{self.opening}\n{thought}\n{self.closing}\n\n{answer}"

    def answer_at(self, text: str) -> int | None:
        """Return where the answer begins in a text that is still being written, by `split`.

        None as long as that is open: a thought may begin, or has not ended. A thought that nothing
        opens, not even the prompt, is not foreseen.
        """
        bare = text.lstrip()
        begins = bare.startswith(self.opening)
        if not begins and any(word.startswith(bare) for word in (self.opening, *self.headers)):
            return None
        if header := self._header(bare):
            answer = bare.removeprefix(header).lstrip()
            return len(text) - len(answer) if answer else None
        if not (begins or self.opened):
            return 0
        head, closed, tail = text.partition(self.closing)
        if closed and not begins and self.opening in head:
            return 0  # it speaks of thoughts
        return len(text) - len(tail.lstrip()) if closed and tail.strip() else None

    def so_far(self, text: str) -> tuple[str, str]:
        """Return what is sure of thought and answer in a text that is still being written."""
        at = self.answer_at(text)
        bare = text.strip()
        begins = any(word.startswith(bare) for word in (self.opening, *self.headers))
        if at == 0 or begins or self._header(bare):
            return "", "" if at is None else text[at:]
        thought, closed, _ = text[:at].strip().removeprefix(self.opening).partition(self.closing)
        if not closed:  # its end may have begun
            ends = (self.closing[:n] for n in range(len(self.closing), 0, -1))
            thought = thought.removesuffix(next(filter(thought.endswith, ends), ""))
        return thought.strip(), "" if at is None else text[at:]


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

    def words(opening: str, closing: str) -> ThoughtWords:
        return ThoughtWords(opening, closing, opened=before.endswith(opening), own=True)

    before = render(prompt=True).rstrip()
    plain = render(_ANSWERS[0]).partition(ANSWER)[0]
    for answer in _ANSWERS:
        thought, closed, behind = render(answer | dict.fromkeys(FIELDS, THOUGHT)).partition(THOUGHT)
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
    return ThoughtWords()


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
    pairs = zip(opening, before.rpartition("\n")[2], strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
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

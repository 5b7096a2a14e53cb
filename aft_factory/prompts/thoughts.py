r"""Thoughts: what a model writes before its answer, told apart from it.

The words around a thought are the chat template's own (`thought_probes`). Pure.

    >>> ThoughtWords().split("<think>\nSix pails of 7.\n</think>\n\nThe answer is 42.")
    ('Six pails of 7.', 'The answer is 42.')
"""

from __future__ import annotations

from dataclasses import dataclass

SWITCHES = ("enable_thinking", "thinking")  # what templates are told whether to think by


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
        frame: The words around the answer, if there are some; the first may be the closing one.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    opened: bool = False
    own: bool = False
    frame: tuple[str, str] = ("", "")

    def split(self, text: str, *, cut_off: bool = False) -> tuple[str, str]:
        """Return the thought in what a model wrote, and the answer behind it.

        Either is "" where there is none: a thought that does not end has no answer.

        Args:
            text: What it wrote.
            cut_off: Whether a limit of tokens ended it, or a text of `stop`.
        """
        bare = text.lstrip()
        if header := self._header(bare):
            return "", self._unframed(bare.removeprefix(header))
        begins = self._begins(bare)
        head, closed, tail = text.partition(self.closing)
        if not begins and closed and self.opening and self.opening in head:
            return "", text  # it speaks of thoughts
        if closed and not begins and not self.own:
            alone = head.rpartition("\n")[2] + tail.partition("\n")[0]
            closed = "" if alone.strip() else closed
        if closed:
            return head.strip().removeprefix(self.opening).strip(), self._unframed(tail)
        if begins:
            return text.strip().removeprefix(self.opening).strip(), ""
        return (text.strip(), "") if self.opened and cut_off else ("", text)

    @property
    def headers(self) -> list[str]:
        """What may begin an answer that has no thought before it.

        The closing word may be several: the end of a thought, and a header of the answer.
        """
        closing = self.closing
        ends = [closing[i:] for i in range(1, len(closing)) if closing[i] == "<"]
        return [*ends, *filter(None, self.frame[:1])]

    def _header(self, text: str) -> str:
        """Return the header that a text begins with; "" if it does with none."""
        return next((header for header in self.headers if text.startswith(header)), "")

    def _begins(self, text: str) -> bool:
        """Tell whether a text begins with a thought."""
        return bool(self.opening) and text.startswith(self.opening)

    def _unframed(self, answer: str) -> str:
        """Return an answer without blanks before it and the words around it."""
        bare = answer.lstrip().removeprefix(self.frame[0]).lstrip()
        sure, rest = self.ended(bare)
        return sure if rest.strip() == self.frame[1] else bare

    def ended(self, answer: str) -> tuple[str, str]:
        """Return what is sure of an answer that may go on, and what may be the word behind it."""
        word, bare = self.frame[1], answer.rstrip()
        if not word:
            return answer, ""
        if bare.endswith(word):
            bare = bare.removesuffix(word)
        else:
            begun = (word[:length] for length in range(len(word) - 1, 0, -1))
            bare = answer.removesuffix(next(filter(answer.endswith, begun), ""))
        sure = bare.rstrip()
        return sure, answer[len(sure) :]

    def around(self, thought: str, answer: str) -> str:
        """Return a thought and the answer behind it as one text, which `split` takes apart."""
        return f"{self.opening}\n{thought}\n{self.closing}\n\n{answer}"

    def answer_at(self, text: str) -> int | None:
        """Return where the answer begins in a text that is still being written, by `split`.

        None as long as that is open: a thought may begin, or has not ended. A thought that nothing
        opens, not even the prompt, is not foreseen.
        """
        bare = text.lstrip()
        begins = self._begins(bare)
        if not begins and any(word.startswith(bare) for word in (self.opening, *self.headers)):
            return None
        if header := self._header(bare):
            return self._begun(text, bare.removeprefix(header))
        if not (begins or self.opened):
            return 0
        head, closed, tail = text.partition(self.closing)
        if closed and not begins and self.opening and self.opening in head:
            return 0  # it speaks of thoughts
        return self._begun(text, tail) if closed else None

    def _begun(self, text: str, tail: str) -> int | None:
        """Return where the answer in a text's tail begins, behind its header; None if not yet."""
        bare = tail.lstrip()
        if self.frame[0].startswith(bare):
            return None
        answer = bare.removeprefix(self.frame[0]).lstrip()
        return len(text) - len(answer) if answer else None

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

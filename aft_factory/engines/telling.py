"""Telling of texts while they are written, and of the thoughts before them apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from aft_factory.engines.sampling import Piece, Told
from aft_factory.prompts.thoughts import ThoughtWords


class Special:
    """Control tokens, which are no text.

    Args:
        tokens: As a model writes them.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        tokens = sorted(set(filter(None, tokens)), key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self._beginnings = {token[:end] for token in tokens for end in range(1, len(token))}
        self._longest = len(tokens[0]) if tokens else 0

    def out_of(self, text: str) -> str:
        """Return a text without them."""
        return self._tokens.sub("", text)

    def parted(self, text: str) -> tuple[str, str]:
        """Return what is sure of a text that goes on, without them, and what may become one."""
        whole = self.out_of(text)
        for start in range(max(0, len(whole) - self._longest), len(whole)):
            if whole[start:] in self._beginnings:
                return whole[:start], whole[start:]
        return whole, ""


@dataclass(slots=True)
class _Sample:
    """What was heard and told of a sample: `at` is where its answer begins, once that is sure."""

    text: str = ""
    at: int | None = None
    thought: str = ""
    told: int = 0
    held: str = ""
    end: str = ""  # what may be the word behind the answer


NONE = Special()


def apart(told: Told | None, words: ThoughtWords | None, special: Special = NONE) -> Told | None:
    """Return who hears of samples as the model writes them, and tells thoughts and answers apart.

    Args:
        told: Hears of both; None, if nobody does.
        words: Around a thought; None where the text holds none.
        special: Taken out of what is told.
    """
    if told is None or words is None:
        return told
    tell, split = told, words
    samples: dict[int, _Sample] = {}

    def hear(piece: Piece) -> None:
        if piece.thought:  # apart already
            tell(piece)
            return
        if piece.start == 0:
            samples[piece.index] = _Sample()
        own, new = samples[piece.index], piece.text
        if own.at is None:
            own.text += new
            own.at = split.answer_at(own.text)
            thought, new = split.so_far(own.text)
            if thought != own.thought:
                start = len(own.thought) if thought.startswith(own.thought) else 0
                own.thought = thought
                text = special.out_of(thought[start:])
                tell(replace(piece, text=text, start=start, thought=True))
        new, own.held = special.parted(own.held + new)
        if piece.ended:
            new, own.held = new + own.held, ""
        new, own.end = split.ended(own.end + new)
        if piece.ended and own.end.strip() != split.frame[1]:
            new, own.end = new + own.end, ""
        tell(replace(piece, text=new, start=own.told))
        own.told += len(new)

    return hear

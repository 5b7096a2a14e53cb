"""Telling of texts while they are written, and of the thoughts before them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aft_factory.engines.sampling import Piece, Told
from aft_factory.prompts.thoughts import ThoughtWords


def apart(
    told: Told | None,
    words: ThoughtWords | None,
    plain: Callable[[str], str] = lambda text: text,
) -> Told | None:
    """Return who hears of samples as the model writes them, and tells thoughts and answers apart.

    Args:
        told: Hears of both; None, if nobody does.
        words: Around a thought; None where the text holds none.
        plain: Takes out what is no text.
    """
    if told is None or words is None:
        return told
    tell, split = told, words
    written: dict[int, str] = {}
    shown: dict[tuple[int, bool], str] = {}

    def hear(piece: Piece) -> None:
        if piece.thought:  # apart already
            tell(piece)
            return
        index = piece.index
        text = written[index] = written.get(index, "")[: piece.start] + piece.text
        for thought, part in zip((True, False), split.so_far(text), strict=True):
            before = "" if piece.start == 0 else shown[index, thought]
            now = shown[index, thought] = plain(part)
            start = len(before) if now.startswith(before) else 0
            if now != before or not thought:
                tell(replace(piece, text=now[start:], start=start, thought=thought))

    return hear

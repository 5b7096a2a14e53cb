"""Telling of texts while they are written: a thought is no part of what is told."""

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
    """Return who hears of samples as the model writes them, and tells on their answers only.

    Args:
        told: Hears of the answers; None, if nobody does.
        words: Around a thought; None where the text holds none.
        plain: Takes out what is no text.
    """
    if told is None or words is None:
        return told
    tell, split = told, words
    written: dict[int, str] = {}
    shown: dict[int, str] = {}

    def hear(piece: Piece) -> None:
        index = piece.index
        if piece.start == 0:
            shown[index] = ""
        text = written[index] = written.get(index, "")[: piece.start] + piece.text
        at = split.answer_at(text)
        now, before = "" if at is None else plain(text[at:]), shown[index]
        start = len(before) if now.startswith(before) else 0
        shown[index] = now
        tell(replace(piece, text=now[start:], start=start))

    return hear

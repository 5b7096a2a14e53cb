"""Watching: who follows one query hears of its drafts while they are made."""

from __future__ import annotations

from typing import Protocol

from aft_factory.engines.sampling import Completion, Told


class Watch(Protocol):
    """Follows one query. It hears texts as the model writes them, and in the end as they are used.

    What it hears while a text is written is not sure: control tokens that are broken in it are not
    mended yet, and a draft may be given up for a new one.
    """

    def asked(self, layer: int, slot: int, *, answers: bool) -> Told:
        """Return who hears of samples that are asked for.

        Args:
            layer: Round.
            slot: Place of the first of them.
            answers: Whether each of them is an answer to the query; else they are drafts.
        """
        ...

    def used(self, layer: int, slot: int, completion: Completion, *, answers: bool) -> None:
        """Hear of a draft, or an answer, as it is used."""
        ...

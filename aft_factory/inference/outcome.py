"""How a query ended: what the runner tells, the journal keeps and the outputs are written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aft_factory.engines.sampling import Usage


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a query ended.

    Attributes:
        answers: The answer of each turn; fewer than there are turns where a problem came between.
        thoughts: What was thought before each of them.
        finish_reasons: Why each of them ended.
        details: What the strategy says about its choice, by turn.
        usage: Of each (turn, layer), what its requests took; of rejected queries too.
        events: Every use of a policy: {turn, layer, slot, event}.
        layers: All drafts, if they are kept: {turn, layer, drafts: [{slot, text, thought,
            finish_reason}]}.
        problem: Why there is no answer.
        about: What the problem is about: `drafts`; `context`, which the query does not fit;
            `refused`, if the model will not have it; or `engine`, which failed for a reason that
            may have passed when it is asked again.
        model: What was asked, by the name it has for people.
        by_model: The usage of each model, where several were asked; the run's own is None.
        scored: What a reward model read, where one was asked.
        given: The proposals of the row that were the drafts of its first layer.
        more: Further answers to the last turn from the same drafts: {text, finish_reason}.
        shortened: Where drafts were shortened to be read: {turn, layer, slot, kept}, the
            characters kept of each.
    """

    answers: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None
    about: str | None = None
    model: str | None = None
    by_model: list[dict[str, Any]] = field(default_factory=list)
    scored: dict[str, Any] | None = None
    given: list[str] = field(default_factory=list)
    more: list[dict[str, str]] = field(default_factory=list)
    shortened: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layer_usage(self) -> dict[tuple[int, int], Usage]:
        """The usage, by (turn, layer)."""
        return {(row["turn"], row["layer"]): _usage(row) for row in self.usage}

    @property
    def model_usage(self) -> dict[str, Usage]:
        """The usage by model, where several were asked; the run's own is ""."""
        return {row["model"] or "": _usage(row) for row in self.by_model}


def _usage(row: Mapping[str, Any]) -> Usage:
    return Usage(**{name: row[name] for name in Usage.__dataclass_fields__})

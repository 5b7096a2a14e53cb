"""What a strategy is: what it is handed, what it returns, and all that is to be known of it.

A layer is one round; every draft has its place, (layer, slot), which is all that its seed depends
on. `strategies` has the algorithms themselves.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion
from aft_factory.records.messages import Message

Conversation = Sequence[Message]
# From a conversation and texts that answer it: the score of each, or why it has none.
Score = Callable[[Conversation, Sequence[str]], Awaitable[Sequence[float | EngineError]]]


class Sample(Protocol):
    """A(r | q, P): draws drafts for a query, after reading drafts of the layer before."""

    def __call__(
        self,
        query: Conversation,
        drafts: Sequence[Completion] = (),
        *,
        layer: int,
        slot: int = 0,
        n: int = 1,
        final: bool = False,
        model: str | None = None,
        whole: bool = True,
    ) -> Coroutine[Any, Any, list[Completion]]:
        """Draw n drafts at the places (layer, slot) .. (layer, slot + n - 1).

        Args:
            query: The conversation to answer.
            drafts: What to aggregate; none asks the plain query.
            layer: Round, from 0.
            slot: Place of the first draft in its layer.
            n: How many.
            final: Decode under the settings of the final layer: the answer is among these.
            model: Which of several models.
            whole: These are a whole layer; else `require` is to be told of it when it is.

        Returns:
            The usable drafts: at most n, as empty ones may be left out; of one final draft, that.
        """
        ...

    def require(self, drafts: Sequence[Completion], n: int, *, layer: int) -> None:
        """Fail the query if of n drafts of a layer fewer are usable than the run's setting."""
        ...

    def random(self, layer: int, slot: int) -> random.Random:
        """Return the source of chance of a place, the same in every run."""
        ...

    def note(self, layer: int, slot: int, event: str) -> None:
        """Record the use of a policy at a place; the summary counts events of a name."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a strategy found.

    Attributes:
        completion: The answer.
        details: How it was chosen, such as scores or votes.
    """

    completion: Completion
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Strategy:
    """An inference algorithm, and all that is to be known of it.

    Attributes:
        name: As users type it.
        run: The coroutine: `run(query, sample, **options) -> Answer`.
        options: What can be set, with its defaults.
        fixed: Options of `run` that cannot: what makes it this one and no other.
        has_final: Whether its last layer is decoded by settings of its own; else its one layer is
            the final one, and what is set for drafts holds for the answer.
        single: Whether its last layer is one text, which is the answer; else it chooses among them.
        needs: What `run` is handed besides: `proposals` that the row brings, `score`, `models`.
        first: How many drafts its first layer has, from all options, where proposals that a row
            brings can stand for them; None where they cannot.
        reads: From all options to how many drafts one aggregation reads at most.
        flops: Of one query by appendix C of 2501.11877, from all options, in the FLOPs of one
            completion; None for a strategy that it does not cover.
    """

    name: str
    run: Callable[..., Coroutine[Any, Any, Answer]]
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    has_final: bool = True
    single: bool = True
    needs: frozenset[str] = frozenset()
    first: Callable[..., int] | None = None
    reads: Callable[..., int] = lambda **_: 0
    flops: Callable[..., int] | None = None

    @property
    def has_middle(self) -> bool:
        """Whether it may have layers between the first and the last."""
        return not self.options.keys().isdisjoint({"layers", "window"})

    def settled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options: those given, and its own where nothing (None) was."""
        given = {name: value for name, value in given.items() if value is not None}
        return {**self.options, **given, **self.fixed}

"""A query made anew from its journal, which keeps drafts once and not the prompts they stood in.

The strategy runs again on what was answered then: so the prompts, which drafts each of them held,
which drafts were used and which was taken for the answer are known without being kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.sampling import Completion, Piece, Prompt, Reply, Request, Usage
from aft_factory.errors import UsageError
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.strategy import Answer, Conversation, Sample
from aft_factory.run.settings import RunSettings
from aft_factory.stage.kept import kept_settings

Prompts = dict[tuple[int, int], dict[int, Prompt]]  # by (turn, layer): by slot
Kept = tuple[Place, dict[str, Any], Reply]  # as `Journal.replies` has them
Where = tuple[int, int]  # a draft's (layer, slot)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A sample that the journal has for a place.

    Attributes:
        number: 0, or which resampling.
        completion: As it came.
        request: What asked for it, maybe with others.
        usage: Of that request.
    """

    number: int
    completion: Completion
    request: dict[str, Any]
    usage: Usage


@dataclass(slots=True)
class Replayed:
    """What a query's journal tells by being run again.

    Attributes:
        prompts: What was asked, drafts unshortened.
        drafts: By (turn, layer), by slot, the drafts that were used.
        reads: By (turn, layer), by slot, the drafts that were in the prompt.
        attempts: By (turn, layer), by slot, all that was drawn for the place.
        chosen: By turn, the draft that is the answer.
        exact: Whether the journal's seeds are those of the query: else what follows from chance,
            such as which drafts a member of `rsa` reads, is not known.
    """

    prompts: Prompts = field(default_factory=dict)
    drafts: dict[tuple[int, int], dict[int, Completion]] = field(default_factory=dict)
    reads: dict[tuple[int, int], dict[int, list[Where]]] = field(default_factory=dict)
    attempts: dict[tuple[int, int], dict[int, list[Attempt]]] = field(default_factory=dict)
    chosen: list[Where | None] = field(default_factory=list)
    exact: bool = True


def plain_query(name: str, turns: list[Any], replies: Sequence[Kept], **more: Any) -> Query:
    """Return a query of which the journal alone is known, decoded in the end as it was then."""
    final = {}
    if replies:  # a benchmark's own rules may differ from the run's settings
        last = max(replies, key=lambda kept: (kept[0].turn, kept[0].layer))
        final = {"temperature": last[1]["sampling"]["temperature"]}
    return Query(name, turns, {}, final=final, **more)


class Replays:
    """Runs queries of a run again, one after the other.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._strategy = STRATEGIES[settings.strategy]
        self._drafting = settings.drafting()
        self._loop = asyncio.Runner()  # one for all, as to make one takes longer than a query

    def __enter__(self) -> Replays:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()

    def of(self, query: Query, replies: Iterable[Kept]) -> Replayed:
        """Run a query again.

        Args:
            query: What was asked.
            replies: What the journal has of it; of other rows of its id, too.
        """
        found = Replayed()

        async def noted(said: Conversation, sample: Sample, **options: Any) -> Answer:
            noting = _Noting(sample, found, len(found.chosen), watch)
            answer = await self._strategy.run(said, noting, **options)
            found.chosen.append(next(iter(noting.places([answer.completion])), None))
            return answer

        watch, replay = _Watch(), _Replay(replies, found)
        runner = Runner(
            replace(self._strategy, run=noted),
            self._settings.options(),
            self._drafting,
            cast(Any, replay),
            "",
            {},
            score=_unscored if "score" in self._strategy.needs else None,
            use_proposals=self._settings.use_proposals,
        )
        with contextlib.suppress(Stopped):  # where the run was
            self._loop.run(runner.answer(query, watch))
        replay.note_rest()
        return found


def prompts_of(journal: Journal, name: str) -> Prompts:
    """Return what was asked for a query by the journal's last run, drafts unshortened.

    Raises:
        UsageError: If the last run had no such query, or was none of `aft run`.
    """
    turns, last = journal.turns(name), journal.last_run()
    settings = kept_settings(journal.path, RunSettings(), ())
    if turns is None or last is None or (run := journal.run_of(last)) not in journal.runs_of(name):
        raise UsageError(f"{journal.path}: its last run, whose prompts are known, had no {name!r}")
    replies = list(journal.replies(name, run))
    outcomes = journal.outcomes_of(name, run)
    given = outcomes[0].get("given", []) if outcomes else []
    with Replays(settings) as replays:
        return replays.of(plain_query(name, turns, replies, proposals=given), replies).prompts


class _Replay:
    """In the place of an `Asker`: answers from the journal, and notes what was asked."""

    def __init__(self, replies: Iterable[Kept], found: Replayed) -> None:
        self._found = found
        self._kept: dict[tuple[int, int, int, int], list[tuple[int, Attempt]]] = {}
        self._noted: set[tuple[int, int, int, int]] = set()
        for at, request, reply in replies:
            for i, completion in enumerate(reply.completions):
                place = (at.turn, at.layer, at.slot + i, at.attempt)
                attempt = Attempt(at.attempt, completion, request, reply.usage)
                self._kept.setdefault(place, []).append((request["seed"] + i, attempt))

    async def ask(self, request: Request, place: Place, *_: object) -> Reply:
        """Return what the journal has; what comes after something it has not is not asked."""
        slots = range(place.slot, place.slot + request.n)
        asked = self._found.prompts.setdefault((place.turn, place.layer), {})
        asked |= dict.fromkeys(slots, request.prompt)
        replies = []
        for i, slot in enumerate(slots):
            at = (place.turn, place.layer, slot, place.attempt)
            kept = self._kept.get(at, [])
            own = [attempt for seed, attempt in kept if seed == request.seed + i]
            self._found.exact &= bool(own) or not kept
            found = own[:1] or [attempt for _, attempt in kept if len(kept) == 1]
            self._note(at, found)
            replies += [attempt.completion for attempt in found]
        if len(replies) < request.n:
            raise Stopped("the journal has no more of it")
        return Reply(tuple(replies), Usage())

    def note_rest(self) -> None:
        """Note what was drawn beside a draft that had not come when the run ended."""
        for at, kept in self._kept.items():
            if at not in self._noted and len(kept) == 1:
                self._note(at, [attempt for _, attempt in kept])

    def _note(self, at: tuple[int, int, int, int], attempts: list[Attempt]) -> None:
        turn, layer, slot, _ = at
        self._noted.add(at)
        if attempts:
            layer_has = self._found.attempts.setdefault((turn, layer), {})
            layer_has.setdefault(slot, []).extend(attempts)


class _Watch:
    """Hears at which place each draft is used."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}  # by identity, as equal texts are several drafts

    def asked(self, layer: int, slot: int, *, answers: bool) -> Any:
        """Return who hears of pieces: nobody."""

        def told(_: Piece) -> None:
            pass

        return told

    def used(self, layer: int, slot: int, completion: Completion, *, answers: bool) -> None:
        """Note the place."""
        self.slots[id(completion)] = slot


class _Noting:
    """A turn's `Sample` that notes which drafts are read where."""

    def __init__(self, sample: Sample, found: Replayed, turn: int, watch: _Watch) -> None:
        self._sample, self._found, self._turn, self._watch = sample, found, turn, watch
        self._at: dict[int, list[Where]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sample, name)

    async def __call__(
        self,
        query: Conversation,
        drafts: Sequence[Completion] = (),
        *,
        layer: int,
        slot: int = 0,
        n: int = 1,
        **how: Any,
    ) -> list[Completion]:
        """Draw drafts."""
        place = (self._turn, layer)
        if drafts:
            read = list(self.places(drafts))
            reads = self._found.reads.setdefault(place, {})
            reads |= dict.fromkeys(range(slot, slot + n), read)
        used = self._found.drafts.setdefault(place, {})
        found = await self._sample(query, drafts, layer=layer, slot=slot, n=n, **how)
        for at, completion in enumerate(found, start=slot):
            if len(found) < n:  # some were dropped
                at = self._watch.slots.get(id(completion), at)
            used[at] = completion
            self._at.setdefault(id(completion), []).append((layer, at))
        return found

    def places(self, drafts: Sequence[Completion]) -> Iterator[Where]:
        """Go through the places of drafts; greedy ones are one draft at several."""
        left: dict[int, list[Where]] = {}
        for draft in drafts:
            places = left.setdefault(id(draft), list(self._at.get(id(draft), ())))
            if places:
                yield places.pop(0) if len(places) > 1 else places[0]


async def _unscored(*_: Any) -> Any:
    raise Stopped("nothing is asked after scores")

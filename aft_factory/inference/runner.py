"""The runner: many queries through one strategy, each on its own, with the engine kept full.

Knows no command line and no file format. There is no barrier: an admitted query goes on as soon as
its own drafts are there. How many requests are in flight is the asker's limit; how many queries are
admitted at once (`window`) only bounds memory.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from aft_factory import __version__
from aft_factory.asking.asker import Asker
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Usage
from aft_factory.errors import NoAnswer, TooLong
from aft_factory.inference.drafting import Drafting
from aft_factory.inference.drafting_options import DraftingOptions, Trace
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.room import Fitters
from aft_factory.inference.strategy import Strategy
from aft_factory.inference.watching import Watch
from aft_factory.prompts.markers import Markers
from aft_factory.records.messages import Message


@dataclass(frozen=True, slots=True)
class Runner:
    """Answers queries.

    Attributes:
        strategy: The algorithm.
        options: All of its options.
        settings: Prompts, sampling, seed and policies.
        asker: Asks the model.
        model: What answers, for the fingerprint.
        fitters: Shorten drafts to a model's context, by model.
        score: A reward model, for strategies that want one.
        count: Tells how many tokens it reads of a query's drafts, where that is known.
        scorer: What scores, for the fingerprint.
        keep_drafts: Whether outcomes hold all drafts.
        use_proposals: Whether the proposals of a query are the drafts of its first layer.
        markers: What is broken in all texts that a model reads, by model; of others, the markers of
            all known families.
        no_system: The models that take no system message; "" is the run's own.
    """

    strategy: Strategy
    options: Mapping[str, Any]
    settings: DraftingOptions
    asker: Asker
    model: str
    fitters: Fitters
    score: Any = None
    count: Callable[..., Awaitable[Sequence[int | None]]] | None = None
    scorer: str = ""
    keep_drafts: bool = False
    use_proposals: bool = False
    markers: Mapping[str, Markers] = field(default_factory=dict)
    no_system: frozenset[str] = frozenset()
    answers: int = 1

    @property
    def fingerprint(self) -> str:
        """Names all that decides an outcome but the query: outcomes of equal names are equal."""
        settings = self.settings
        content = [
            *(__version__, self.model, self.strategy.name, dict(self.options)),
            *(settings.template.fingerprint, settings.proposer_system, settings.seed),
            *(asdict(settings.proposal), asdict(settings.final), asdict(settings.policy)),
            settings.middle and asdict(settings.middle),
            *(self.keep_drafts, self.use_proposals, self.scorer, settings.reads),
            [[name, fitter.fingerprint] for name, fitter in sorted(self.fitters.items())],
            [[name, markers.words] for name, markers in sorted(self.markers.items())],
            sorted(self.no_system),
            settings.completion and settings.completion.name,
        ]
        if self.answers > 1 or settings.final_policy is not None:
            final_policy = settings.final_policy or settings.policy
            content += [self.answers, asdict(final_policy), settings.capped]
        return hashlib.blake2b(_canonical(content), digest_size=16).hexdigest()

    @staticmethod
    def outcome_key(query: Query, fingerprint: str) -> bytes:
        """Return the journal's key for the outcome of a query."""
        content: list[Any] = [fingerprint, query.id, query.turns, query.final, query.proposals]
        if query.options or query.seed is not None:
            content += [query.options, query.seed]
        return hashlib.blake2b(_canonical(content), digest_size=16).digest()

    async def answer(self, query: Query, watch: Watch | None = None) -> Outcome:
        """Answer every turn of a query; the final answer of a turn is the history of the next.

        Args:
            query: What is asked.
            watch: Hears of drafts and answers while they are made.

        Raises:
            Stopped: If the run was asked to stop.
            EngineError: If no query can be answered any more.
        """
        trace = Trace(events=list(query.events))
        settings = self.settings
        if query.final:
            settings = replace(settings, final=replace(settings.final, **query.final))
        if query.seed is not None:
            settings = replace(settings, seed=query.seed)
        options = {**self.options, **query.options}
        scored: list[Usage] = []
        if self.score is not None:
            options["score"] = self.score if self.count is None else self._counted(scored)
        if "proposals" in self.strategy.needs:
            options["proposals"] = [Completion(text) for text in query.proposals]
        given = query.proposals if self.use_proposals else []
        done: list[Completion] = []
        details: list[dict[str, Any]] = []
        messages: list[Message] = []
        problem = about = None
        try:
            for turn, said in enumerate(query.turns):
                messages = [*messages, *said]
                sample = Drafting(
                    *(query.id, turn, settings, self.asker, self.fitters, trace, self.markers),
                    query.identity,
                    [Completion(text) for text in given] if turn == 0 else (),
                    self.no_system,
                    self.answers,
                    watch,
                )
                answer = await self.strategy.run(messages, sample, **options)
                done.append(answer.completion)
                details.append(answer.details)
                messages = [*messages, {"role": "assistant", "content": answer.completion.text}]
        except* (NoAnswer, EngineError, Stopped) as group:
            error = _first(group)
            if isinstance(error, Stopped) or (
                isinstance(error, EngineError) and error.kind == "fatal"
            ):
                raise error from None
            problem, about = str(error), _about(error)
        return Outcome(
            answers=[completion.text for completion in done],
            thoughts=[completion.thought for completion in done],
            finish_reasons=[completion.finish_reason for completion in done],
            details=details,
            usage=[
                {"turn": turn, "layer": layer, **asdict(usage)}
                for (turn, layer), usage in sorted(trace.usage.items())
            ],
            events=sorted(trace.events, key=lambda e: (e["turn"], e["layer"], e["slot"])),
            layers=_layers(trace) if self.keep_drafts else [],
            problem=problem,
            about=about,
            by_model=_by_model(trace),
            scored=asdict(sum(scored, Usage())) if scored else None,
            given=given,
            more=[
                {"text": completion.text, "finish_reason": completion.finish_reason}
                for completion in trace.answers.get(len(query.turns) - 1, [])[1:]
            ],
            shortened=trace.shortened,
        )

    def _counted(self, scored: list[Usage]) -> Callable[..., Awaitable[Any]]:
        """Return the reward model as strategies ask it, noting what it reads."""
        assert self.count is not None
        count = self.count

        async def score(query: Sequence[Message], texts: Sequence[str]) -> Any:
            try:
                scores = await self.score(query, texts)
            except EngineError:  # nobody knows what it read before
                scored.append(Usage(len(texts), prompt=None, attended=None))
                raise
            scored.append(Usage.of_pairs(await count(query, texts)))
            return scores

        return score

    async def answer_all(
        self,
        queries: Iterable[Query | None],
        window: int,
        on_outcome: Callable[[Query, Outcome], object],
    ) -> bool:
        """Answer queries, at most `window` of them at a time.

        Args:
            queries: Read as there is room for them; None where a row has no query to answer.
            window: Most queries under way; see `window`.
            on_outcome: Told of each query that ended, in order of their ends.

        Returns:
            Whether all of them ended; else the run was asked to stop.

        Raises:
            EngineError: If no query can be answered any more.
        """
        room = asyncio.Semaphore(window)
        stopped = False

        async def one(query: Query) -> None:
            nonlocal stopped
            try:
                on_outcome(query, await self.answer(query))
            except Stopped:
                stopped = True
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                for query in queries:
                    if query is None:
                        await asyncio.sleep(0)  # skipping a million rows, it can still be stopped
                    else:
                        await room.acquire()
                    if self.asker.stopped:
                        stopped = True
                        break
                    if query is not None:
                        group.create_task(one(query))
        except* Exception as errors:
            raise _first(errors) from None
        return not stopped


def window(in_flight: int) -> int:
    """Return how many queries to have under way for so many samples in flight.

    Each has one sample in flight at least, or is about to: a few more than the limit keep it full,
    whatever the strategy. With many more, as requests are served in turn, all that are admitted
    would go from layer to layer together, and the first answers come late.
    """
    return in_flight + in_flight // 4 + 1


def _by_model(trace: Trace) -> list[dict[str, Any]]:
    """Return the usage of each model, if another than the run's own was asked."""
    if not any(trace.by_model):
        return []
    return [{"model": name or None, **asdict(u)} for name, u in sorted(trace.by_model.items())]


def _layers(trace: Trace) -> list[dict[str, Any]]:
    return [
        {
            "turn": turn,
            "layer": layer,
            "drafts": [
                {
                    "slot": slot,
                    "text": c.text,
                    "thought": c.thought,
                    "finish_reason": c.finish_reason,
                }
                for slot, c in sorted(drafts, key=lambda item: item[0])
            ],
        }
        for (turn, layer), drafts in sorted(trace.drafts.items())
    ]


def _about(error: BaseException) -> str:
    if isinstance(error, EngineError):
        return "engine" if error.kind == "retry" else "refused"
    return "context" if isinstance(error, TooLong) else "drafts"


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the error of a group to show, the gravest if there are several."""

    def single(error: BaseException) -> Iterator[BaseException]:
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from single(part)
        else:
            yield error

    def gravity(error: BaseException) -> int:
        if isinstance(error, EngineError):
            return 1 if error.kind == "fatal" else 3
        return 2 if isinstance(error, Stopped) else 3 if isinstance(error, NoAnswer) else 0

    return min(single(group), key=gravity)


def _canonical(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)

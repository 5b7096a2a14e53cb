"""Drafting: `sample` of the strategies, bound to one turn of one query.

Builds the prompt, shortens drafts to the model's context, derives the seed from the place, asks,
and applies the policies for drafts that are empty, cut off or filtered. Records all of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Place
from aft_factory.engines.endings import is_known
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Prompt, Request, Sampling, Usage, identity_seed
from aft_factory.errors import NoAnswer, RecordError, TooLong
from aft_factory.inference.drafting_options import DraftingOptions, Trace
from aft_factory.inference.policy import WORDS, budget_after, verdict
from aft_factory.inference.reading import read_drafts, summary_prompt
from aft_factory.inference.room import Fitters, fitted_for, fitter_of, room_behind
from aft_factory.inference.watching import Watch
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.rendering import with_aggregator
from aft_factory.prompts.shortening import DoesNotFit
from aft_factory.records.messages import Message

SUMMARY = -1  # in the place of an attempt
LONG = 200  # characters; shorter drafts may be the same by chance


@dataclass(slots=True)
class Drafting:
    """Draws drafts for one turn of one query; implements `strategy.Sample`.

    Attributes:
        query: Id of the query.
        turn: Which of its turns, from 0.
        settings: Of the run.
        asker: Asks the model.
        fitters: Shorten drafts to a model's context, by model; none where the context or the
            tokenizer is unknown.
        trace: Where to record.
        markers: What is broken in all texts that a model reads, by model; of others, the markers of
            all known families.
        identity: What seeds follow from, where it is more than the id.
        given: Drafts of the first layer that are there; none are drawn in it then.
        no_system: The models that take no system message.
        answers: How many answers to draw where one text of the final layer is the answer; the first
            of them is the strategy's.
        watch: Hears of drafts and answers while they are made.
    """

    query: str
    turn: int
    settings: DraftingOptions
    asker: Asker
    fitters: Fitters
    trace: Trace
    markers: Mapping[str, Markers] = field(default_factory=dict)
    identity: str = ""
    given: Sequence[Completion] = ()
    no_system: frozenset[str] = frozenset()
    answers: int = 1
    watch: Watch | None = None
    _lost: dict[int, list[str]] = field(default_factory=dict)  # by layer: why drafts were dropped
    _summarised: set[str] = field(default_factory=set)

    async def __call__(
        self,
        query: Sequence[Message],
        drafts: Sequence[Completion] = (),
        *,
        layer: int,
        slot: int = 0,
        n: int = 1,
        final: bool = False,
        model: str | None = None,
        whole: bool = True,
    ) -> list[Completion]:
        """Draw drafts (see `strategy.Sample`).

        Raises:
            NoAnswer: If too few are usable, or the query does not fit the model.
            EngineError: If the model gives no reply.
        """
        if self.given and layer == 0:
            return self._start(slot, n, whole=whole)
        settings, watch = self.settings, self.watch
        drafting = settings.proposal if not drafts or settings.middle is None else settings.middle
        sampling = settings.final if final else drafting
        answers = final and whole and n == 1
        policy = (settings.final_policy if answers else None) or settings.policy
        n = self.answers if answers else n
        fitter = fitter_of(self.fitters, model, sampling)
        summarise = partial(self._summary, layer=layer, slot=slot, model=model)
        texts = await read_drafts(drafts, settings.reads, fitter, summarise)
        markers = self.markers.get(model or "") or known_markers()
        prompt: Prompt
        prompt_ids = None
        if settings.completion is not None:
            prompt = settings.completion.render(markers.sanitise_all(query))
        else:
            prompt, prompt_ids, sampling = await self._messages(
                query, texts, sampling, layer, slot, model, markers
            )
        room = room_behind(self.fitters, model, prompt_ids)
        most_tokens = max(0 if final and settings.capped else room, sampling.max_tokens)

        async def draw(
            at: int, count: int, attempt: int, budget: Sampling = sampling
        ) -> list[Completion]:
            seed = self._seed(layer, at, attempt)
            request = Request(prompt, count, budget, seed, model, prompt_ids)
            place = Place(self.query, self.turn, layer, at, attempt)
            cut = budget.stop != sampling.stop  # here, and not while it is written
            told = None if watch is None or cut else watch.asked(layer, at, answers=answers)
            reply = await self.asker.ask(request, place, told)
            self._count(layer, model, reply.usage)
            drawn = [
                replace(c, text=markers.restore(c.text), thought=markers.restore(c.thought))
                for c in reply.completions
            ]
            if settings.completion is not None:
                drawn = list(map(settings.completion.read, drawn))
            included = bool(sampling.extra.get("include_stop_str_in_output"))
            return [one.before(sampling.stop, included=included) for one in drawn]

        async def usable(at: int, completion: Completion) -> Completion | None:
            most, cut_off, budget = policy.resamples, None, sampling
            for attempt in range(most + 1):
                problem, fate = verdict(completion, policy, most - attempt, budget.stop)
                if problem is not None:
                    self.note(layer, at, problem)
                if fate == "keep":
                    return kept(at, completion)
                if fate != "resample":
                    break
                if problem == "truncated":
                    cut_off = completion  # kept, should no better one come
                budget = budget_after(str(problem), budget, most_tokens)
                self.note(layer, at, "resampled")
                try:
                    [completion] = await draw(at, 1, attempt + 1, budget)
                except EngineError as error:
                    if error.kind != "refused" or budget is sampling:
                        raise
                    break  # so many tokens are too many
            if cut_off is not None:
                return kept(at, cut_off)
            if fate == "reject":
                raise NoAnswer(f"layer {layer}, draft {at}: {problem}")
            self.note(layer, at, "dropped")
            lost.append(completion.instead or WORDS[str(problem)])
            return None

        def kept(at: int, completion: Completion) -> Completion:
            if not is_known(completion.finish_reason):
                word = completion.finish_reason
                self.note(layer, at, f"ended by {word!r}, an unknown word: taken for whole")
            if watch is not None:
                watch.used(layer, at, completion, answers=answers)
            return completion

        lost = self._lost.setdefault(layer, [])
        # Greedy drafts are all alike. Servers refuse to write n of them, or take chance for it.
        alike = n > 1 and sampling.temperature == 0
        if alike:
            self.note(layer, slot, f"{n} greedy drafts are alike: asked for once")
        first = await draw(slot, 1 if alike else n, 0)
        async with asyncio.TaskGroup() as group:
            checks = [group.create_task(usable(slot + i, c)) for i, c in enumerate(first)]
        results = [check.result() for check in checks] * (n if alike else 1)
        found = [completion for completion in results if completion is not None]
        said = {completion.text for completion in found}
        if len(found) > 1 and not alike and len(said) == 1 and len(found[0].text) >= LONG:
            self.note(layer, slot, "all the same")
        self._record(layer, [(slot + i, r) for i, r in enumerate(results) if r is not None])
        if answers:
            if len(found) < n:
                raise NoAnswer(f"layer {layer}: the final answer is {lost[-1]}")
            self.trace.answers[self.turn] = found
            return found[:1]
        if whole:
            self.require(found, n, layer=layer)
        return found

    def _start(self, slot: int, n: int, *, whole: bool) -> list[Completion]:
        """Return drafts of the first layer that were given."""
        drafts = list(self.given[slot : slot + n])
        self._record(0, list(enumerate(drafts, start=slot)))
        self._lost[0] = ["the row brings no more"]
        if whole:
            self.require(drafts, n, layer=0)
        return drafts

    def _record(self, layer: int, drafts: list[tuple[int, Completion]]) -> None:
        self.trace.drafts.setdefault((self.turn, layer), []).extend(drafts)

    async def _summary(self, draft: str, *, layer: int, slot: int, model: str | None) -> str:
        """Ask for the summary of a draft; several who read one draft pay for it once."""
        markers = self.markers.get(model or "") or known_markers()
        seed = self._seed("summary", draft)
        asked = summary_prompt(markers.sanitise(draft))
        request = Request(asked, 1, self.settings.proposal, seed, model)
        reply = await self.asker.ask(request, Place(self.query, self.turn, layer, slot, SUMMARY))
        if draft not in self._summarised:
            self._summarised.add(draft)
            self._count(layer, model, reply.usage)
        [summary] = reply.completions
        if not summary.text.strip():
            raise NoAnswer(f"layer {layer}: the summary of a draft is empty")
        return summary.text

    def require(self, drafts: Sequence[Completion], n: int, *, layer: int) -> None:
        """Refuse to go on with too few drafts (see `strategy.Sample`).

        Raises:
            NoAnswer: If there are fewer than the policy wants.
        """
        wanted = min(n, self.settings.policy.min_drafts)
        if len(drafts) < wanted:
            why = ", ".join(dict.fromkeys(self._lost.get(layer, ()))) or "none was drawn"
            lost = f"{n - len(drafts)} of {n} drafts are unusable ({why})"
            raise NoAnswer(f"layer {layer}: {lost}, {wanted} wanted")

    def random(self, layer: int, slot: int) -> random.Random:
        """Return the source of chance of a place."""
        return random.Random(self._seed(layer, slot, "chance"))

    def _seed(self, *place: str | int) -> int:
        return identity_seed(self.settings.seed, self.identity or self.query, self.turn, *place)

    def note(self, layer: int, slot: int, event: str) -> None:
        """Record the use of a policy at a place."""
        self.trace.events.append({"turn": self.turn, "layer": layer, "slot": slot, "event": event})

    def _count(self, layer: int, model: str | None, usage: Usage) -> None:
        trace, key = self.trace, (self.turn, layer)
        trace.usage[key] = trace.usage.get(key, Usage()) + usage
        trace.by_model[model or ""] = trace.by_model.get(model or "", Usage()) + usage

    async def _messages(
        self,
        query: Sequence[Message],
        drafts: Sequence[str],
        sampling: Sampling,
        layer: int,
        slot: int,
        model: str | None,
        markers: Markers,
    ) -> tuple[Sequence[Message], Sequence[int] | None, Sampling]:
        """Return the conversation to send, its tokens, and a sampling that leaves room for both.

        The query's own is left as it is.
        """
        settings = self.settings
        messages = list(query)
        if not drafts and settings.proposer_system is not None and query[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": settings.proposer_system})
        fitter = fitter_of(self.fitters, model, sampling)
        if fitter is None:
            safe = [markers.sanitise(text) for text in drafts]
            try:
                turns = markers.sanitise_all(messages)
                system = (model or "") not in self.no_system
                sent = with_aggregator(turns, safe, settings.template, system=system)
            except RecordError as error:  # the template fails for these drafts
                raise NoAnswer(f"layer {layer}: {error}") from error
            return sent, None, sampling
        row = (messages, drafts, None)
        fitted, roomy = await asyncio.to_thread(fitted_for, fitter, row, sampling)
        if roomy is not sampling:
            self.note(layer, slot, f"max_tokens lowered to {roomy.max_tokens}")
        if isinstance(fitted, DoesNotFit):
            raise TooLong(f"layer {layer}: {fitted}")
        if fitted.cut:
            self.note(layer, slot, f"{fitted.cut} drafts shortened")
            kept = [len(markers.restore(text)) for text in fitted.proposals]
            place = {"turn": self.turn, "layer": layer, "slot": slot}
            self.trace.shortened.append(place | {"kept": kept})
        return fitted.messages, fitted.prompt_ids, roomy

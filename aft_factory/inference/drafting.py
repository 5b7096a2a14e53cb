"""Drafting: `sample` of the strategies, bound to one turn of one query.

Builds the prompt, shortens drafts to the model's context, derives the seed from the place, asks,
and applies the policies for drafts that are empty, cut off or filtered. Records all of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Place
from aft_factory.engines.sampling import Completion, Prompt, Request, Sampling, Usage, identity_seed
from aft_factory.errors import NoAnswer, RecordError, TooLong
from aft_factory.inference.policy import WORDS, Policy, verdict
from aft_factory.inference.watching import Watch
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.rendering import AggregatorTemplate, with_aggregator
from aft_factory.prompts.shortening import DoesNotFit
from aft_factory.records.messages import Message

LEAST_ANSWER = 256  # tokens: with room for fewer, a query is not asked


@dataclass(frozen=True, slots=True)
class CompletionPrompts:
    """How a base model is asked, which knows no chat: by a text to complete.

    Attributes:
        name: Tells it from others, in journals.
        render: From a conversation to the text.
        read: From what the model wrote to the draft in it.
    """

    name: str
    render: Callable[[Sequence[Message]], str]
    read: Callable[[Completion], Completion]


@dataclass(frozen=True, slots=True)
class DraftingOptions:
    """What all queries of a run have in common.

    Attributes:
        template: The aggregator prompt.
        proposal: Sampling of proposals and middle layers.
        final: Sampling of the final layer.
        proposer_system: System message of plain queries that have none; None sends none.
        seed: Of the run.
        policy: For unusable drafts.
        final_policy: The same for the answer, where one text of the final layer is it; None if it
            is as that of drafts.
        completion: How to ask a base model; None asks by chat.
    """

    template: AggregatorTemplate
    proposal: Sampling
    final: Sampling
    proposer_system: str | None = None
    seed: int = 42
    policy: Policy = Policy()  # noqa: RUF009 - frozen
    final_policy: Policy | None = None
    completion: CompletionPrompts | None = None


@dataclass(slots=True)
class Trace:
    """What happened to one query: how each layer's drafts came about.

    Attributes:
        usage: By (turn, layer), of all models.
        by_model: The same of all layers, by the name of the model; "" is the run's own.
        drafts: By (turn, layer): (slot, completion) of every draft that was used.
        events: Every use of a policy: {turn, layer, slot, event}.
        answers: By turn, all answers that were drawn from the same drafts.
    """

    usage: dict[tuple[int, int], Usage] = field(default_factory=dict)
    by_model: dict[str, Usage] = field(default_factory=dict)
    drafts: dict[tuple[int, int], list[tuple[int, Completion]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, list[Completion]] = field(default_factory=dict)


class Drafting:
    """Draws drafts for one turn of one query; implements `strategies.Sample`.

    Args:
        query: Id of the query.
        turn: Which of its turns, from 0.
        settings: Of the run.
        asker: Asks the model.
        fitters: Shorten drafts to the model's context, by (model, max_tokens); none where the
            context or the tokenizer is unknown.
        trace: Where to record.
        markers: What is broken in all texts that a model reads, by model; of others, the markers of
            all known families.
        identity: What seeds follow from, where it is more than the id.
        answers: How many answers to draw where one text of the final layer is the answer; the first
            of them is the strategy's.
        watch: Hears of drafts and answers while they are made.
    """

    def __init__(
        self,
        query: str,
        turn: int,
        settings: DraftingOptions,
        asker: Asker,
        fitters: Mapping[tuple[str, int], Fitter],
        trace: Trace,
        markers: Mapping[str, Markers] | None = None,
        identity: str | None = None,
        answers: int = 1,
        watch: Watch | None = None,
    ) -> None:
        self._query = query
        self._identity = query if identity is None else identity
        self._turn = turn
        self._settings = settings
        self._asker = asker
        self._fitters = fitters
        self._markers = markers or {}
        self._trace = trace
        self._answers = answers
        self._watch = watch
        self._lost: dict[int, list[str]] = {}  # by layer: why drafts were dropped

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
        """Draw drafts (see `strategies.Sample`).

        Raises:
            NoAnswer: If too few are usable, or the query does not fit the model.
            EngineError: If the model gives no reply.
        """
        settings, watch = self._settings, self._watch
        sampling = settings.final if final else settings.proposal
        answers = final and whole and n == 1
        policy = (settings.final_policy if answers else None) or settings.policy
        n = self._answers if answers else n
        texts = [draft.text for draft in drafts]
        markers = self._markers.get(model or "") or known_markers()
        prompt: Prompt
        prompt_ids = None
        if settings.completion is not None:
            prompt = settings.completion.render(markers.sanitise_all(query))
        else:
            prompt, prompt_ids, sampling = await self._messages(
                query, texts, sampling, layer, slot, model, markers
            )

        async def draw(at: int, count: int, attempt: int) -> list[Completion]:
            seed = identity_seed(settings.seed, self._identity, self._turn, layer, at, attempt)
            request = Request(prompt, count, sampling, seed, model, prompt_ids)
            place = Place(self._query, self._turn, layer, at, attempt)
            told = None if watch is None else watch.asked(layer, at, answers=answers)
            reply = await self._asker.ask(request, place, told)
            self._count(layer, model, reply.usage)
            read = settings.completion.read if settings.completion else _unchanged
            restored = (replace(c, text=markers.restore(c.text)) for c in reply.completions)
            return [read(completion) for completion in restored]

        async def usable(at: int, completion: Completion) -> Completion | None:
            most, cut_off = policy.resamples, None
            for attempt in range(most + 1):
                problem, fate = verdict(completion, policy, most - attempt)
                if problem is not None:
                    self.note(layer, at, problem)
                if fate == "keep":
                    return kept(at, completion)
                if fate != "resample":
                    break
                if problem == "truncated":
                    cut_off = completion  # kept, should no better one come
                self.note(layer, at, "resampled")
                [completion] = await draw(at, 1, attempt + 1)
            if cut_off is not None:
                return kept(at, cut_off)
            if fate == "reject":
                raise NoAnswer(f"layer {layer}, draft {at}: {problem}")
            self.note(layer, at, "dropped")
            lost.append(completion.instead or WORDS[str(problem)])
            return None

        def kept(at: int, completion: Completion) -> Completion:
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
        recorded = self._trace.drafts.setdefault((self._turn, layer), [])
        recorded += [(slot + i, r) for i, r in enumerate(results) if r is not None]
        if answers:
            if len(found) < n:
                raise NoAnswer(f"layer {layer}: the final answer is {lost[-1]}")
            self._trace.answers[self._turn] = found
            return found[:1]
        if whole:
            self.require(found, n, layer=layer)
        return found

    def require(self, drafts: Sequence[Completion], n: int, *, layer: int) -> None:
        """Refuse to go on with too few drafts (see `strategies.Sample`).

        Raises:
            NoAnswer: If there are fewer than the policy wants.
        """
        wanted = min(n, self._settings.policy.min_drafts)
        if len(drafts) < wanted:
            why = ", ".join(dict.fromkeys(self._lost.get(layer, ()))) or "none was drawn"
            lost = f"{n - len(drafts)} of {n} drafts are unusable ({why})"
            raise NoAnswer(f"layer {layer}: {lost}, {wanted} wanted")

    def random(self, layer: int, slot: int) -> random.Random:
        """Return the source of chance of a place."""
        place = (self._identity, self._turn, layer, slot, "chance")
        return random.Random(identity_seed(self._settings.seed, *place))

    def note(self, layer: int, slot: int, event: str) -> None:
        """Record the use of a policy at a place."""
        self._trace.events.append(
            {"turn": self._turn, "layer": layer, "slot": slot, "event": event}
        )

    def _count(self, layer: int, model: str | None, usage: Usage) -> None:
        trace, key = self._trace, (self._turn, layer)
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
    ) -> tuple[list[Message], Sequence[int] | None, Sampling]:
        """Return the conversation to send, its tokens, and a sampling that leaves room for both.

        The query's own is left as it is.
        """
        settings = self._settings
        messages = list(query)
        if not drafts and settings.proposer_system is not None and query[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": settings.proposer_system})
        fitter = self._fitters.get((model or "", sampling.max_tokens))
        safe, ids = [markers.sanitise(text) for text in drafts], None
        if fitter is not None:
            [fitted] = await asyncio.to_thread(fitter.fit_all, [(messages, safe, None)])
            if isinstance(fitted, DoesNotFit) and fitter.limit is not None:
                context = fitter.limit + sampling.max_tokens
                least = min(sampling.max_tokens, LEAST_ANSWER)
                roomy = replace(fitter, limit=context - least)
                [fitted] = await asyncio.to_thread(roomy.fit_all, [(messages, safe, None)])
                if not isinstance(fitted, DoesNotFit):
                    sampling = replace(sampling, max_tokens=context - fitted.tokens)
                    self.note(layer, slot, f"max_tokens lowered to {sampling.max_tokens}")
            if isinstance(fitted, DoesNotFit):
                raise TooLong(f"layer {layer}: {fitted}")
            if fitted.cut:
                self.note(layer, slot, f"{fitted.cut} drafts shortened")
            safe, ids = fitted.proposals, fitted.prompt_ids
        try:
            sent = with_aggregator(markers.sanitise_all(messages), safe, settings.template)
        except RecordError as error:  # the template fails for these drafts
            raise NoAnswer(f"layer {layer}: {error}") from error
        return sent, ids, sampling


def _unchanged(completion: Completion) -> Completion:
    return completion

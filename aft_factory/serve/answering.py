"""From what a request asks to its outcome, by the runner that `aft run` has. Knows no HTTP."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Journal
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.engine import EngineError, Heard
from aft_factory.errors import UsageError
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.watching import Watch
from aft_factory.prompts.probing import ChatTemplate
from aft_factory.records.record import content_id
from aft_factory.serve.asked import Asked
from aft_factory.serve.refusals import UNSUPPORTED, Refusal, later, of_engine, unsupported, wrong
from aft_factory.serve.settings import ServeSettings
from aft_factory.serve.variants import Variant, Variants
from aft_factory.stage.engine_checks import check_room
from aft_factory.stage.engines import OpenEngines
from aft_factory.stage.kept import keepable

# Variables of chat templates that are the house's, not a client's to set.
NO_CLIENTS = {"messages", "add_generation_prompt", "bos_token", "eos_token", "proposals", "tools"}
# Tools, logprobs and formats of answers are the work of vLLM's server, and not of its engine.
BY_SERVER = "or serve the model by `vllm serve`, with this server in front of it (--base-url)"


@dataclass(frozen=True, slots=True)
class Task:
    """A request on its way.

    Attributes:
        asked: What it asks.
        variant: By which model on offer.
        runner: Answers it.
        query: The same for the runner.
        replayed: Whether all of it was answered before.
        relayed: Whether the engine gets it as it came.
    """

    asked: Asked
    variant: Variant
    runner: Runner
    query: Query
    replayed: bool
    relayed: bool

    @property
    def seed(self) -> int:
        """The run seed."""
        return self.runner.settings.seed


class Answering:
    """Answers requests.

    Args:
        settings: Of the server.
        opened: What it asks.
        asker: Asks it.
        journal: Where to keep what was asked and answered.

    Attributes:
        variants: The models on offer.
        context: Of the model, in tokens.
        markers: What is mended in its texts.
        failure: Why no request can be answered any more, if that is so.
    """

    def __init__(
        self, settings: ServeSettings, opened: OpenEngines, asker: Asker, journal: Journal | None
    ) -> None:
        self.variants = Variants(settings)
        self.markers = opened.markers[""]
        self.context = opened.engines[""].context
        self.failure: EngineError | None = None
        self._settings = settings
        self._opened = opened
        self._markers = opened.markers
        self._asker = asker
        template = opened.engines[""].chat_template
        self._variables: set[str] | None = None  # a server that has the template checks them
        if template is not None or not settings.base_url:
            self._variables = ChatTemplate(template or "").variables - NO_CLIENTS
        self._journal = journal
        for name, variant in self.variants.listed.items():
            try:
                self._runner(variant, Asked([]), variant.drafting.seed)
            except Refusal as refusal:
                raise UsageError(f"variants: {name}: {refusal}") from None
        if journal is not None:
            first = next(iter(self.variants.listed.values()))
            fingerprint = self._runner(first, Asked([]), first.drafting.seed).fingerprint
            journal.begin_run(f"serve-{fingerprint}", settings=keepable(settings))

    def prepare(self, asked: Asked) -> Task:
        """Find out how a request is to be answered.

        Raises:
            Refusal: If it cannot be.
        """
        variant = self.variants.chosen(asked)
        plain = variant.options.get("layers") == 0 and variant.strategy.single
        relayed = plain and self._asker.relays and (asked.offers_tools or asked.beyond is not None)
        if (beyond := asked.beyond) is not None and not relayed:
            if plain and beyond.code == UNSUPPORTED:  # nobody is there to relay it to
                raise Refusal(400, f"{beyond}, {BY_SERVER}", beyond.code, beyond.param)
            raise beyond
        self._check_lengths(asked, variant)
        if asked.n > 1 and not variant.strategy.single:
            raise unsupported("n", f"{variant.strategy.name} has one answer")
        if asked.n > self._settings.max_width:
            raise wrong("n", f"this server does up to {self._settings.max_width}, got {asked.n}")
        self._check_template(asked)
        query = Query(content_id(asked.messages, []), [asked.messages], {})
        final = dict(asked.final)
        unused = ["tools not used, as drafts call none"] * asked.offers_tools
        if not variant.strategy.has_final:
            told = f"not used, as {variant.strategy.name} chooses among drafts"
            names = [name for name in ("temperature", "top_p", "top_k") if name in final]
            unused += [f"{name} {told}" for name in names]
            final = {name: value for name, value in final.items() if name not in names}
        query.events.extend({"turn": 0, "layer": 0, "slot": 0, "event": text} for text in unused)
        seed = asked.seed
        if seed is None:
            seed = random.getrandbits(62) if self._settings.fresh else variant.drafting.seed
        runner = self._runner(variant, replace(asked, final=final), seed)
        journal = None if relayed else self._journal
        replayed = journal is not None and journal.has_outcome(_key(query, runner))
        return Task(asked, variant, runner, query, replayed, relayed)

    async def answer(self, task: Task, watch: Watch | None = None) -> Outcome:
        """Answer a request; one without an answer has an outcome with a problem.

        Raises:
            Refusal: If the model answers nobody, or the server stops.
        """
        try:
            outcome = await task.runner.answer(task.query, watch)
        except EngineError as error:
            if not self._settings.base_url:
                self.failure = error
            raise of_engine(error) from error
        except Stopped:
            raise later("the server stops", "stopping") from None
        if self._journal is not None and outcome.problem is None and not task.replayed:
            content = asdict(replace(outcome, model=self._opened.name))
            key = _key(task.query, task.runner)
            self._journal.keep_query(task.query.id, task.query.turns)
            self._journal.keep_outcome(key, content, query=task.query.id, done=True)
        return outcome

    async def relay(self, task: Task, heard: Heard | None = None) -> dict[str, Any]:
        """Hand a request to the engine as it came, and return the body of its answer.

        What it leaves out of decoding is the variant's, but for the length.

        Raises:
            Refusal: If there is no answer.
        """
        body = {name: value for name, value in task.asked.body.items() if name != "aft"}
        if not task.asked.stream:
            body.pop("stream", None)
        if (most := self._settings.max_answer) is not None and "max_tokens" not in task.asked.final:
            body["max_tokens"] = most
        try:
            final, n = task.runner.settings.final, task.asked.n
            return await self._asker.relay(body, final, task.seed, n, heard)
        except EngineError as error:
            raise of_engine(error) from error
        except Stopped:
            raise later("the server stops", "stopping") from None

    def _check_template(self, asked: Asked) -> None:
        """Refuse what is no client's variable of the chat template, where that is known.

        Anything else would reach the tokenizer, or stand for what is the house's to say.

        Raises:
            Refusal: With the names that may be set.
        """
        known = self._variables
        if known is not None and (unknown := asked.template.keys() - known):
            told = f"{min(unknown)!r} is no variable of the chat template for clients"
            may = ", ".join(sorted(known)) or "none"
            raise unsupported("chat_template_kwargs", f"{told}; these are: {may}")

    def _check_lengths(self, asked: Asked, variant: Variant) -> None:
        """Refuse lengths beyond the server's limit, or the model's.

        Raises:
            Refusal: With the limit.
        """
        most, code = self._settings.max_answer, "invalid_value"
        if most is None and self.context is not None:
            most, code = self.context - 1, "context_length_exceeded"
        lengths = {"max_tokens": asked.final.get("max_tokens", 0)}
        if "max_tokens" in asked.changes:
            lengths["aft.proposal.max_tokens"] = variant.drafting.proposal.max_tokens
        for name, length in lengths.items():
            if most is not None and length > most:
                raise wrong(name, f"this server writes up to {most} tokens, got {length}", code)

    def _runner(self, variant: Variant, asked: Asked, seed: int) -> Runner:
        opened, drafting = self._opened, variant.drafting
        scores = "score" in variant.strategy.needs
        proposal, middle, final = (
            replace(one, extra=_with_template(one.extra, asked.template))
            for one in (drafting.proposal, drafting.middle or drafting.proposal, drafting.final)
        )
        final = replace(final, **{"extra": {**final.extra, **asked.extra}, **asked.final})
        if "max_tokens" in asked.final:  # no thought makes it longer than the client wants to pay
            kept = replace(drafting.final_policy or drafting.policy, unfinished="keep")
            drafting = replace(drafting, final_policy=kept, capped=True)
        try:
            check_room(opened.engines, (proposal, middle, final))
        except UsageError as error:
            raise Refusal(400, str(error), "context_length_exceeded", "max_tokens") from None
        fitters = {n: one.but(template=drafting.template) for n, one in opened.fitters.items()}
        return Runner(
            strategy=variant.strategy,
            options=variant.options,
            settings=replace(drafting, proposal=proposal, middle=middle, final=final, seed=seed),
            asker=self._asker,
            model=opened.engines[""].model,
            fitters=fitters,
            markers=self._markers,
            no_system=opened.no_system,
            score=opened.score if scores else None,
            count=opened.count if scores else None,
            scorer=opened.scorer,
            keep_drafts=True,
            answers=asked.n,
        )


def _with_template(extra: Mapping[str, Any], variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings of the engine with further variables of the chat template."""
    name = "chat_template_kwargs"
    return {**extra, name: {**(extra.get(name) or {}), **variables}} if variables else extra


def _key(query: Query, runner: Runner) -> bytes:
    """Return the journal's key of a request: fitters follow from the rest, and are slow to name."""
    plain: Any = replace(runner, fitters={})
    return Runner.outcome_key(query, plain.fingerprint)

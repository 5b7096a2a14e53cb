"""What answers: engines and fitters, opened as the settings say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aft_factory.engines.engine import Engine, shown_url
from aft_factory.engines.sampling import Request
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN, ScriptedEngine
from aft_factory.errors import UsageError
from aft_factory.network import read_key
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.rendering import AggregatorTemplate, load_template
from aft_factory.prompts.tokenizer import Pretrained, tokenizer_markers
from aft_factory.stage.engine_checks import (
    check_room,
    check_variables,
    tell_of_script,
    tell_of_thoughts,
    without_system,
)
from aft_factory.stage.job_settings import DEFAULT_IN_FLIGHT, AskSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenEngines:
    """What a run asks.

    Attributes:
        engines: By name, the run's own under "".
        fitters: Shorten drafts to a model's context, by model.
        score: Asks the reward model, if there is one, as the strategy wants it.
        count: Tells what the reward model reads, in tokens.
        scorer: What scores.
        in_flight: Most samples in flight.
        shape: Where the size is read that FLOPs are counted with.
        reward_shape: The same of the reward model.
        stop: Called when the run is asked to stop: gives up what waits to be scored.
        name: The run's own engine as people know it: as it is served, or as it was given.
        no_system: The engines, by name, whose models take no system message.
        tried: Requests that servers were sent to find that out.
    """

    engines: dict[str, Engine]
    fitters: dict[str, Fitter]
    in_flight: int
    shape: Pretrained | None
    score: Any = None
    count: Any = None
    scorer: str = ""
    stop: Callable[[], object] = field(default=lambda: None)
    name: str | None = None
    no_system: frozenset[str] = frozenset()
    tried: int = 0
    reward_shape: Pretrained | None = None

    @property
    def markers(self) -> dict[str, Markers]:
        """What is broken in all texts that a model reads, by model: its own control tokens."""
        return {
            name: known_markers()
            if engine.tokenizer is None
            else tokenizer_markers(engine.tokenizer, engine.chat_template)
            for name, engine in self.engines.items()
        }


@dataclass(frozen=True, slots=True)
class Proposer:
    """A further model, that drafts beside the run's own (strategy `moa`).

    Attributes:
        urls: Its servers; none for the run's.
        api_key_env: The environment variable with the key for them; None takes the run's.
        tokenizer: Fits drafts to its context.
    """

    urls: Sequence[str] = ()
    api_key_env: str | None = None
    tokenizer: Pretrained | None = None


@contextlib.asynccontextmanager
async def open_engines(
    settings: AskSettings,
    template: str,
    others: Mapping[str, Proposer] | None = None,
    *,
    chat: bool = True,
    aggregates: bool = True,
) -> AsyncIterator[OpenEngines]:
    """Open what a command asks, and close it in the end.

    Args:
        settings: Name it.
        template: The aggregator prompt that drafts are to fit in.
        others: Further models at servers, by name.
        chat: Whether conversations are asked, and not texts to complete.
        aggregates: Whether a model reads drafts.

    Raises:
        UsageError: If something cannot be reached or loaded.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.scripted:
            tell_of_script(
                "answers", ", ".join(map(shown_url, settings.base_url)) or settings.model
            )
        engines, in_flight = await _opened(settings, others or {}, stack)
        for asks in engines.values() if settings.split_samples else ():
            asks.most_samples = 1
        check_room(engines, settings.samplings())
        check_variables(engines, settings.samplings(), served=bool(settings.base_url))
        no_system = await without_system(engines) if chat else frozenset()
        if aggregates:
            tell_of_thoughts(engines, settings.samplings())
        given = [str(part) for part in (settings.model, settings.adapter) if part is not None]
        served = settings.base_url or settings.scripted
        yield OpenEngines(
            engines,
            fitters_of(engines, load_template(template), no_system),
            in_flight,
            settings.shape(),
            # In process, `engine.model` tells more than a name: which files, which chat template.
            name=engines[""].model if served else "+".join(given),
            no_system=no_system,
            tried=sum(engine.tried for engine in engines.values()),
        )


async def _opened(
    settings: AskSettings, others: Mapping[str, Proposer], stack: contextlib.AsyncExitStack
) -> tuple[dict[str, Engine], int]:
    """Open what the settings name; return it, and the most samples in flight."""

    async def add(engine: Engine) -> Engine:
        stack.push_async_callback(engine.close)
        return engine

    in_flight = settings.in_flight
    if settings.ray is not None:
        from aft_factory.stage.replicas import open_replicas

        if others:
            raise UsageError("--ray: replicas are of one model; name servers by --base-url")
        replicas = await stack.enter_async_context(open_replicas(settings))
        usual = replicas.in_flight or DEFAULT_IN_FLIGHT * replicas.count
        return {"": replicas}, in_flight or usual
    if settings.scripted:
        names = {name: f"scripted-{name}".rstrip("-") for name in ("", *others)}
        scripted: dict[str, Engine] = {
            name: await add(ScriptedEngine(model=model, record=False))
            for name, model in names.items()
        }
        return scripted, in_flight or DEFAULT_IN_FLIGHT
    if settings.base_url:
        own = Proposer(tokenizer=settings.shape())
        engines = {"": await add(await _server(settings, own, settings.model, settings.context))}
        for name, other in others.items():
            engines[name] = await add(await _server(settings, other, name))
        urls = {*settings.base_url, *(url for other in others.values() for url in other.urls)}
        return engines, in_flight or DEFAULT_IN_FLIGHT * len(urls)

    from aft_factory.engines.vllm_engine import VllmEngine
    from aft_factory.engines.vllm_sampling import check_samplings

    assert settings.model is not None
    check_samplings(settings.samplings())
    engine = await VllmEngine.start(
        settings.model,
        adapter=None if settings.adapter is None else str(settings.adapter),
        chat_template=settings.chat_template,
        engine_args=settings.engine_args,
    )
    # Twice what the engine runs at a time, so that its own queue never runs dry.
    return {"": await add(engine)}, in_flight or 2 * engine.max_sequences


def fitters_of(
    engines: Mapping[str, Engine], template: AggregatorTemplate, no_system: Container[str] = ()
) -> dict[str, Fitter]:
    """Return what shortens drafts to the context of each engine that tells all it takes."""
    return {
        name: Fitter(tokenizer, chat, engine.context, template, system=name not in no_system)
        for name, engine in engines.items()
        if (tokenizer := engine.tokenizer) is not None
        and (chat := engine.chat_template) is not None
        and engine.context is not None
    }


def dry_run_engines(
    settings: AskSettings, others: Iterable[str] = (), score: Any = None, *, ending: str = ""
) -> OpenEngines:
    """Return an engine whose drafts have the length to reckon with, for a dry run.

    Args:
        settings: Tell the length.
        others: Further models, by name.
        score: Stands in for a reward model.
        ending: Of every text, where the stage looks for one.
    """
    tokens = min(settings.draft_tokens, settings.max_tokens)
    length = tokens * CHARACTERS_PER_TOKEN

    def drafts(request: Request) -> list[str]:
        """Return drafts of which no two are the same: that would be told."""
        numbers = range(request.seed, request.seed + request.n)
        return [f"{number:0{length}}"[-length:] + ending for number in numbers]

    engine = ScriptedEngine(drafts, model="dry-run", tokens=tokens, record=False)
    engine.most_samples = 1 if settings.split_samples else None
    engines: dict[str, Engine] = dict.fromkeys(("", *others), engine)
    return OpenEngines(engines, {}, DEFAULT_IN_FLIGHT, settings.shape(), score)


def dry_run_note(settings: AskSettings) -> str:
    """Say what a dry run reckons with."""
    tokens = min(settings.draft_tokens, settings.max_tokens)
    return f"with answers of {tokens} tokens (--draft-tokens) and four characters a token"


async def _server(
    settings: AskSettings, asked: Proposer, model: str | None, context: int | None = None
) -> Engine:
    from aft_factory.engines.openai_engine import OpenAIEngine
    from aft_factory.engines.vllm_loading import own_template
    from aft_factory.prompts.tokenizer import load_tokenizer

    tokenizer = chat = None
    if (source := asked.tokenizer) is not None:
        tokenizer = load_tokenizer(source)
        own = source.name == settings.tokenizer  # of which --chat-template speaks
        chat = own_template(settings.chat_template if own else "auto", tokenizer)
        if chat is None:
            _log.warning(
                "%s has no chat template: drafts are not fitted to the context", source.name
            )
    names = [asked.api_key_env] if asked.api_key_env else settings.api_key_env
    return await OpenAIEngine.connect(
        asked.urls or settings.base_url,
        model,
        api_keys=[read_key(name) for name in names],
        omit=settings.omit,
        context=context,
        timeout=settings.timeout,
        tokenizer=tokenizer,
        chat_template=chat,
        split_samples=settings.split_samples,
    )

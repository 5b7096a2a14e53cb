"""What answers in a run: engines, fitters and reward model, opened as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aft_factory.asking import Retries
from aft_factory.engines import Engine, EngineError
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN, ScriptedEngine
from aft_factory.errors import UsageError
from aft_factory.fitting import Fitter
from aft_factory.prompts import load_template
from aft_factory.run_settings import DEFAULT_IN_FLIGHT, RunSettings
from aft_factory.sampling import Completion
from aft_factory.strategies import Conversation, Score

if TYPE_CHECKING:
    from aft_factory.engines.reward import RewardModel


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run asks.

    Attributes:
        engines: By name, the run's own under "".
        fitters: Shorten drafts to a model's context, by (model, max_tokens).
        score: The reward model, if there is one.
        in_flight: Most samples in flight.
        shape_name: Folder or name whose shape FLOPs are counted with.
    """

    engines: dict[str, Engine]
    fitters: dict[tuple[str, int], Fitter]
    score: Score | None
    in_flight: int
    shape_name: str | None


@contextlib.asynccontextmanager
async def opened(settings: RunSettings) -> AsyncIterator[Opened]:
    """Open what a run asks, and close it in the end.

    Raises:
        UsageError: If something cannot be reached or loaded.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def add(engine: Engine) -> Engine:
            stack.push_async_callback(engine.close)
            return engine

        engines: dict[str, Engine] = {}
        in_flight, shape_name = settings.in_flight or DEFAULT_IN_FLIGHT, settings.tokenizer
        if settings.scripted:
            for name in ("", *settings.proposers):
                engines[name] = await add(ScriptedEngine(model=f"scripted-{name}".rstrip("-")))
        elif settings.base_url:
            engines[""] = await add(await _server(settings, settings.base_url, settings.model))
            for name in settings.proposers:
                url = settings.proposer_urls.get(name)
                urls = settings.base_url if url is None else [str(url)]
                engines[name] = await add(await _server(settings, urls, name))
        else:
            from aft_factory.engines.vllm_engine import VllmEngine

            assert settings.model is not None
            engine = await VllmEngine.start(
                settings.model,
                adapter=None if settings.adapter is None else str(settings.adapter),
                chat_template=settings.chat_template,
                engine_args=settings.engine_args,
            )
            engines[""] = await add(engine)
            # Twice what the engine runs at a time, so that its own queue never runs dry.
            in_flight = settings.in_flight or 2 * engine.max_sequences
            shape_name = settings.model
        score = None
        if settings.strategy == "best_of_n" and settings.reward_model is not None:
            reward = await _reward(settings, settings.reward_model)
            stack.push_async_callback(reward.close)
            score = _score(reward, Retries(settings.retries))
        elif settings.strategy == "best_of_n":
            score = _scripted_score
        fitters = {
            (name, tokens): fitter
            for name, engine in engines.items()
            for tokens in {settings.proposal().max_tokens, settings.final().max_tokens}
            if (fitter := _fitter(engine, tokens, settings.template)) is not None
        }
        yield Opened(engines, fitters, score, in_flight, shape_name)


def dry_engine(settings: RunSettings) -> ScriptedEngine:
    """Return an engine whose drafts have the length to reckon with."""
    tokens = min(settings.draft_tokens, settings.max_tokens)
    text = "0" * tokens * CHARACTERS_PER_TOKEN
    return ScriptedEngine(lambda request: [text] * request.n, model="dry-run", tokens=tokens)


async def _server(settings: RunSettings, urls: Sequence[str], model: str | None) -> Engine:
    from aft_factory.engines.openai_engine import OpenAIEngine
    from aft_factory.tokenizer import load_tokenizer, resolve_chat_template

    tokenizer = chat = None
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
        chat = resolve_chat_template(settings.chat_template, tokenizer)
    return await OpenAIEngine.connect(
        urls,
        model,
        timeout=settings.timeout,
        tokenizer=tokenizer,
        chat_template=chat,
        split_samples=settings.split_samples,
    )


def _fitter(engine: Engine, max_tokens: int, template: str) -> Fitter | None:
    if engine.context is None or engine.tokenizer is None or engine.chat_template is None:
        return None
    limit = engine.context - max_tokens
    if limit < 1:
        raise UsageError(
            f"max_tokens {max_tokens} leaves no room for a prompt: the context of {engine.model} "
            f"is {engine.context} tokens; lower --max-tokens and --final-max-tokens"
        )
    return Fitter(engine.tokenizer, engine.chat_template, limit, load_template(template))


async def _reward(settings: RunSettings, name: str) -> RewardModel:
    if settings.reward_url is not None:
        from aft_factory.engines.reward_server import ServerReward

        return await ServerReward.connect(
            settings.reward_url, name, timeout=settings.timeout, tokenizer=name
        )
    from aft_factory.engines.reward import TransformersReward

    return await asyncio.to_thread(TransformersReward.load, name)


def _score(reward: RewardModel, retries: Retries) -> Score:
    async def score(query: Conversation, drafts: Sequence[Completion]) -> list[float]:
        pairs = [(query, draft.text) for draft in drafts]
        for attempt in range(retries.most + 1):
            try:
                scores = await reward.score(pairs)
                for value in scores:
                    if isinstance(value, EngineError):
                        raise value
                return [value for value in scores if not isinstance(value, EngineError)]
            except EngineError as error:
                if error.kind != "retry" or attempt == retries.most:
                    raise
                await asyncio.sleep(retries.wait(attempt, error.retry_after))
        raise AssertionError("unreachable")

    return score


async def _scripted_score(query: Conversation, drafts: Sequence[Completion]) -> list[float]:
    return [float(len(draft.text)) for draft in drafts]

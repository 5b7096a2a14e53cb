"""A reward model on vLLM in this process: any sequence classifier, asked for raw logits.

    reward = await VllmReward.start("sfairXC/FsfairX-LLaMA3-RM-v0.1", engine_args={...})

Pairs go to vLLM as token ids, made here as `TransformersReward` makes them; vLLM batches them as it
sees fit. A conversation that several responses share is read once, by prefix caching.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.engines import EngineError
from aft_factory.engines.reward import (
    DEFAULT_REWARD_MODEL,
    Pair,
    PairEncoder,
    choose_label,
    finite,
)
from aft_factory.engines.vllm_loading import check_name, started
from aft_factory.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmReward:
    """A sequence classifier on vLLM. Made by `start`."""

    def __init__(self, model: str, llm: AsyncLLM, encoder: PairEncoder, label: int) -> None:
        self.model = model
        self._llm = llm
        self._encoder = encoder
        self._label = label
        self._numbers = itertools.count()

    @classmethod
    async def start(
        cls,
        name: str = DEFAULT_REWARD_MODEL,
        *,
        chat_template: str = "own",
        label: int | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> VllmReward:
        """Load a reward model from a folder or from the hub. Takes a minute or more.

        Args:
            name: Folder or name.
            chat_template: See `PairEncoder`.
            label: Whose logit is the score, for a classifier with several labels.
            engine_args: Of vLLM's `AsyncEngineArgs`, passed through.

        Raises:
            MissingPackage: If vLLM is not installed.
            UsageError: If there is no such model, or it is no reward model.
        """
        check_name(name)
        settings = {"runner": "pooling", **(engine_args or {})}
        tokenizer = await asyncio.to_thread(load_tokenizer, settings.get("tokenizer") or name)
        encoder = PairEncoder(tokenizer, chat_template, None)
        llm = await started(name, settings)
        try:
            config = llm.vllm_config.model_config
            encoder.limit = config.max_model_len
            chosen = choose_label(name, config.hf_config.num_labels, label)
        except BaseException:
            await asyncio.to_thread(llm.shutdown)
            raise
        return cls(name, llm, encoder, chosen)

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`."""
        encoded = await asyncio.to_thread(self._encoder.encode, list(pairs))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._score(ids)) for ids in encoded]
        scores = [task.result() for task in tasks]
        for score in scores:
            if isinstance(score, EngineError) and score.kind == "fatal":
                raise score
        return scores

    async def close(self) -> None:
        """End vLLM's processes."""
        await asyncio.to_thread(self._llm.shutdown)

    async def _score(self, ids: list[int] | EngineError) -> float | EngineError:
        from vllm import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if isinstance(ids, EngineError):
            return ids
        # Without an activation: a sigmoid would make all good responses 1.0.
        params = PoolingParams(task="classify", use_activation=False)
        prompt: Any = {"type": "token", "prompt_token_ids": ids}
        final = None
        try:
            async for output in self._llm.encode(prompt, params, f"rm-{next(self._numbers)}"):
                final = output
        except EngineDeadError as error:
            return EngineError(f"vLLM has died: {error}", "fatal")
        except EngineGenerateError as error:
            return EngineError(f"vLLM: {error.__cause__ or error}", "retry")
        except (ValueError, TypeError) as error:
            return EngineError(f"vLLM: {error}", "refused")
        if final is None:
            return EngineError("vLLM gave the pair up", "retry")
        return finite(float(final.outputs.data[self._label]))

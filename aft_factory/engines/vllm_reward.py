"""A reward model on vLLM in this process: any sequence classifier, asked for raw logits.

    reward = await VllmReward.start("sfairXC/FsfairX-LLaMA3-RM-v0.1", engine_args={...})

Pairs go to vLLM as token ids, made here as `TransformersReward` makes them; vLLM batches them as it
sees fit. A conversation that several responses share is read once, by prefix caching.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.identity import fingerprint
from aft_factory.engines.reward import (
    DEFAULT_REWARD_MODEL,
    PairByPair,
    PairEncoder,
    choose_label,
    refuse_headless,
)
from aft_factory.engines.vllm_loading import (
    check_name,
    engine_source,
    engine_tokenizer,
    failures,
    started,
)
from aft_factory.engines.vllm_served import DECIDING
from aft_factory.errors import MissingPackage, UsageError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(eq=False)
class VllmReward(PairByPair):
    """A sequence classifier on vLLM. Made by `start`."""

    model: str
    identity: str
    _llm: AsyncLLM
    _encoder: PairEncoder
    _label: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    async def start(
        cls,
        name: str = DEFAULT_REWARD_MODEL,
        *,
        max_length: int | None = None,
        chat_template: str = "own",
        label: int | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> VllmReward:
        """Load a reward model from a folder or from the hub. Takes a minute or more.

        Args:
            name: Folder or name.
            max_length: Most tokens of a pair, at most the model's context.
            chat_template: See `PairEncoder`.
            label: Whose logit is the score, for a classifier with several labels.
            engine_args: Of vLLM's `AsyncEngineArgs`, passed through.

        Raises:
            MissingPackage: If vLLM is not installed.
            UsageError: If there is no such model, or it is no reward model.
        """
        check_name(name)
        settings = {"runner": "pooling", **(engine_args or {})}
        if "hf_overrides" not in settings:  # by which vLLM makes classifiers of other models
            await asyncio.to_thread(_check_weights, name, settings)
        named = settings.get("tokenizer") or name
        loading = asyncio.to_thread(engine_tokenizer, named, settings, "--reward-engine-args")
        tokenizer = await loading
        encoder = PairEncoder(tokenizer, chat_template, None)
        llm = await started(name, settings)
        try:
            tasks = await llm.get_supported_tasks()
            if "classify" not in tasks:
                can = ", ".join(tasks)
                raise UsageError(
                    f"{name!r} is no reward model: expected a classifier, vLLM can only {can}"
                )
            config = llm.vllm_config.model_config
            encoder.limit = min(config.max_model_len, max_length or config.max_model_len)
            chosen = choose_label(name, config.hf_config.num_labels, label)
        except BaseException:
            await asyncio.to_thread(llm.shutdown)
            raise
        deciding = [f"{key}={settings[key]}" for key in DECIDING if key in settings]
        identity = "+".join([fingerprint(name), encoder.identity, str(chosen), "vllm", *deciding])
        return cls(name, identity, llm, encoder, chosen)

    async def reachable(self) -> bool:
        """Tell whether vLLM is there."""
        return not self._llm.errored

    async def close(self) -> None:
        """End vLLM's processes."""
        await asyncio.to_thread(self._llm.shutdown)

    async def _score(self, ids: list[int]) -> float:
        from vllm import PoolingParams

        # Without an activation: a sigmoid would make all good responses 1.0.
        params = PoolingParams(task="classify", use_activation=False)
        prompt: Any = {"type": "token", "prompt_token_ids": ids}
        final = None
        with failures():
            async for output in self._llm.encode(prompt, params, f"rm-{next(self._numbers)}"):
                final = output
        if final is None:
            raise EngineError("vLLM gave the pair up", "retry")
        return float(final.outputs.data[self._label])


def _check_weights(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a model without a head, of which vLLM would score by what is in memory.

    Raises:
        MissingPackage: If accelerate is not installed, which reads names without weights.
        UsageError: If it has none.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingPackage("a reward model on vLLM", "accelerate")
    try:
        from transformers import AutoModelForSequenceClassification

        _, info = engine_source(name, settings).loaded_by(
            AutoModelForSequenceClassification, device_map="meta", output_loading_info=True
        )
    except Exception:  # vLLM reads models that transformers does not, and says what it cannot
        return
    refuse_headless(name, info["missing_keys"])

"""What scores: a reward model, opened as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aft_factory.asking.availability import Retries
from aft_factory.engines.reward import DEFAULT_REWARD_MODEL
from aft_factory.inference.scoring import Longest, Scorer, Scores
from aft_factory.stage.declaring import setting
from aft_factory.stage.reading import at_least

if TYPE_CHECKING:
    from aft_factory.engines.reward import RewardModel
    from aft_factory.stage.engines import OpenEngines


REWARD = "reward model"  # heading of `--help`


@dataclass(frozen=True)
class RewardSettings:
    """Which reward model scores, and how; see the help texts.

    To be mixed into a command's settings: hence no slots, as Python joins no two classes with some.
    """

    reward_model: str | None = setting(
        None,
        "sequence classifier that scores, folder or hub name, or its name at --reward-url "
        f"(default of rank: {DEFAULT_REWARD_MODEL})",
        group=REWARD,
    )
    reward_url: str | None = setting(None, "vLLM server of the reward model", "URL", group=REWARD)
    reward_tokenizer: str | None = setting(
        None,
        "folder or name of the model at --reward-url (default: --reward-model)",
        group=REWARD,
    )
    reward_engine: Literal["transformers", "vllm"] = setting(
        "transformers", "what runs the reward model in this process", group=REWARD
    )
    reward_engine_args: dict[str, Any] = setting(
        {}, "passed to vLLM for the reward model, such as tensor_parallel_size=2", group=REWARD
    )
    reward_chat_template: str = setting(
        "own",
        "of the reward model: own, llama3, mistral, one of its names or a path",
        group=REWARD,
    )
    reward_label: int | None = setting(
        None, "whose logit is the score, from 0, of a classifier with several labels", group=REWARD
    )
    reward_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "of the reward model; auto is float32 on a CPU and bfloat16 on a GPU", group=REWARD
    )
    reward_max_length: int | None = setting(
        None,
        "most tokens of conversation and response (default: what the reward model reads)",
        group=REWARD,
    )
    reward_batch_tokens: int | None = setting(
        None,
        "most tokens that transformers reads at once (default: 16384, on a CPU 2048)",
        group=REWARD,
    )

    @property
    def reward_shape(self) -> str | None:
        """Folder or name of the reward model, where its size is to be read."""
        return self.reward_model if self.reward_url is None else self.reward_tokenizer

    @property
    def has_reward(self) -> bool:
        """Whether a reward model was named."""
        return bool(self.reward_model or self.reward_url)

    def reward_problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        limits = (("reward_label", 0), ("reward_max_length", 1), ("reward_batch_tokens", 1))
        problems = at_least(self, *limits)
        here = {
            "reward_engine": self.reward_engine != "transformers",
            "reward_dtype": self.reward_dtype != "auto",
            "reward_batch_tokens": self.reward_batch_tokens is not None,
        }
        if self.reward_url is not None:
            problems += [
                f"{name}: for a reward model in this process, not for --reward-url"
                for name, given in here.items()
                if given
            ]
            if not (self.reward_tokenizer or self.reward_model):
                problems.append(
                    "reward_tokenizer: name the folder or hub name of the model at --reward-url; "
                    "what the server says of it does not decide what is loaded here"
                )
        elif self.reward_tokenizer is not None:
            problems.append("reward_tokenizer: for servers, needs --reward-url")
        if self.reward_engine_args and self.reward_engine != "vllm":
            problems.append("reward_engine_args: needs --reward-engine vllm")
        if self.reward_batch_tokens is not None and self.reward_engine == "vllm":
            problems.append(
                "reward_batch_tokens: for transformers; "
                "for vLLM: --reward-engine-args max_num_batched_tokens=N"
            )
        return problems


@contextlib.asynccontextmanager
async def open_scorer(
    settings: RewardSettings, *, timeout: float, retries: int
) -> AsyncIterator[Scorer]:
    """Open a reward model, and close it in the end.

    Args:
        settings: Name it.
        timeout: Seconds until a server's answer is given up.
        retries: Attempts after a failed one.

    Raises:
        UsageError: If it cannot be reached or loaded.
    """
    scorer = Scorer(await _opened(settings, timeout), Retries(retries))
    try:
        yield scorer
    finally:
        await scorer.close()


@contextlib.asynccontextmanager
async def with_scores(
    engines: OpenEngines, settings: RewardSettings, timeout: float, retries: int
) -> AsyncIterator[OpenEngines]:
    """Add the reward model to what a run asks; where none was named, the longest is best."""
    async with contextlib.AsyncExitStack() as stack:
        scores: Scores = Longest()
        if settings.has_reward:
            opening = open_scorer(settings, timeout=timeout, retries=retries)
            scores = await stack.enter_async_context(opening)
        yield replace(
            engines,
            score=scores.score_each,
            count=scores.count,
            scorer=scores.identity,
            stop=scores.stop,
            reward_shape=settings.reward_shape,
        )


async def _opened(settings: RewardSettings, timeout: float) -> RewardModel:
    name = settings.reward_model or DEFAULT_REWARD_MODEL
    reads: dict[str, Any] = {
        "chat_template": settings.reward_chat_template,
        "label": settings.reward_label,
        "max_length": settings.reward_max_length,
    }
    if settings.reward_url is not None:
        from aft_factory.engines.reward_server import ServerReward

        return await ServerReward.connect(
            settings.reward_url,
            settings.reward_model,
            timeout=timeout,
            tokenizer=settings.reward_tokenizer or name,
            **reads,
        )
    if settings.reward_engine == "vllm":
        from aft_factory.engines.vllm_reward import VllmReward

        dtype = {} if settings.reward_dtype == "auto" else {"dtype": settings.reward_dtype}
        engine_args = dtype | settings.reward_engine_args
        return await VllmReward.start(name, engine_args=engine_args, **reads)
    from aft_factory.engines.transformers_reward import TransformersReward

    return await asyncio.to_thread(
        TransformersReward.load,
        name,
        dtype=settings.reward_dtype,
        batch_tokens=settings.reward_batch_tokens,
        **reads,
    )

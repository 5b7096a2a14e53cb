"""What scores: a reward model, opened as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aft_factory.asking.availability import Retries
from aft_factory.engines.reward import DEFAULT_REWARD_MODEL
from aft_factory.engines.vllm_loading import engine_source
from aft_factory.inference.scoring import Longest, Scorer, Scores
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.stage.declaring import setting
from aft_factory.stage.reading import at_least
from aft_factory.stage.tokenizing import folder_problems

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
        None, "folder or name of the model at --reward-url (default: --reward-model)", group=REWARD
    )
    reward_revision: str | None = setting(
        None,
        "of the reward model, or of --reward-tokenizer, on the hub: branch, tag or commit",
        "REVISION",
        group=REWARD,
    )
    reward_trust_remote_code: bool = setting(
        False, "run the Python code that the reward model brings", group=REWARD
    )
    reward_engine: Literal["transformers", "vllm"] = setting(
        "transformers", "what runs the reward model in this process", group=REWARD
    )
    reward_engine_args: dict[str, Any] = setting(
        {}, "passed to vLLM for the reward model, such as tensor_parallel_size=2", group=REWARD
    )
    reward_chat_template: str = setting(
        "own", "of the reward model: own, llama3, mistral, one of its names or a path", group=REWARD
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
    def reward_shape(self) -> Pretrained | None:
        """Where the size of the reward model is to be read."""
        name = self.reward_model if self.reward_url is None else self.reward_tokenizer
        return None if name is None else self.reward_source(name)

    def reward_source(self, name: str) -> Pretrained:
        """Return how the reward model of that name, or its tokenizer, is loaded."""
        if self.reward_engine == "vllm":
            return engine_source(name, self.reward_engine_args, "--reward-engine-args")
        options = {
            "revision": self.reward_revision,
            "trust_remote_code": self.reward_trust_remote_code,
        }
        return Pretrained(name, options, "--reward-trust-remote-code")

    @property
    def has_reward(self) -> bool:
        """Whether a reward model was named."""
        return bool(self.reward_model or self.reward_url)

    @property
    def loads_reward(self) -> bool:
        """Whether a reward model is loaded, and not asked for at a server."""
        return self.reward_model is not None and self.reward_url is None

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
        if self.reward_engine == "vllm":
            problems += [
                f"{name}: for vLLM: --reward-engine-args {instead}"
                for name, instead in (
                    ("reward_revision", "revision=REVISION"),
                    ("reward_trust_remote_code", "trust_remote_code=true"),
                    ("reward_batch_tokens", "max_num_batched_tokens=N"),
                )
                if getattr(self, name)
            ]
        read = self.reward_model if self.reward_url is None else self.reward_tokenizer
        problems += folder_problems(
            "reward_revision", self.reward_revision, read or self.reward_model
        )
        if self.reward_engine_args and self.reward_engine != "vllm":
            problems.append("reward_engine_args: needs --reward-engine vllm")
        return problems


@contextlib.asynccontextmanager
async def open_scorer(
    settings: RewardSettings,
    *,
    timeout: float,
    retries: int,
    ray: str | None = None,
    replicas: int | None = 1,
) -> AsyncIterator[Scorer]:
    """Open a reward model, and close it in the end.

    Args:
        settings: Name it.
        timeout: Seconds until a server's answer is given up.
        retries: Attempts after a failed one.
        ray: Address of the Ray cluster that has replicas of it; None loads it in this process.
        replicas: How many; None takes as many as there are GPUs for.

    Raises:
        UsageError: If it cannot be reached or loaded.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.reward_url is not None:
            reward = await _server(settings, settings.reward_url, timeout)
        elif ray is None:
            reward = await _opening(settings)()
        else:
            from aft_factory.engines.ray_cluster import joined, on_gpus, placed
            from aft_factory.engines.ray_engine import RayReward

            size = gpus_of_reward(settings)
            cluster = await stack.enter_async_context(joined(ray))
            if settings.reward_engine == "vllm":
                size = await on_gpus(size)
            elif not any(cluster.gpus):
                size = 0  # transformers does without
            place = placed(cluster, size, replicas)
            name = _name(settings)
            reward = await RayReward.start(_opening(settings), *place, what=name, folders=[name])
        scorer = Scorer(reward, Retries(retries))
        stack.push_async_callback(scorer.close)
        yield scorer


@contextlib.asynccontextmanager
async def with_scores(
    engines: OpenEngines,
    settings: RewardSettings,
    timeout: float,
    retries: int,
    ray: str | None = None,
) -> AsyncIterator[OpenEngines]:
    """Add the reward model to what a run asks; where none was named, the longest is best."""
    async with contextlib.AsyncExitStack() as stack:
        scores: Scores = Longest()
        if settings.has_reward:
            scorer = open_scorer(settings, timeout=timeout, retries=retries, ray=ray)
            scores = await stack.enter_async_context(scorer)
        yield replace(
            engines,
            score=scores.score_each,
            count=scores.count,
            scorer=scores.identity,
            stop=scores.stop,
            reward_shape=settings.reward_shape,
        )


def _name(settings: RewardSettings) -> str:
    return settings.reward_model or DEFAULT_REWARD_MODEL


def gpus_of_reward(settings: RewardSettings) -> int:
    """Return how many GPUs a replica of the reward model takes."""
    from aft_factory.engines.ray_cluster import gpus_of

    return gpus_of(settings.reward_engine_args, "--reward-engine-args")


def _reads(settings: RewardSettings) -> dict[str, Any]:
    return {
        "chat_template": settings.reward_chat_template,
        "label": settings.reward_label,
        "max_length": settings.reward_max_length,
    }


async def _server(settings: RewardSettings, url: str, timeout: float) -> RewardModel:
    from aft_factory.engines.reward_server import ServerReward

    return await ServerReward.connect(
        url,
        settings.reward_model,
        timeout=timeout,
        tokenizer=settings.reward_source(settings.reward_tokenizer or _name(settings)),
        **_reads(settings),
    )


def _opening(settings: RewardSettings) -> Callable[[], Awaitable[RewardModel]]:
    """Return what loads the reward model, here or on another node."""
    if settings.reward_engine == "vllm":
        from aft_factory.engines.vllm_reward import VllmReward

        dtype = {} if settings.reward_dtype == "auto" else {"dtype": settings.reward_dtype}
        engine_args = dtype | settings.reward_engine_args
        start = partial(VllmReward.start, _name(settings), engine_args=engine_args)
        return partial(start, **_reads(settings))
    from aft_factory.engines.transformers_reward import TransformersReward

    return partial(
        asyncio.to_thread,
        TransformersReward.load,
        settings.reward_source(_name(settings)),
        dtype=settings.reward_dtype,
        batch_tokens=settings.reward_batch_tokens,
        **_reads(settings),
    )

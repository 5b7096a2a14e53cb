"""Reward models: how good is a response to a conversation, as one number, the raw logit.

| reward model | runs a sequence classifier |
| --- | --- |
| `transformers_reward.TransformersReward` | in this process |
| `vllm_reward.VllmReward` | on vLLM in this process |
| `reward_server.ServerReward` | behind a vLLM server |

All read the same tokens: the conversation with the response as its last turn, in the model's chat
template, with exactly one BOS. Nothing is ever cut: a pair that is too long is an error in its own
place. Knows no queue and no retries: those are `aft_factory.inference.scoring`'s.
"""

from __future__ import annotations

import abc
import asyncio
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from aft_factory.engines.engine import EngineError
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.identity import digest
from aft_factory.errors import UsageError
from aft_factory.prompts.rendering import without_system
from aft_factory.prompts.tokenizer import resolve_chat_template, shows_system, tokenizer_markers
from aft_factory.records.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_REWARD_MODEL = "sfairXC/FsfairX-LLaMA3-RM-v0.1"  # the paper's

Pair = tuple[Sequence[Message], str]  # a conversation and a response to it


class RewardModel(Protocol):
    """A model that scores responses.

    Attributes:
        model: What scores, for people.
        identity: All that decides a score, for journals.
    """

    model: str
    identity: str

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses: the raw logit of each pair, or why it has none, in the order given.

        Hand over as many as there are: the model sorts them by length within one call. An error in
        a pair's place is of kind `refused` (too long, not a number) or `retry`.

        Raises:
            EngineError: Of kind `fatal`, if nothing can be scored.
        """
        ...

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return how many tokens it reads of each pair, None of one that it cannot read."""
        ...

    async def reachable(self) -> bool:
        """Tell whether anybody is there to score, without a pair."""
        ...

    async def close(self) -> None:
        """Give back what the model holds."""
        ...


class PairEncoder:
    """Turns pairs into the tokens a reward model reads.

    Args:
        tokenizer: The reward model's.
        chat_template: Its own (`own`), `llama3`, `mistral` or the path of a Jinja file.
        limit: Most tokens of a pair; None if there is no limit.

    Raises:
        UsageError: If there is no such chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, chat_template: str, limit: int | None
    ) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self._chat_template = resolve_chat_template(
            chat_template, tokenizer, "--reward-chat-template"
        )
        self._markers = tokenizer_markers(tokenizer, self._chat_template)
        self._system = shows_system(tokenizer, self._chat_template)

    @property
    def identity(self) -> str:
        """What decides the tokens of a pair, for journals."""
        return digest([self._chat_template, self.limit])

    def encode(self, pairs: Sequence[Pair]) -> list[list[int] | EngineError]:
        """Return the token ids of each pair, or why it has none."""
        texts = [self._render(pair) for pair in pairs]
        good = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._tokenize(good))
        return [
            text if isinstance(text, EngineError) else self._checked(next(encoded))
            for text in texts
        ]

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return how many tokens each pair has; None where it has none."""
        return [None if isinstance(ids, EngineError) else len(ids) for ids in self.encode(pairs)]

    def _render(self, pair: Pair) -> str | EngineError:
        messages, response = pair
        turns = [*messages, Message(role="assistant", content=response)]
        safe = self._markers.sanitise_all(turns if self._system else without_system(turns))
        render = self.tokenizer.apply_chat_template
        try:
            return str(render(safe, tokenize=False, chat_template=self._chat_template))
        except Exception as error:  # a template is a program, and can fail in any way
            return EngineError(f"the chat template refuses the conversation: {error}", "refused")

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize rendered texts so that the template's BOS and the tokenizer's are one."""
        if not texts:
            return []
        bos, bos_id = self.tokenizer.bos_token, self.tokenizer.bos_token_id
        plain = [text.removeprefix(bos) if bos else text for text in texts]
        encoded: list[list[int]] = self.tokenizer(plain, verbose=False)["input_ids"]
        for i, (text, without) in enumerate(zip(texts, plain, strict=True)):
            if text != without and encoded[i][:1] != [bos_id]:  # the tokenizer adds none
                encoded[i] = [bos_id, *encoded[i]]
        return encoded

    def _checked(self, ids: list[int]) -> list[int] | EngineError:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            problem = "the input begins with two BOS; check --reward-chat-template"
            return EngineError(problem, "refused")
        if not ids:
            return EngineError("the chat template renders the pair as nothing", "refused")
        if self.limit is not None and len(ids) > self.limit:
            return EngineError(
                f"conversation and response have {len(ids)} tokens, "
                f"the reward model reads at most {self.limit}",
                "refused",
            )
        return ids


def finite(score: float) -> float | EngineError:
    """Return a score, or the error that it is no number."""
    if math.isfinite(score):
        return score
    problem = f"the reward model returned {score}; try --reward-dtype float32"
    return EngineError(problem, "refused")


def refuse_headless(name: str, missing: Collection[str]) -> None:
    """Refuse a model without weights for its score: the loaders go on with random ones.

    Raises:
        UsageError: If any are missing.
    """
    if missing:
        names = ", ".join(sorted(missing))
        raise UsageError(f"{name!r} is no reward model: it has no weights for {names}")


class PairByPair(abc.ABC):
    """What reward models share that are asked for every pair by a request of its own."""

    _encoder: PairEncoder

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`. Their tokens are not made on the event loop."""
        encoded = await asyncio.to_thread(self._encoder.encode, list(pairs))
        return await gather_or_cancel(map(self._one, encoded))

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return the tokens of each pair; see `RewardModel`."""
        return self._encoder.lengths(pairs)

    async def _one(self, ids: list[int] | EngineError) -> float | EngineError:
        try:
            return ids if isinstance(ids, EngineError) else finite(await self._score(ids))
        except EngineError as error:
            if error.kind == "fatal":
                raise
            return error

    @abc.abstractmethod
    async def _score(self, ids: list[int]) -> float:
        """Score the tokens of a pair; raises EngineError."""


def choose_label(name: str, labels: int, label: int | None) -> int:
    """Return which label's logit is the score.

    Raises:
        UsageError: If a classifier has several labels and none is given, or not that one.
    """
    if label is None and labels != 1:
        raise UsageError(
            f"{name!r} has {labels} labels; say whose logit is the score: "
            f"pass --reward-label 0, or up to {labels - 1}"
        )
    if label is not None and not 0 <= label < labels:
        raise UsageError(f"--reward-label: expected 0 to {labels - 1} for {name!r}, got {label}")
    return label or 0

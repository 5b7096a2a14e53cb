"""A reward model in this process: any sequence classifier of transformers.

    reward = TransformersReward.load("sfairXC/FsfairX-LLaMA3-RM-v0.1")

Pairs are sorted by length and read in batches within a budget of tokens; a score does not depend on
what else is in its batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aft_factory.engines.engine import EngineError
from aft_factory.engines.identity import identity_of
from aft_factory.engines.reward import (
    DEFAULT_REWARD_MODEL,
    Pair,
    PairEncoder,
    choose_label,
    finite,
    refuse_headless,
)
from aft_factory.errors import needing
from aft_factory.prompts.tokenizer import Pretrained, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

RewardDtype = Literal["auto", "float32", "bfloat16", "float16"]
LONGEST = 10**12  # a tokenizer without a limit names a number beyond


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut rows into batches of like length: rows x longest is at most the budget, or one row.

    Example:
        >>> list(batches([5, 100, 6, 4], budget=20))
        [[1], [2, 0, 3]]
    """
    batch: list[int] = []
    longest = 0
    # Longest first: what does not fit into memory fails at once, not after an hour.
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[row]
        batch.append(row)
    if batch:
        yield batch


def placed(dtype: RewardDtype, batch_tokens: int | None) -> tuple[str, str, int]:
    """Return where a model runs, the GPU if there is one, in which type, and its tokens at once.

    Args:
        dtype: `auto` is bfloat16 on a GPU and float32 on a CPU.
        batch_tokens: None is 16384, and 2048 on a CPU, whose caches larger batches overflow.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda", "bfloat16" if dtype == "auto" else dtype, batch_tokens or 16384
    return "cpu", "float32" if dtype == "auto" else dtype, batch_tokens or 2048


@dataclass(eq=False)
class TransformersReward:
    """A sequence classifier in this process, in a thread of its own. Made by `load`."""

    model: str
    identity: str
    _network: PreTrainedModel
    _encoder: PairEncoder
    _batch_tokens: int
    _label: int
    _closing: threading.Event = field(default_factory=threading.Event)
    _is_causal: bool = field(init=False)
    # One thread: calls take turns.
    _worker: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "reward"))

    def __post_init__(self) -> None:
        self._is_causal = _is_causal(self._network)

    @classmethod
    def load(
        cls,
        source: str | Pretrained = DEFAULT_REWARD_MODEL,
        *,
        dtype: RewardDtype = "auto",
        batch_tokens: int | None = None,
        max_length: int | None = None,
        chat_template: str = "own",
        label: int | None = None,
    ) -> TransformersReward:
        """Load a reward model from a folder or from the hub.

        Args:
            source: Folder or name, or how it is loaded.
            dtype: See `placed`. The logit itself is always computed in float32, so that close
                scores do not become ties.
            batch_tokens: Most tokens, padding included, that the model reads at once; see `placed`.
            max_length: Most tokens of a pair, at most the model's context; None takes what its
                tokenizer and its context allow.
            chat_template: See `PairEncoder`.
            label: Whose logit is the score, for a classifier with several labels.

        Raises:
            MissingPackage: If torch or transformers is not installed.
            UsageError: If there is no such model, or it is no reward model.
        """
        with needing("a reward model", "torch transformers"):
            import torch
            from transformers import AutoModelForSequenceClassification
        device, kind, budget = placed(dtype, batch_tokens)
        source = Pretrained.of(source)
        name = source.name
        tokenizer = load_tokenizer(source)
        try:
            network, info = source.loaded_by(
                AutoModelForSequenceClassification,
                dtype=getattr(torch, kind),
                output_loading_info=True,
            )
        except Exception as error:
            raise source.explained("the reward model", error) from error
        refuse_headless(name, info["missing_keys"])
        encoder = PairEncoder(tokenizer, chat_template, _limit(network, tokenizer, max_length))
        chosen = choose_label(name, network.config.num_labels, label)
        if _has_linear_score(network):
            network.score.float()
        identity = identity_of(source, encoder.identity, str(chosen), str(network.dtype))
        return cls(name, identity, network.to(device).eval(), encoder, budget, chosen)

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._score, list(pairs))

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return the tokens of each pair; see `RewardModel`."""
        return self._encoder.lengths(pairs)

    async def reachable(self) -> bool:
        """Tell whether anybody is there."""
        return True

    async def close(self) -> None:
        """Stop the thread after the batch that it computes, without waiting for it."""
        self._closing.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        encoded = self._encoder.encode(pairs)
        rows = [(i, ids) for i, ids in enumerate(encoded) if not isinstance(ids, EngineError)]
        scores: dict[int, float | EngineError] = {}
        for batch in batches([len(ids) for _, ids in rows], self._batch_tokens):
            if self._closing.is_set():
                raise EngineError("the reward model was closed", "fatal")
            logits = self._logits([rows[row][1] for row in batch])
            scores |= {rows[row][0]: finite(x) for row, x in zip(batch, logits, strict=True)}
        return [ids if isinstance(ids, EngineError) else scores[i] for i, ids in enumerate(encoded)]

    def _logits(self, batch: Sequence[Sequence[int]]) -> list[float]:
        import torch

        network, tokenizer = self._network, self._encoder.tokenizer
        pad = tokenizer.pad_token_id or 0
        lengths = torch.tensor([len(ids) for ids in batch])
        longest = int(lengths.max())
        tokens = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in batch])
        inputs = {"input_ids": tokens.to(network.device)}
        if not self._is_causal:  # else nothing sees the padding, and attention is faster unmasked
            mask = torch.arange(longest) < lengths[:, None]
            inputs["attention_mask"] = mask.long().to(network.device)
        try:
            with torch.inference_mode():
                if _has_linear_score(network):
                    # transformers looks for the last token that is not `config.pad_token_id`: the
                    # wrong one where pad is eos, and none where there is no pad. We know where.
                    hidden = network.base_model(**inputs, use_cache=False).last_hidden_state
                    last = hidden[torch.arange(len(batch)), (lengths - 1).to(hidden.device)]
                    logits = network.score(last.float())
                else:
                    logits = network(**inputs).logits
        except torch.OutOfMemoryError as error:
            problem = f"{len(batch)} x {longest} tokens do not fit; lower --reward-batch-tokens"
            raise EngineError(f"{problem}: {error}", "fatal") from error
        except Exception as error:  # such as tokens or positions that it has no weights for
            problem = f"{self.model!r} fails at {len(batch)} x {longest} tokens"
            raise EngineError(
                f"{problem} ({error!r}); if it cannot read that many, pass --reward-max-length",
                "fatal",
            ) from error
        scores: list[float] = logits[:, self._label].float().tolist()
        return scores


def _limit(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_length: int | None
) -> int | None:
    """Return the most tokens of a pair; None if there is no limit.

    The tokenizer's limit may be a habit of its training, so another one may be asked for.
    """
    limits = [tokenizer.model_max_length if max_length is None else max_length]
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    limits += [] if context is None else [context]
    for name, module in network.named_modules():
        # RoBERTa and its kind count positions from the one after the padding's.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            limits.append(module.weight.shape[0] - padding - 1)
    limit = min(limits)
    return None if limit > LONGEST else limit


def _has_linear_score(network: PreTrainedModel) -> bool:
    """Tell whether it is a decoder whose score is a linear map of the last token's state."""
    from torch.nn import Linear

    score = getattr(network, "score", None)
    return isinstance(score, Linear) and not network.config.is_encoder_decoder


def _is_causal(network: PreTrainedModel) -> bool:
    """Tell whether each token sees only those before it, as its layers and settings say."""
    parts = (network.config, *network.modules())
    flags = [part.is_causal for part in parts if hasattr(part, "is_causal")]
    return _has_linear_score(network) and bool(flags) and all(flags)

"""Reward models: how good is a response to a conversation, as one number, the raw logit.

`RewardModel` is what strategies and `aft_factory.rank` ask; `TransformersReward` runs a sequence
classifier in this process, `reward_server.ServerReward` asks a vLLM server. Both read the same
tokens: the conversation with the response as its last turn, in the model's chat template, with
exactly one BOS. Nothing is ever cut: a pair that is too long is an error in its own place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Protocol

from aft_factory.engines import EngineError
from aft_factory.errors import MissingPackage, UsageError
from aft_factory.markers import sanitise
from aft_factory.records import Message
from aft_factory.tokenizer import load_tokenizer, resolve_chat_template, tokenizer_markers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DEFAULT_REWARD_MODEL = "sfairXC/FsfairX-LLaMA3-RM-v0.1"  # the paper's

Pair = tuple[Sequence[Message], str]  # a conversation and a response to it


class RewardModel(Protocol):
    """A model that scores responses.

    Attributes:
        model: What scores.
    """

    model: str

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses: the raw logit of each pair, or why it has none, in the order given.

        Hand over as many as there are: the model sorts them by length within one call. An error in
        a pair's place is of kind `refused` (too long, not a number) or `retry`.

        Raises:
            EngineError: Of kind `fatal`, if nothing can be scored.
        """
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
        self._chat_template = resolve_chat_template(chat_template, tokenizer)
        self._markers = tokenizer_markers(tokenizer)

    def encode(self, pairs: Sequence[Pair]) -> list[list[int] | EngineError]:
        """Return the token ids of each pair, or why it has none."""
        texts = [self._render(pair) for pair in pairs]
        good = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._tokenize(good))
        return [
            text if isinstance(text, EngineError) else self._checked(next(encoded))
            for text in texts
        ]

    def _render(self, pair: Pair) -> str | EngineError:
        messages, response = pair
        turns = [*messages, Message(role="assistant", content=response)]
        safe = [{**turn, "content": sanitise(turn["content"], self._markers)} for turn in turns]
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
            return EngineError("the input begins with two BOS; check the chat template", "refused")
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
    return EngineError(f"the reward model returned {score}; try another dtype", "refused")


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


class TransformersReward:
    """A sequence classifier in this process, in a thread of its own. Made by `load`."""

    def __init__(
        self,
        model: str,
        network: PreTrainedModel,
        encoder: PairEncoder,
        max_tokens_per_batch: int,
        label: int,
    ) -> None:
        self.model = model
        self._network = network
        self._encoder = encoder
        self._max_tokens_per_batch = max_tokens_per_batch
        self._label = label
        self._is_causal = _is_causal(network)
        self._worker = ThreadPoolExecutor(1, "reward")  # one: calls take turns

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_REWARD_MODEL,
        *,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        chat_template: str = "own",
        label: int | None = None,
    ) -> TransformersReward:
        """Load a reward model from a folder or from the hub.

        Args:
            name: Folder or name.
            dtype: `auto` is bfloat16 on a GPU and float32 on a CPU. The logit itself is always
                computed in float32, so that close scores do not become ties.
            device: As PyTorch names it; `auto` is the GPU if there is one.
            max_tokens_per_batch: Most tokens, padding included, that the model reads at once; None
                is 16384, and 2048 on a CPU, whose caches larger batches overflow.
            max_length: Most tokens of a pair; by default, and at most, the model's context.
            chat_template: See `PairEncoder`.
            label: Whose logit is the score, for a classifier with several labels.

        Raises:
            MissingPackage: If torch or transformers is not installed.
            UsageError: If there is no such model, or it is no reward model.
        """
        try:
            import torch
            from transformers import AutoModelForSequenceClassification
        except ImportError:
            raise MissingPackage("a reward model", "torch transformers") from None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if max_tokens_per_batch is None:
            max_tokens_per_batch = 2048 if device == "cpu" else 16384
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        tokenizer = load_tokenizer(name)
        try:
            network, info = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except Exception as error:  # its readers raise anything, down to KeyError
            raise UsageError(f"cannot load the reward model {name!r}: {error}") from error
        if info["missing_keys"]:  # transformers would go on with random weights
            missing = ", ".join(sorted(info["missing_keys"]))
            raise UsageError(f"{name!r} is no reward model: it has no weights for {missing}")
        context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
        limits = [limit for limit in (max_length, context) if limit is not None]
        encoder = PairEncoder(tokenizer, chat_template, min(limits, default=None))
        chosen = choose_label(name, network.config.num_labels, label)
        if _has_linear_score(network):
            network.score.float()
        return cls(name, network.to(device).eval(), encoder, max_tokens_per_batch, chosen)

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._score, list(pairs))

    async def close(self) -> None:
        """Stop the thread, without waiting for what it computes."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        encoded = self._encoder.encode(pairs)
        rows = [(i, ids) for i, ids in enumerate(encoded) if not isinstance(ids, EngineError)]
        scores: dict[int, float | EngineError] = {}
        for batch in batches([len(ids) for _, ids in rows], self._max_tokens_per_batch):
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
            problem = f"{len(batch)} x {longest} tokens do not fit; lower max_tokens_per_batch"
            raise EngineError(f"{problem}: {error}", "fatal") from error
        scores: list[float] = logits[:, self._label].float().tolist()
        return scores


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


def choose_label(name: str, labels: int, label: int | None) -> int:
    """Return which label's logit is the score.

    Raises:
        UsageError: If a classifier has several labels and none is given, or not that one.
    """
    if label is None and labels != 1:
        raise UsageError(f"{name!r} has {labels} labels; say whose logit is the score: label=0, ..")
    if label is not None and not 0 <= label < labels:
        raise UsageError(f"label: expected 0 to {labels - 1} for {name!r}, got {label}")
    return label or 0

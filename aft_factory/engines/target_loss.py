"""The loss of given target tokens under a model, by transformers or by vLLM; nothing is written.

Of each row the sum of -log p over its targets, in nats, and their number: what a training of
LLaMA-Factory minimises, before it is averaged.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_factory.engines.identity import fingerprint, identity_of
from aft_factory.engines.transformers_reward import RewardDtype, batches, placed
from aft_factory.engines.vllm_loading import check_name, failures, started
from aft_factory.errors import UsageError, needing
from aft_factory.network import is_secret
from aft_factory.prompts.tokenizer import Pretrained

IGNORED = -100  # the label of a token that is no target
MOST_AT_ONCE = 64  # rows that vLLM is given at a time, as it keeps log-probabilities of each


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized row of training.

    Attributes:
        ids: Tokens, shape (length,).
        labels: The same tokens where they are targets, elsewhere `IGNORED`; shape (length,).
    """

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def targets(self) -> int:
        """How many targets it has; nothing predicts the first token."""
        return sum(label != IGNORED for label in self.labels[1:])


class TransformersLoss:
    """A causal language model in this process.

    Args:
        source: Folder or hub name, or how it is loaded.
        dtype: See `placed`; the loss itself is in float32.
        batch_tokens: Most tokens, padding included, that are read at once; see `placed`.

    Raises:
        MissingPackage: If torch or transformers is not installed.
        UsageError: If there is no such model.
    """

    def __init__(
        self,
        source: str | Pretrained,
        *,
        dtype: RewardDtype = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        with needing("a perplexity", "torch transformers"):
            import torch
            from transformers import AutoModelForCausalLM
        self._device, kind, self._budget = placed(dtype, batch_tokens)
        source = Pretrained.of(source)
        try:
            network = source.loaded_by(AutoModelForCausalLM, dtype=getattr(torch, kind))
        except Exception as error:
            raise source.explained("the model", error) from error
        self.identity = identity_of(source, kind)
        self._network = network.to(self._device).eval()

    def losses(self, rows: Sequence[Row]) -> Iterator[tuple[int, float]]:
        """Go through the rows, longest first: the number of each, and the sum of its losses."""
        import torch
        from torch.nn.functional import cross_entropy
        from torch.nn.utils.rnn import pad_sequence

        for batch in batches([len(row.ids) for row in rows], self._budget):
            ids, labels = (
                pad_sequence([torch.tensor(list(part)) for part in parts], True, padding)
                for parts, padding in (
                    ([rows[i].ids for i in batch], 0),
                    ([rows[i].labels for i in batch], IGNORED),
                )
            )
            mask = pad_sequence([torch.ones(len(rows[i].ids)) for i in batch], True, 0)
            with torch.inference_mode():
                logits = self._network(
                    ids.to(self._device), attention_mask=mask.long().to(self._device)
                ).logits[:, :-1]
                wanted = labels[:, 1:].to(self._device)
                chosen = wanted != IGNORED
                each = torch.zeros(wanted.shape, device=self._device)
                each[chosen] = cross_entropy(
                    logits[chosen].float(), wanted[chosen], reduction="none"
                )
            yield from zip(batch, each.sum(dim=1, dtype=torch.float64).tolist(), strict=True)

    def close(self) -> None:
        """There is nothing to end."""


class VllmLoss:
    """The same by vLLM in this process, from its log-probabilities of prompts.

    Args:
        name: Folder or hub name.
        engine_args: Of vLLM's `AsyncEngineArgs`, passed through.

    Raises:
        MissingPackage: If vLLM is not installed.
        UsageError: If there is no such model.
    """

    def __init__(self, name: str, engine_args: Mapping[str, Any]) -> None:
        check_name(name)
        self._loop = asyncio.new_event_loop()
        self._llm = self._loop.run_until_complete(started(name, engine_args))
        said = sorted(name for name in engine_args if not is_secret(name))
        more = [f"{name}={engine_args[name]}" for name in said]
        self.identity = "+".join([fingerprint(name), "vllm", *more])
        context = self._llm.vllm_config.model_config.max_model_len
        self._context: int = context

    def losses(self, rows: Sequence[Row]) -> Iterator[tuple[int, float]]:
        """Go through the rows as they end: the number of each, and the sum of its losses."""
        longest = max((len(row.ids) for row in rows), default=0)
        if longest >= self._context:  # beside the token that vLLM insists on writing
            raise UsageError(
                f"a row of {longest} tokens does not fit vLLM's context of {self._context}; lower "
                "--cutoff-len, or --engine-args max_model_len=N"
            )
        found = self._all(rows)
        while True:
            try:
                yield self._loop.run_until_complete(anext(found))
            except StopAsyncIteration:
                return

    def close(self) -> None:
        """End vLLM's processes."""
        self._loop.run_until_complete(asyncio.to_thread(self._llm.shutdown))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _all(self, rows: Sequence[Row]) -> AsyncIterator[tuple[int, float]]:
        for start in range(0, len(rows), MOST_AT_ONCE):
            numbers = range(start, min(start + MOST_AT_ONCE, len(rows)))
            for one in asyncio.as_completed([self._one(i, rows[i]) for i in numbers]):
                yield await one

    async def _one(self, number: int, row: Row) -> tuple[int, float]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompt: Any = {"prompt_token_ids": list(row.ids)}
        final = None
        with failures():
            async for output in self._llm.generate(prompt, params, f"loss-{number}"):
                final = output
        assert final is not None
        told = final.prompt_logprobs or []
        pairs = zip(row.labels[1:], told[1:], strict=True)
        return number, math.fsum(
            -found[label].logprob
            for label, found in pairs
            if label != IGNORED and found is not None
        )

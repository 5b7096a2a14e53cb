"""Fitting inside LLaMA-Factory's standard engine, where it tokenizes: with its own tokens, exactly.

A row is encoded as always; only one that reaches `cutoff_len`, and so may have lost its query,
has its proposals shortened (`aft_factory.fitting`) and is encoded again. Rows that fit cost
nothing more.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from aft_factory.fitting import token_boundaries
from aft_factory.plugin.v0 import SPANS
from aft_factory.shortening import DoesNotFit, fit

NO_LIMIT = 1 << 40


def hook_processor(module: ModuleType) -> None:
    """Wrap every data set processor of the module that encodes single examples."""
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            if "_encode_data_example" in vars(kind):
                predicts = kind.__name__.startswith("Unsupervised")
                encode = _fitting_encode(kind._encode_data_example, predicts)  # type: ignore[attr-defined]
                kind._encode_data_example = encode  # type: ignore[attr-defined]
            if "preprocess_dataset" in vars(kind):
                kind.preprocess_dataset = _reporting_preprocess(kind.preprocess_dataset, module)  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Batch:
    """The rows of one `map` batch that hold proposals, and what was done to them."""

    spans_by_prompt: dict[int, list[list[int]] | None]
    too_long: list[int]  # stands for a row that cannot fit until it is dropped
    rows: int = 0
    shortened: int = 0
    proposals_shortened: int = 0
    tokens_removed: int = 0
    dropped: int = 0
    first_dropped: str = ""


def _reporting_preprocess(original: Any, module: ModuleType) -> Any:
    """Hand the places of the proposals to `_encode_data_example`, drop what cannot fit, report."""

    @functools.wraps(original)
    def preprocess_dataset(self: Any, examples: Any) -> Any:
        if SPANS not in examples:
            return original(self, examples)
        examples = dict(
            examples
        )  # lists that stay the same objects, to know a prompt by its identity
        spans = zip(examples["_prompt"], examples[SPANS], strict=True)
        batch = _Batch(
            {id(prompt): json.loads(places) for prompt, places in spans if places},
            too_long=[0] * (self.data_args.cutoff_len + 1),
        )
        self._aft_batch = batch
        try:
            outputs = original(self, examples)
        finally:
            del self._aft_batch
        if batch.dropped:
            _drop(outputs, batch.too_long)
        _report(batch, self.data_args.cutoff_len, module)
        return outputs

    return preprocess_dataset


def _fitting_encode(original: Any, predicts: bool) -> Any:
    def length(encoded: tuple[list[int], list[int]]) -> int:
        """Tokens of a row: labels of training cover the ids, those of prediction follow them."""
        ids, labels = encoded
        return len(ids) + len(labels) if predicts else len(ids)

    @functools.wraps(original)
    def encode(
        self: Any, prompt: Any, response: Any, system: str | None, *args: Any, **kwargs: Any
    ) -> tuple[list[int], list[int]]:
        encoded: tuple[list[int], list[int]] = original(
            self, prompt, response, system, *args, **kwargs
        )
        batch: _Batch | None = self.__dict__.get("_aft_batch")
        spans = batch.spans_by_prompt.get(id(prompt)) if batch is not None else None
        if batch is None or spans is None or system is None:
            return encoded
        batch.rows += 1
        limit = self.data_args.cutoff_len
        if length(encoded) < limit:
            return encoded

        untruncated = copy.copy(self)
        untruncated.data_args = copy.copy(self.data_args)
        untruncated.data_args.cutoff_len = NO_LIMIT

        def measure(proposals: Sequence[str]) -> int:
            text = _replace_spans(system, spans, proposals)
            return length(original(untruncated, prompt, response, text, *args, **kwargs))

        proposals = [system[start:end] for start, end in spans]
        try:
            fitted = fit(proposals, limit, measure, token_boundaries(self.tokenizer))
        except DoesNotFit as error:
            batch.dropped += 1
            batch.first_dropped = batch.first_dropped or f"{prompt[-1]['content'][:60]!r} {error}"
            return (
                batch.too_long,
                batch.too_long,
            )  # packing drops rows over the limit itself; else: _drop
        if not fitted.cut:
            return encoded
        batch.shortened += 1
        batch.proposals_shortened += fitted.cut
        batch.tokens_removed += fitted.tokens_removed
        text = _replace_spans(system, spans, fitted.proposals)
        return original(self, prompt, response, text, *args, **kwargs)  # type: ignore[no-any-return]

    return encode


def _replace_spans(text: str, spans: Sequence[Sequence[int]], replacements: Sequence[str]) -> str:
    pieces, last = [], 0
    for (start, end), replacement in zip(spans, replacements, strict=True):
        pieces += [text[last:start], replacement]
        last = end
    return "".join([*pieces, text[last:]])


def _drop(outputs: dict[str, list[Any]], too_long: list[int]) -> None:
    kept = [i for i, ids in enumerate(outputs["input_ids"]) if ids is not too_long]
    for key, values in outputs.items():
        outputs[key] = [values[i] for i in kept]


def _report(batch: _Batch, limit: int, module: ModuleType) -> None:
    if batch.shortened:
        module.logger.warning_rank0(
            f"aft-factory: shortened {batch.proposals_shortened} proposals in {batch.shortened} of "
            f"{batch.rows} rows to fit cutoff_len {limit} ({batch.tokens_removed} tokens); "
            "no query, instruction or target was cut."
        )
    if batch.dropped:
        module.logger.warning_rank0(
            f"aft-factory: left out {batch.dropped} of {batch.rows} rows that do not fit "
            f"cutoff_len {limit} even with short proposals; raise cutoff_len to keep them. "
            f"The first: {batch.first_dropped}."
        )

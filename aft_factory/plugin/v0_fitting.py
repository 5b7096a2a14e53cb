"""Prompts inside LLaMA-Factory's standard engine, made where it tokenizes: with its own tokens.

Here the tokenizer is known: its control tokens are broken in every text, the aggregator prompt is
rendered, and the row is encoded by LLaMA-Factory's own code with the loss on the aggregation only.
Of a row that reaches `cutoff_len`, and so may have lost its query, the proposals are shortened
(`prompts.shortening`), and it is rendered and encoded again. Rows that fit cost nothing more.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

from aft_factory.errors import RecordError, UsageError
from aft_factory.plugin.templates import written_by
from aft_factory.prompts.fitting import token_boundaries
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.rendering import load_template, system_text
from aft_factory.prompts.shortening import DoesNotFit, fit
from aft_factory.prompts.tokenizer import tokenizer_markers

PARTS = "_aft_parts"  # the column of an aligned row that holds its `Parts`
PROCESSORS = ("supervised", "unsupervised")  # of LLaMA-Factory; the first trains, both predict
NO_LIMIT = 1 << 40

_hooked: set[str] = set()


@dataclass(frozen=True, slots=True)
class Parts:
    """What an aligned row holds beside LLaMA-Factory's own columns.

    Attributes:
        template: Name or path of the aggregator prompt.
        proposals: As they were selected.
        fit: Whether to shorten them to `cutoff_len`.
    """

    template: str
    proposals: list[str]
    fit: bool

    def dump(self) -> str:
        """Return it as text: Arrow takes a column's type from its first rows."""
        return json.dumps(asdict(self))


def hook_processor(module: ModuleType) -> None:
    """Wrap every data set processor of the module that encodes single examples.

    Raises:
        LookupError: If there is none.
    """
    found = False
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            if "_encode_data_example" in vars(kind):
                predicts = kind.__name__.startswith("Unsupervised")
                encode = _aggregating_encode(kind._encode_data_example, predicts)  # type: ignore[attr-defined]
                kind._encode_data_example = encode  # type: ignore[attr-defined]
                found = True
            if "preprocess_dataset" in vars(kind):
                kind.preprocess_dataset = _reporting_preprocess(kind.preprocess_dataset, module)  # type: ignore[attr-defined]
    if not found:
        raise LookupError("no class that has _encode_data_example")
    _hooked.add(module.__name__.rpartition(".")[2])


def check_hooked() -> None:
    """Check that aligned rows will get their prompts.

    Raises:
        UsageError: If LLaMA-Factory has not the classes that see to it.
    """
    missing = [name for name in PROCESSORS if name not in _hooked]
    if missing:
        raise UsageError(
            f"aft-factory found nothing to hook into in llamafactory.data.processor.{missing[0]}: "
            "aggregation data would be trained on without their proposals. "
            "Use a version of LLaMA-Factory that the README names"
        )


@dataclass(slots=True)
class _Batch:
    """The rows of one `map` batch that are ours, and what was done to them."""

    parts_by_prompt: dict[int, Parts]
    too_long: list[int]  # stands for a row that is left out until it is dropped
    markers: Markers
    rows: int = 0
    shortened: int = 0
    proposals_shortened: int = 0
    tokens_removed: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)  # by what it is about


def _reporting_preprocess(original: Any, module: ModuleType) -> Any:
    """Hand the parts to `_encode_data_example`, drop what cannot be trained, report."""

    @functools.wraps(original)
    def preprocess_dataset(self: Any, examples: Any) -> Any:
        if PARTS not in examples:
            return original(self, examples)
        examples = dict(
            examples
        )  # lists that stay the same objects, to know a prompt by its identity
        parts = zip(examples["_prompt"], examples[PARTS], strict=True)
        batch = _Batch(
            {id(prompt): Parts(**json.loads(text)) for prompt, text in parts if text},
            too_long=[0] * (self.data_args.cutoff_len + 1),
            markers=tokenizer_markers(self.tokenizer, written_by(self.template)),
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


def _aggregating_encode(original: Any, predicts: bool) -> Any:
    def length(encoded: tuple[list[int], list[int]]) -> int:
        """Tokens of a row: labels of training cover the ids, those of prediction follow them."""
        ids, labels = encoded
        return len(ids) + len(labels) if predicts else len(ids)

    @functools.wraps(original)
    def encode(
        self: Any, prompt: Any, response: Any, system: str | None, *args: Any, **kwargs: Any
    ) -> tuple[list[int], list[int]]:
        batch: _Batch | None = self.__dict__.get("_aft_batch")
        parts = None if batch is None else batch.parts_by_prompt.get(id(prompt))
        if batch is None or parts is None:
            return original(self, prompt, response, system, *args, **kwargs)  # type: ignore[no-any-return]
        batch.rows += 1
        sanitise, limit = batch.markers.sanitise, self.data_args.cutoff_len
        template, own = load_template(parts.template), sanitise(system or "")
        prompt, response = map(batch.markers.sanitise_all, (prompt, response))
        proposals = [sanitise(text) for text in parts.proposals]

        def encoded(proposals: Sequence[str], cutoff: int) -> tuple[list[int], list[int]]:
            text = system_text(own, proposals, template)
            processor = _learning_aggregations(self, cutoff)
            return original(processor, prompt, response, text, *args, **kwargs)  # type: ignore[no-any-return]

        try:
            whole = encoded(proposals, limit)
            if length(whole) < limit or not parts.fit:
                return whole
            fitted = fit(
                proposals,
                limit,
                lambda shorter: length(encoded(shorter, NO_LIMIT)),
                token_boundaries(self.tokenizer),
            )
        except (DoesNotFit, RecordError) as error:
            about = batch.dropped.setdefault(error.field, [])
            about.append(f"{prompt[-1]['content'][:60]!r} {error}")
            # Packing drops rows over the limit itself; else: _drop.
            return batch.too_long, batch.too_long
        if not fitted.cut:
            return whole
        batch.shortened += 1
        batch.proposals_shortened += fitted.cut
        batch.tokens_removed += fitted.tokens_removed
        return encoded(fitted.proposals, limit)

    return encode


def _learning_aggregations(processor: Any, cutoff: int) -> Any:
    """Return a processor of which only the last answer is learned, as LLaMA-Factory can do itself.

    Earlier answers stand behind drafts of a later one: they are history, never labels.
    """
    same = copy.copy(processor)
    same.data_args = copy.copy(processor.data_args)
    same.data_args.mask_history = True
    same.data_args.cutoff_len = cutoff
    return same


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
    for about, rows in batch.dropped.items():
        why = f"because of their {about}"
        if about == "cutoff_len":
            why = (
                f"that do not fit cutoff_len {limit} even with short proposals; raise cutoff_len "
                "to keep them"
            )
        module.logger.warning_rank0(
            f"aft-factory: left out {len(rows)} of {batch.rows} rows {why}. The first: {rows[0]}."
        )

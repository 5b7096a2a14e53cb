"""Prompts inside LLaMA-Factory's standard engine, made where it tokenizes: with its own tokens.

Here the tokenizer is known: its control tokens are broken in every text, the aggregator prompt is
rendered, and the row is encoded by LLaMA-Factory's own code with the loss on the aggregation only.
Of a row that reaches `cutoff_len`, and so may have lost its query, the proposals are shortened
(`prompts.shortening`), and it is rendered and encoded again. Rows that fit cost nothing more. Rows
that cannot be trained on are left out before LLaMA-Factory sees them, and counted (`account`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

from aft_factory.errors import RecordError, UsageError
from aft_factory.plugin.account import Account, Accounts, note
from aft_factory.plugin.slots import thinks, written_by
from aft_factory.prompts.fitting import token_boundaries
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.rendering import AggregatorTemplate, load_template, system_text
from aft_factory.prompts.shortening import DoesNotFit, fit
from aft_factory.prompts.tokenizer import tokenizer_markers
from aft_factory.records import exact_json

PARTS = "_aft_parts"  # the column of an aligned row that holds its `Parts`
PROCESSORS = ("supervised", "unsupervised")  # of LLaMA-Factory; the first trains, both predict
NO_LIMIT = 1 << 40
IGNORE = -100  # the label of what is not learned

_hooked: set[str] = set()


@dataclass(frozen=True, slots=True)
class Parts:
    """What an aligned row holds beside LLaMA-Factory's own columns.

    Attributes:
        dataset: Name of its data set.
        number: Its number in there, from 1.
        template: Name or path of the aggregator prompt.
        proposals: As they were selected.
        fit: Whether to shorten them to `cutoff_len`.
        about: The column because of which the row cannot be trained on; "" for one that can.
        problem: Why not.
        thought: What was thought before the aggregation; "" for none.
    """

    dataset: str
    number: int
    template: str
    proposals: list[str]
    fit: bool
    about: str = ""
    problem: str = ""
    thought: str = ""

    def dump(self) -> str:
        """Return it as text: Arrow takes a column's type from its first rows."""
        return exact_json.dump(asdict(self)).decode()


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
                kind.preprocess_dataset = _choosing_preprocess(kind.preprocess_dataset)  # type: ignore[attr-defined]
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


Encoded = tuple[list[int], list[int]]  # token ids and labels


@dataclass(slots=True)
class _Batch:
    """The rows of one `map` batch that are ours, by the identity of their prompts."""

    parts: dict[int, Parts]
    markers: Markers
    accounts: Accounts = field(default_factory=dict)
    encoded: dict[int, Encoded] = field(default_factory=dict)
    templates: dict[str, AggregatorTemplate] = field(default_factory=dict)

    def account(self, parts: Parts) -> Account:
        """Return the account of a row's data set."""
        return self.accounts.setdefault(parts.dataset, Account())

    def template(self, parts: Parts) -> AggregatorTemplate:
        """Return the aggregator prompt of a row, whose file is read once."""
        name = parts.template
        return self.templates.get(name) or self.templates.setdefault(name, load_template(name))


def _choosing_preprocess(original: Any) -> Any:
    """Encode our rows, and let LLaMA-Factory go on with those that can be trained on."""

    @functools.wraps(original)
    def preprocess_dataset(self: Any, examples: Any) -> Any:
        if PARTS not in examples:
            return original(self, examples)
        examples = dict(examples)  # lists that stay the same objects
        parts = zip(examples["_prompt"], examples[PARTS], strict=True)
        batch = _Batch(
            {id(prompt): Parts(**exact_json.load(text)) for prompt, text in parts if text},
            markers=tokenizer_markers(self.tokenizer, written_by(self.template)),
        )
        self._aft_batch = batch
        try:
            kept = [i for i in range(len(examples["_prompt"])) if _is_trainable(self, examples, i)]
            chosen = {name: [values[i] for i in kept] for name, values in examples.items()}
            # No column at all would be taken for a change of columns.
            return original(self, chosen) if kept else {"input_ids": []}
        finally:
            del self._aft_batch
            note(batch.accounts)

    return preprocess_dataset


def _is_trainable(processor: Any, examples: Any, i: int) -> bool:
    """Encode a row, if it is ours; tell whether it can be trained on, and count it."""
    batch: _Batch = processor._aft_batch
    prompt = examples["_prompt"][i]
    parts = batch.parts.get(id(prompt))
    if parts is None:
        return True
    account = batch.account(parts)
    account.rows += 1
    if parts.problem:
        account.leave_out(parts.about, parts.number, parts.problem)
        return False
    texts = (prompt, examples["_response"][i], examples["_system"][i], examples["_tools"][i])
    try:
        # Aggregation data have no images, videos or audios.
        batch.encoded[id(prompt)] = processor._encode_data_example(*texts, [], [], [])
    except (DoesNotFit, RecordError) as error:
        why = f"row {parts.number} ({prompt[-1]['content'][:60]!r}): {error}"
        account.leave_out(error.field, parts.number, why)
        return False
    return True


def _aggregating_encode(original: Any, predicts: bool) -> Any:
    def length(encoded: Encoded) -> int:
        """Tokens of a row: labels of training cover the ids, those of prediction follow them."""
        ids, labels = encoded
        return len(ids) + len(labels) if predicts else len(ids)

    @functools.wraps(original)
    def encode(
        self: Any, prompt: Any, response: Any, system: str | None, *args: Any, **kwargs: Any
    ) -> Encoded:
        batch: _Batch | None = self.__dict__.get("_aft_batch")
        parts = None if batch is None else batch.parts.get(id(prompt))
        if batch is None or parts is None:
            return original(self, prompt, response, system, *args, **kwargs)  # type: ignore[no-any-return]
        if id(prompt) in batch.encoded:
            return batch.encoded[id(prompt)]
        sanitise, limit = batch.markers.sanitise, self.data_args.cutoff_len
        template, own = batch.template(parts), sanitise(system or "")
        prompt, response = map(batch.markers.sanitise_all, (prompt, response))
        proposals = [sanitise(text) for text in parts.proposals]
        if parts.thought.strip():
            if thinks(self.template) and self.template.enable_thinking is not False:
                begins, ends = self.template.thought_words
                answer = f"{begins}{sanitise(parts.thought)}{ends}{response[0]['content']}"
                response = [response[0] | {"content": answer}]
            else:
                batch.account(parts).thoughts_left_out += 1

        def encoded(proposals: Sequence[str], cutoff: int) -> Encoded:
            text = system_text(own, proposals, template)
            processor = _learning_aggregations(self, cutoff)
            ids, labels = original(processor, prompt, response, text, *args, **kwargs)
            return ids, labels if predicts else _of_last_answer(labels)

        whole = encoded(proposals, limit)
        if length(whole) < limit or not parts.fit:
            return whole
        fitted = fit(
            proposals,
            limit,
            lambda shorter: length(encoded(shorter, NO_LIMIT)),
            token_boundaries(self.tokenizer),
        )
        if not fitted.cut:
            return whole
        account = batch.account(parts)
        account.shortened += 1
        account.proposals_shortened += fitted.cut
        account.tokens_removed += fitted.tokens_removed
        return encoded(fitted.proposals, limit)

    return encode


def _of_last_answer(labels: list[int]) -> list[int]:
    """Return labels without those of earlier answers.

    Where no token ends an answer (`efficient_eos`), LLaMA-Factory has the model learn to end the
    earlier ones by EOS, though they are history.
    """
    start = len(labels) - labels[::-1].index(IGNORE) if IGNORE in labels else 0
    return [IGNORE] * start + labels[start:]


def _learning_aggregations(processor: Any, cutoff: int) -> Any:
    """Return a processor of which only the last answer is learned, as LLaMA-Factory can do itself.

    Earlier answers stand behind drafts of a later one: they are history, never labels.
    """
    same = copy.copy(processor)
    same.data_args = copy.copy(processor.data_args)
    same.data_args.mask_history = True
    same.data_args.cutoff_len = cutoff
    return same

"""LLaMA-Factory's standard engine (v0): `"formatting": "aggregation"` in `dataset_info.json`.

Three hooks: the parser keeps our blocks of a data set entry; the converter turns a row of records
into LLaMA-Factory's `_system`, `_prompt` and `_response`, with the proposals beside them, which
`v0_fitting` puts into the prompt when the row is tokenized; the loader refuses what would not train
on aggregations, and tells what became of the rows. One that cannot be trained on goes all the way
with its reason, for LLaMA-Factory keeps converted rows in a cache, and is left out at the end.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from aft_factory import __version__
from aft_factory.errors import RecordError, UsageError
from aft_factory.plugin import account
from aft_factory.plugin.options import NAME, DatasetOptions, parse_entry
from aft_factory.plugin.v0_fitting import PARTS, Parts, check_hooked
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import select
from aft_factory.records.messages import Message

# LLaMA-Factory's name of a stage (`rm` is `dpo` too): what it would make of aggregation data
NOT_FOR = {
    "pt": "it trains on plain text, and would train on bare queries",
    "rm": "it needs a chosen and a rejected answer to each query (ranking: true)",
    "kto": "it needs answers that are marked as good or bad",
}


def hook_parser(module: Any) -> None:
    """Make `DatasetAttr.join` keep our options, which it would drop as unknown."""
    original = module.DatasetAttr.join

    @functools.wraps(original)
    def join(self: Any, attr: dict[str, Any]) -> None:
        original(self, attr)
        if attr.get("formatting") == NAME:
            self.aft_options = parse_entry(self.dataset_name, attr)

    module.DatasetAttr.join = join


def hook_converter(module: Any) -> None:
    """Register the converter, and give it the number of each row for its messages."""
    module.DATASET_CONVERTERS[NAME] = AggregationConverter
    original = module.align_dataset

    @functools.wraps(original)
    def align_dataset(dataset: Any, dataset_attr: Any, *args: Any, **kwargs: Any) -> Any:
        if dataset_attr.formatting == NAME:
            check_hooked()
            account.begin()
            dataset = _InBatches(dataset)
        return original(dataset, dataset_attr, *args, **kwargs)

    module.align_dataset = align_dataset


def hook_loader(module: Any) -> None:
    """Refuse, before anything is read, what would not train on aggregations; tell what became."""
    original, whole = module._get_merged_dataset, module.get_dataset

    @functools.wraps(original)
    def get_merged_dataset(
        names: Any, model_args: Any, data_args: Any, training_args: Any, stage: str, **more: Any
    ) -> Any:
        for attr in module.get_dataset_list(names, data_args.dataset_dir):
            if attr.formatting == NAME:
                check_training(str(attr), stage, data_args)
        return original(names, model_args, data_args, training_args, stage, **more)

    @functools.wraps(whole)
    def get_dataset(template: Any, model_args: Any, data_args: Any, *args: Any, **more: Any) -> Any:
        tell, limit = module.logger.warning_rank0, data_args.cutoff_len
        with account.told_once(tell, limit, streaming=data_args.streaming):
            return whole(template, model_args, data_args, *args, **more)

    module._get_merged_dataset, module.get_dataset = get_merged_dataset, get_dataset


def check_training(dataset: str, stage: str, data_args: Any) -> None:
    """Check that a training would learn aggregations, and nothing else.

    Raises:
        UsageError: If not; says what to do.
    """
    if stage in NOT_FOR:
        also = " (or dpo)" if stage == "rm" else ""
        raise UsageError(
            f"data set {dataset!r}: aggregation data are for `stage: sft`, not for {stage}{also}: "
            f"{NOT_FOR[stage]}"
        )
    if getattr(data_args, "train_on_prompt", False):
        raise UsageError(
            f"data set {dataset!r}: with `train_on_prompt: true` the drafts would be learned as "
            "well; leave it out: the loss of AFT is on the aggregation only"
        )


class _InBatches:
    """A data set whose `map` hands a converter whole batches, and the rows' numbers with them.

    Numbers are counted over all workers, for messages; batches cost a third of single rows.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Any:
        return iter(self._dataset)

    def map(self, converter: AggregationConverter, **kwargs: Any) -> Any:
        kwargs |= {"batched": True, "with_indices": True}
        return self._dataset.map(converter.convert_batch, **kwargs)


class AggregationConverter:
    """Turns a record row into LLaMA-Factory's aligned row.

    Attributes:
        salt: Changes with our version, options and template text, and with what `Parts` holds:
            `datasets` names its cache after the pickled converter, and would not see these change.
    """

    def __init__(self, dataset_attr: Any, data_args: Any) -> None:
        self.options: DatasetOptions = getattr(dataset_attr, "aft_options", None) or DatasetOptions(
            str(dataset_attr)
        )
        template = self.options.aggregation.loaded
        names = [part.name for part in fields(Parts)]
        self.salt = hashlib.blake2b(
            f"{__version__} {self.options} {template.fingerprint} {names}".encode(), digest_size=8
        ).hexdigest()
        self._warn_about_template(getattr(data_args, "template", None))

    def __call__(self, example: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
        """Convert one row; one that cannot be trained on has no text, and its reason among `Parts`.

        Args:
            example: The row.
            index: Its number in the data set, from 0.
        """
        options, number = self.options, index + 1
        template, fit = options.aggregation.template, options.fit
        try:
            record = select(options.record(example), options.aggregation)
        except RecordError as error:
            problem = f"row {number}, column {error}"
            parts = Parts(options.dataset, number, template, [], fit, error.field, problem)
            return _aligned([{"role": "user", "content": ""}], "", "", parts)
        messages = list(record.messages)
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        thought = record.aggregation_thought or ""
        parts = Parts(options.dataset, number, template, record.proposals, fit, thought=thought)
        return _aligned(messages, record.aggregation, system, parts)

    def convert_batch(
        self, examples: Mapping[str, list[Any]], indices: list[int]
    ) -> dict[str, list[Any]]:
        """Convert the columns of some rows; see `__call__`."""
        names = list(examples)
        columns = zip(*(examples[name] for name in names), strict=True)
        rows = [
            self(dict(zip(names, values, strict=True)), index)
            for values, index in zip(columns, indices, strict=True)
        ]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def _warn_about_template(self, name: str | None) -> None:
        asked = self.options.aggregation
        if name is not None and asked.ablation == "none":
            problem = template_problem(name, asked.template)
            if problem is not None:
                from llamafactory.extras import logging

                logging.get_logger("llamafactory.data.converter").warning_rank0(
                    f"aft-factory: data set {self.options.dataset!r} trains {problem}"
                )


def template_problem(name: str, asked: str) -> str | None:
    """Return what is wrong with a template for rows of an aggregator prompt, and how to mend it."""
    from aft_factory.plugin.templates import aggregator_of

    inside, wanted = aggregator_of(name), load_template(asked).source

    def fits(aggregator: str | None) -> bool:  # whatever the path that it was named by
        return aggregator is not None and load_template(aggregator).source == wanted

    if fits(inside):
        return None
    chat = name.removeprefix("aft_").removesuffix(f"_{inside}")
    twins = (f"aft_{chat}", f"aft_{chat}_{asked}")
    twin = next((name for name in twins if fits(aggregator_of(name))), None)
    run = f"`aft run --template {shlex.quote(asked)}`"
    if inside is None:
        mend = f"template: {twin} encodes the same and exports one that does" if twin else ""
        return (
            f"under the template {name!r}, whose chat template takes no proposals; "
            + (mend or f"answer by {run}, which puts them into the prompt itself")
            + "."
        )
    mend = f"template: {twin}, or " if twin else ""
    return (
        f"on the aggregator prompt {asked!r}, but the chat template of {name!r} will use "
        f"{inside!r} at inference; make the two the same ({mend}the data set's "
        f'"aggregation": {{"template": "{inside}"}}), or answer by {run}.'
    )


def _aligned(
    prompt: Sequence[Message], answer: str | None, system: str, parts: Parts
) -> dict[str, Any]:
    return {
        "_prompt": prompt,
        "_response": [{"role": "assistant", "content": answer}],
        "_system": system,
        "_tools": "",
        "_images": None,
        "_videos": None,
        "_audios": None,
        PARTS: parts.dump(),
    }

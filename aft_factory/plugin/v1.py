"""LLaMA-Factory's new engine (v1, `USE_V1=1`): `converter: aggregation` in the data set YAML.

    my_aft:
      path: data/my_aft.jsonl
      source: local
      converter: aggregation
      aggregation: {template: paper, max_proposals: 5}

The converter never sees the run's tokenizer: fit rows beforehand with
`python -m aft_factory.convert ... --tokenizer MODEL --cutoff-len N`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.plugin.account import Account
from aft_factory.plugin.options import NAME, DatasetOptions, parse_entry
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.selection import conversation


def hook_converter(module: ModuleType) -> None:
    """Register the converter with its default options."""
    plugin = module.DataConverterPlugin(NAME)
    is_property = isinstance(inspect.getattr_static(plugin, "register"), property)  # 0.9.4
    decorator = plugin.register if is_property else plugin.register()
    decorator(convert_row)


def hook_data_engine(module: ModuleType) -> None:
    """Let the options of a data set's YAML block reach the converter, which sees only the row.

    Rows that cannot be trained on are taken out before the engine makes its index, and told.
    """
    convert_one = module.DataEngine._convert_data_sample
    build_index = module.DataEngine._build_data_index

    def options_of(self: Any, dataset_name: str) -> DatasetOptions | None:
        entry = self.dataset_infos[dataset_name]
        if entry.get("converter") != NAME:
            return None
        known = self.__dict__.setdefault("aft_options", {})
        if dataset_name not in known:
            known[dataset_name] = parse_entry(dataset_name, entry)
        return known[dataset_name]  # type: ignore[no-any-return]

    @functools.wraps(build_index)
    def build_data_index(self: Any) -> None:
        from llamafactory.v1.utils import logging

        for name, rows in list(self.datasets.items()):
            options = options_of(self, name)
            if options is None or self.streaming:
                continue
            good, account = _trainable(rows, options)
            for line in account.describe(name):
                logging.get_logger(module.__name__).warning_rank0(line)
            account.check(name)
            if len(good) < account.rows:
                self.datasets[name] = rows.select(good)
        build_index(self)

    @functools.wraps(convert_one)
    def convert_data_sample(self: Any, raw_sample: dict[str, Any], dataset_name: str) -> Any:
        options = options_of(self, dataset_name)
        if options is None:
            return convert_one(self, raw_sample, dataset_name)
        return {"_dataset_name": dataset_name, **convert_row(raw_sample, options)}

    module.DataEngine._build_data_index = build_data_index
    module.DataEngine._convert_data_sample = convert_data_sample


def _trainable(
    rows: Iterable[Mapping[str, Any]], options: DatasetOptions
) -> tuple[list[int], Account]:
    """Return where the rows stand that can be trained on, and the account of all."""
    good, account = [], Account()
    for index, row in enumerate(rows):
        account.rows += 1
        try:
            convert_row(row, options)
            good.append(index)
        except RecordError as error:
            account.leave_out(error.field, index + 1, f"row {index + 1}, column {error}")
    return good, account


def convert_row(
    raw_sample: Mapping[str, Any], options: DatasetOptions | None = None
) -> dict[str, Any]:
    """Turn a record row into LLaMA-Factory's v1 sample.

    Raises:
        RecordError: If it cannot be trained on.
    """
    options = options or DatasetOptions(NAME)
    record = options.record(raw_sample)
    messages = conversation(record, options.aggregation)
    assert record.aggregation is not None
    turns = [_message(m["role"], m["content"], 0.0) for m in messages]
    safe = known_markers().sanitise
    answer = _message("assistant", safe(record.aggregation), 1.0)
    if thought := (record.aggregation_thought or "").strip():
        answer["content"].insert(0, {"type": "reasoning", "value": safe(thought)})
    return {"messages": [*turns, answer]}


def _message(role: str, text: str, loss_weight: float) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": loss_weight}

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
from collections.abc import Mapping
from types import ModuleType
from typing import Any

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
    """Let the options of a data set's YAML block reach the converter, which sees only the row."""
    original = module.DataEngine._convert_data_sample

    @functools.wraps(original)
    def convert_data_sample(self: Any, raw_sample: dict[str, Any], dataset_name: str) -> Any:
        entry = self.dataset_infos[dataset_name]
        if entry.get("converter") != NAME:
            return original(self, raw_sample, dataset_name)
        known = self.__dict__.setdefault("aft_options", {})
        if dataset_name not in known:
            known[dataset_name] = parse_entry(dataset_name, entry)
        return {"_dataset_name": dataset_name, **convert_row(raw_sample, known[dataset_name])}

    module.DataEngine._convert_data_sample = convert_data_sample


def convert_row(
    raw_sample: Mapping[str, Any], options: DatasetOptions | None = None
) -> dict[str, Any]:
    """Turn a record row into LLaMA-Factory's v1 sample.

    Raises:
        RecordError: If the row cannot be used; names the data set, the row and the column.
    """
    options = options or DatasetOptions(NAME)
    start = raw_sample.get("id") or str(dict(raw_sample))[:60]
    record = options.record(raw_sample, f"row {start!r}")
    messages = conversation(record, options.aggregation)
    assert record.aggregation is not None
    turns = [_message(m["role"], m["content"], 0.0) for m in messages]
    answer = known_markers().sanitise(record.aggregation)
    return {"messages": [*turns, _message("assistant", answer, 1.0)]}


def _message(role: str, text: str, loss_weight: float) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": loss_weight}

"""Which settings a card shows. Pure.

A file of settings may hold anything: keys, headers, whole command lines. So only those that our own
commands declare are shown, without addresses and places; the rest is named to the publisher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from aft_factory.aggregate.aggregating import AggregateSettings
from aft_factory.push.public import public
from aft_factory.rank.ranking import RankSettings
from aft_factory.run.settings import RunSettings
from aft_factory.sample.drawing import SampleSettings

COMMANDS = {
    "sample": SampleSettings,
    "rank": RankSettings,
    "aggregate": AggregateSettings,
    "run": RunSettings,
}
PLACES = {"base_url", "reward_url", "proposer_urls", "ray", "journal", "rejects", "task_output"}
SHOWN = {
    field.name for kind in COMMANDS.values() for field in fields(kind) if field.metadata
} - PLACES
PARTS = {"settings", "stages", *COMMANDS}  # of a run's summary and of a pipeline's file


def shown_settings(settings: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what of settings is public, and the names of the rest.

    Example:
        >>> shown_settings({"model": "/home/me/base", "engine_args": {"seed": 1, "pin": "2"}})
        ({'model': 'base', 'engine_args': {'seed': 1}}, ['engine_args.pin'])
    """
    shown: dict[str, Any] = {}
    left_out = []
    for key, value in settings.items():
        several = value if isinstance(value, list) else [value]
        if key in PARTS and all(isinstance(part, Mapping) for part in several):
            parts = [shown_settings(part) for part in several]
            left_out += [f"{key}.{name}" for _, names in parts for name in names]
            if kept := [part for part, _ in parts if part]:
                shown[key] = kept if isinstance(value, list) else kept[0]
        elif key in SHOWN and isinstance(value, Mapping):
            # What these pass on is another program's: a text in it may be its password.
            shown[key] = public({k: v for k, v in value.items() if isinstance(v, int | float)})
            left_out += [f"{key}.{k}" for k, v in value.items() if not isinstance(v, int | float)]
        elif key in SHOWN and all(isinstance(v, str | int | float | None) for v in several):
            shown[key] = public(value)
        else:
            left_out.append(str(key))
    return shown, left_out

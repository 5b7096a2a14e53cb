"""Who decides how a benchmark's answers are decoded: its own rules, unless a flag says otherwise.

default < preset < file of settings < the benchmark < flag. Where a strategy has no layers before
the final one (`best_of_n`, `majority_vote`), what is said of sampling holds for the final layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aft_factory.inference.queries import Query
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.tasks import TASKS, Task
from aft_factory.records.record import Row
from aft_factory.run.settings import FINAL, OPTIONS, RunSettings

BY_ROW = "each row's own"  # what differs by row


def decoded(query: Query, settings: RunSettings, task: Task) -> Query:
    """Return a query with what its benchmark says of the final layer, but what flags say."""
    final = {**task.decoding, **query.final}
    return replace(query, final={k: v for k, v in final.items() if not _flagged(settings, k)})


def decoding_told(
    settings: RunSettings, name: str, decoding: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what the user is to know of it, before anything is asked.

    Args:
        settings: Of the run.
        name: Of the benchmark.
        decoding: What it says of the final layer; None: what the task of its name says.
    """
    decoding = _decoding(name) if decoding is None else decoding
    told = []
    for key, value in decoding.items():
        setting = _setting(settings, key)
        given, flag = getattr(settings, setting), f"--{setting.replace('_', '-')}"
        if given in (None, value):
            continue
        if _flagged(settings, key):
            told.append(f"{flag} {given} goes before {name}'s own {key}: {value}")
        else:
            told.append(f"{setting} {given} is not used: {name}'s {key} is {value}; {flag} sets it")
    if settings.options().get("layers") == 0:
        told += [
            f"{key} {getattr(settings, key)} is not used: it is of drafts, and there are none"
            for key in decoding
            if key in settings.by_flag and not _flagged(settings, key)
        ]
    temperature = settings.final().temperature
    if not _flagged(settings, "temperature"):
        temperature = decoding.get("temperature", temperature)
    if not _has_final(settings) and temperature in (0, BY_ROW):
        told.append(
            f"{settings.strategy}: drafts of temperature 0 are all alike, and asked for once; "
            "--temperature samples them"
        )
    return told


def used(settings: RunSettings, name: str) -> Row:
    """Return the settings that hold where none were given: the task, K, L and the final layer."""
    options = settings.options()
    found: dict[str, Any] = {"task": name}
    found |= {option: options[option] for option in OPTIONS if option in options}
    final = settings.final()
    for setting in FINAL:
        key = setting.removeprefix("final_")
        value = getattr(final, key)
        if key in _decoding(name) and not _flagged(settings, key):
            value = _decoding(name)[key]
        found[setting if _has_final(settings) else key] = value
    return found


def _decoding(name: str) -> dict[str, Any]:
    """What a benchmark says of the final layer: a value, or that each row has its own."""
    by_row = {"temperature": BY_ROW} if name == "mt_bench" else {}
    return {**TASKS[name].decoding, **by_row}


def _setting(settings: RunSettings, key: str) -> str:
    return f"final_{key}" if _has_final(settings) else key


def _has_final(settings: RunSettings) -> bool:
    return STRATEGIES[settings.strategy].has_final


def _flagged(settings: RunSettings, key: str) -> bool:
    return _setting(settings, key) in settings.by_flag

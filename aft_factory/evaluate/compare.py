"""Runs side by side: `aft eval --compare DIR...`, a row a run and a column a metric.

As in the paper's tables 1 to 3; what it took stands below, as figure 5 has it on its axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aft_factory.evaluate.results import columns, read_results, strategy_shown, value_shown
from aft_factory.records.record import Row

ERRORS = 2  # how many standard errors of a difference chance is given
WITHIN, OTHER = "~", "!"


def compare(folders: Sequence[Path]) -> list[str]:
    """Return the lines of the comparison; what differs from the first run is marked."""
    runs = {str(folder): _read(folder) for folder in folders}
    first = next(iter(runs.values()))
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    head = ["", *(f"{benchmark} {metric.partition(',')[0]}" for benchmark, metric in names)]
    rows = [head]
    for folder, run in runs.items():
        cells = [_cell(first.get(name), run.get(name)) for name in names]
        rows.append([folder, *cells])
    took = [["", "benchmark", "strategy", "requests", "tokens written", "FLOPs"]]
    for folder, run in runs.items():
        seen = {name: one for (name, _), (one, _) in run.items()}
        took += [[folder, *_took(name, one)] for name, one in seen.items()]
    legend = [
        f"{WITHIN} within {ERRORS} standard errors of the first run's",
        f"{OTHER} not the same questions as the first run's, or some without an answer",
    ]
    return [*columns(rows), *legend, "", *columns(took)]


Metric = tuple[Row, Row]  # the benchmark and the metric, as results.json has them


def _read(folder: Path) -> dict[tuple[str, str], Metric]:
    return {
        (one["benchmark"], metric["metric"]): (one, metric)
        for one in read_results(folder)["benchmarks"]
        for metric in one["metrics"]
    }


def _cell(first: Metric | None, found: Metric | None) -> str:
    if found is None:
        return "-"
    one, metric = found
    shown = value_shown(metric)
    if any(one["missing"]) or (first is not None and first[0]["data"] != one["data"]):
        return f"{shown} {OTHER}"
    if first is None or first[1] is metric:
        return shown
    return f"{shown} {WITHIN}" if _within(first[1], metric) else shown


def _within(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether two values may differ by chance; False where no error is known."""
    if a["error"] is None or b["error"] is None:
        return False
    return bool(abs(a["value"] - b["value"]) <= ERRORS * math.hypot(a["error"], b["error"]))


def _took(name: str, one: Mapping[str, Any]) -> list[str]:
    tokens, flops = one["tokens"], (one["flops"] or {}).get("exact")
    written = tokens["completion"]
    return [
        *(name, strategy_shown(one), f"{tokens['requests']:,}"),
        "?" if written is None else f"{written:,}",
        "?" if flops is None else f"{flops:.3g}",
    ]

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
from aft_factory.records.replacing import write_whole
from aft_factory.stage.plotting import csv_of

ERRORS = 2  # how many standard errors of a difference chance is given
WITHIN, OTHER = "~", "!"
SAME = ("harness", "task", "task_version", "judge", "data")  # else scores are of different things
WRITTEN = {"tokens written": "completion", "thought": "thought"}


def compare(folders: Sequence[Path], table: Path | None = None) -> list[str]:
    """Return the lines of the comparison; what differs from the first run is marked.

    Args:
        folders: Of the runs.
        table: A CSV to write, with all of the numbers.
    """
    runs = {str(folder): _read(folder) for folder in folders}
    first = next(iter(runs.values()))
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    head = ["", *(f"{benchmark} {metric.partition(',')[0]}" for benchmark, metric in names)]
    rows = [head]
    for folder, run in runs.items():
        cells = [_cell(first.get(name), run.get(name)) for name in names]
        rows.append([folder, *cells])
    took = [["", "benchmark", "strategy", "requests", *WRITTEN, "FLOPs"]]
    for folder, run in runs.items():
        seen = {name: one for (name, _), (one, _) in run.items()}
        took += [[folder, *_took(name, one)] for name, one in seen.items()]
    if table is not None:
        lines = [
            {"run": folder, **_line(first.get(name), found)}
            for folder, run in runs.items()
            for name, found in run.items()
        ]
        write_whole(table, csv_of(lines).encode("utf-8", "replace"))
    legend = [
        f"{WITHIN} within {ERRORS} standard errors of the first run's",
        f"{OTHER} not the same questions, harness or judge as the first run's, or not all of them "
        "answered and judged",
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
    return f"{value_shown(found[1])} {_mark(first, found)}".rstrip()


def _mark(first: Metric | None, found: Metric) -> str:
    one, metric = found
    if any(one["missing"]) or any(one.get("unjudged", [])):
        return OTHER
    if first is None or first[1] is metric:
        return ""
    if any(first[0].get(key) != one.get(key) for key in SAME):
        return OTHER
    return WITHIN if _within(first[1], metric) else ""


def _within(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether two values may differ by chance; False where no error is known."""
    if a["error"] is None or b["error"] is None:
        return False
    return bool(abs(a["value"] - b["value"]) <= ERRORS * math.hypot(a["error"], b["error"]))


def _took(name: str, one: Mapping[str, Any]) -> list[str]:
    tokens, flops = _tokens(one), (one["flops"] or {}).get("exact")
    return [
        *(name, strategy_shown(one), f"{one['tokens']['requests']:,}"),
        *("?" if count is None else f"{count:,}" for count in tokens.values()),
        "?" if flops is None else f"{flops:.3g}",
    ]


def _tokens(one: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the tokens written, and those of them that were thought."""
    return {name: one["tokens"][key] for name, key in WRITTEN.items()}


def _line(first: Metric | None, found: Metric) -> Row:
    """Return a metric for the CSV."""
    one, metric = found
    line = {key: metric[key] for key in ("metric", "value", "error", "error_over", "n")}
    line |= {"of": one["of"], "runs": len(metric["runs"]), "mark": _mark(first, found)}
    line |= {key: sum(one.get(key, [])) for key in ("missing", "unjudged")}
    line |= {"strategy": one["strategy"]}
    line |= {key: one["options"].get(key) for key in ("width", "layers")}
    line |= {key: one["tokens"][key] for key in ("requests", "prompt", "completion", "thought")}
    line |= {"flops": (one["flops"] or {}).get("exact")}
    line |= {key: one.get(key) for key in SAME}
    return {"benchmark": one["benchmark"], **line}

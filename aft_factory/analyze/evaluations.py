"""What `aft eval` left, for the plots that set several evaluations side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.analyze.named import named
from aft_factory.errors import UsageError
from aft_factory.evaluate.benchmarks import benchmark_named
from aft_factory.evaluate.results import read_results
from aft_factory.records.record import Row
from aft_factory.stage.declaring import REQUIRED, argument, setting
from aft_factory.stage.plotting import PlotSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationsSettings(PlotSettings):
    """Which evaluations; see the help texts."""

    runs: list[str] = argument(REQUIRED, "output of an `aft eval`, DIR or NAME=DIR", "DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointsSettings(EvaluationsSettings):
    """Which evaluations, and what of them; see the help texts."""

    benchmark: list[str] = setting([], "only these (default: all there are)", "NAME")
    metric: dict[str, str] = setting(
        {}, "of a benchmark (default: its first, such as exact_match)", "BENCHMARK=METRIC"
    )


def evaluations(settings: EvaluationsSettings) -> dict[str, Row]:
    """Return what is in the results.json of each run, by name."""
    runs: dict[str, Path] = named(settings.runs)
    settings.check([])
    return {name: read_results(path) for name, path in runs.items()}


def points(settings: PointsSettings) -> list[Row]:
    """Return a row for each benchmark of each run: what came out, and what one question took.

    Raises:
        UsageError: If a name is unknown.
    """
    rows: list[Row] = []
    first: dict[str, Row] = {}
    runs = evaluations(settings)
    known = {one["benchmark"]: 0 for content in runs.values() for one in content["benchmarks"]}
    if wrong := {*settings.benchmark, *settings.metric} - set(known):
        raise UsageError(f"no run has {', '.join(sorted(wrong))}; there are: {', '.join(known)}")
    for run, content in runs.items():
        for one in content["benchmarks"]:
            name = one["benchmark"]
            if settings.benchmark and name not in settings.benchmark:
                continue
            try:
                point, missing = _point(one, settings.metric), sum(one["missing"])
                others = first.setdefault(name, one)["data"] != one["data"]
            except KeyError as error:
                raise UsageError(
                    f"{run}: {name}: its results lack {error}, as those of another version; the "
                    "same `aft eval` with --overwrite writes them anew, from what was answered"
                ) from None
            rows.append({"run": run, "model": content.get("model"), **point})
            if others:
                _log.warning("%s: %s: not the same questions as those of the first run", run, name)
            if missing:
                _log.warning(
                    "%s: %s: %d answers are missing, and count as wrong", run, name, missing
                )
    return rows


def metric_shown(benchmark: str, metric: str) -> str:
    """Return a metric for an axis, with its unit.

    Example:
        >>> metric_shown("gsm8k", "exact_match,flexible-extract")
        'exact_match (%)'
    """
    known = benchmark_named(benchmark)
    rate = known.scale == 100 or (known.harness == "alpaca-eval" and metric.endswith("rate"))
    score = " (1 to 10)" if known.harness == "FastChat" else ""
    return metric.partition(",")[0] + (" (%)" if rate else score)


def _point(one: Row, metrics: Mapping[str, str]) -> Row:
    known = {metric["metric"]: metric for metric in one["metrics"]}
    name = metrics.get(one["benchmark"], next(iter(known)))
    if name not in known:
        raise UsageError(f"metric: {one['benchmark']} has no {name!r}, but: {', '.join(known)}")
    metric, options, flops = known[name], one["options"], one["flops"] or {}
    asked = one.get("questions", one["metrics"][0]["n"]) * len(metric["runs"])

    def each(total: Any) -> float | None:
        return None if total is None or not asked else total / asked

    return {
        "benchmark": one["benchmark"],
        "metric": name,
        "strategy": one["strategy"],
        "width": options.get("width"),
        "layers": options.get("layers"),
        "value": metric["value"],
        "error": metric["error"],
        "error_over": metric.get("error_over"),
        "repeats": len(metric["runs"]),
        "tokens_written": each(one["tokens"]["completion"]),
        "flops_exact": each(flops.get("exact")),
        "flops_appendix_c": each(flops.get("appendix_c")),
    }

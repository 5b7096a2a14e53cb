"""`results.json` and its table: what came out, how sure that is, and what it took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from aft_factory import __version__
from aft_factory.errors import UsageError
from aft_factory.evaluate.asking import Asked, Plan, seeds
from aft_factory.evaluate.benchmarks import Part, Score
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.network import without_secrets
from aft_factory.records.files import read_text
from aft_factory.records.record import Row
from aft_factory.records.replacing import write_whole
from aft_factory.run.decoding import BY_ROW
from aft_factory.run.settings import SAMPLED

FILE = "results.json"


def results_of(
    plans: Sequence[Plan],
    settings: EvalSettings,
    asked: Asked,
    scores: Mapping[tuple[str, int], Sequence[Score]],
) -> Row:
    """Return all that is to be known of an evaluation."""
    return {
        "aft_factory": __version__,
        "model": _model(settings),
        "seeds": seeds(settings),
        "benchmarks": [_benchmark(plan, settings, asked, scores) for plan in plans],
        "seconds": asked.summary["seconds"],
        "settings": without_secrets(asdict(settings)),
    }


def _model(settings: EvalSettings) -> str:
    given = [str(part) for part in (settings.model, settings.adapter) if part is not None]
    return settings.generator or "+".join(given) or "scripted"


def _benchmark(
    plan: Plan,
    settings: EvalSettings,
    asked: Asked,
    scores: Mapping[tuple[str, int], Sequence[Score]],
) -> Row:
    part, own = plan.part, plan.settings
    name = part.benchmark.name
    runs = [scores[name, seed] for seed in seeds(settings)]
    total = asked.totals[name].total
    return {
        "benchmark": name,
        "metrics": [_metric(part.benchmark.scale, same) for same in zip(*runs, strict=True)],
        "of": part.of,
        "questions": len(part.queries),
        "missing": [asked.missing[name, seed] for seed in seeds(settings)],
        "unjudged": [_unjudged(part, scores[name, seed]) for seed in seeds(settings)],
        **part.facts,
        "strategy": own.strategy,
        "options": own.options(),
        "final": _decoded(plan),
        "tokens": asdict(total),
        "flops": asked.flops[name],
        **part.more,
    }


def _unjudged(part: Part, scores: Sequence[Score]) -> int:
    """Return of how many questions the judge's answer was no judgment: the harness skips them."""
    return max(len(part.queries) - score.n for score in scores) if part.judged else 0


def _decoded(plan: Plan) -> Row:
    """Return how the final layer decoded: as the settings, the benchmark or its questions say."""
    used: dict[str, list[Any]] = {}
    for query in plan.queries(plan.settings.seed):
        for key in SAMPLED:
            if (value := query.final[key]) not in (found := used.setdefault(key, [])):
                found.append(value)
    return {key: found[0] if len(found) == 1 else BY_ROW for key, found in used.items()}


def _metric(scale: float, runs: Sequence[Score]) -> Row:
    """Return a metric: of several runs their mean, and its standard error over the runs."""
    values = [score.value * scale for score in runs]
    own = runs[0].error
    error, over = None if own is None else own * scale, "questions"
    if len(values) > 1:
        error, over = statistics.stdev(values) / math.sqrt(len(values)), "runs"
    return {
        "metric": runs[0].metric,
        "value": statistics.fmean(values),
        "error": error,
        "error_over": None if error is None else over,
        "runs": values,
        "n": runs[0].n,
    }


def write_results(folder: Path, content: Row) -> None:
    """Write the results, the last of all files."""
    data = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str)
    write_whole(folder / FILE, data + b"\n")


def read_results(folder: Path) -> Row:
    """Return the results of an evaluation, from its folder or from their file.

    Raises:
        UsageError: If there are none.
    """
    path = folder if folder.is_file() else folder / FILE
    try:
        content = orjson.loads(read_text(path))
        if content["benchmarks"] and all(one["metrics"] for one in content["benchmarks"]):
            return dict(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; has this evaluation ended?") from None
    except (ValueError, LookupError, TypeError):
        pass
    raise UsageError(f"{path}: not the results of an evaluation")


def table(content: Row) -> list[str]:
    """Return the results for a person: one line a metric."""
    lines = [("benchmark", "metric", "value", "n", "strategy", "harness")]
    for one in content["benchmarks"]:
        missing, unjudged, of = sum(one["missing"]), sum(one["unjudged"]), one["of"]
        for metric in one["metrics"]:
            n = str(metric["n"]) if metric["n"] == of else f"{metric['n']} of {of}"
            if len(metric["runs"]) > 1:
                n += f" x {len(metric['runs'])}"
            if missing:
                n += f", {missing} without an answer"
            if unjudged:
                n += f", {unjudged} without a judgment"
            shown = (one["benchmark"], metric["metric"], value_shown(metric), n)
            lines.append((*shown, strategy_shown(one), f"{one['harness']} {one['task']}"))
    return columns(lines)


def value_shown(metric: Mapping[str, Any]) -> str:
    """Return a value and its standard error."""
    error = "" if metric["error"] is None else f" ± {metric['error']:.2f}"
    return f"{metric['value']:.2f}{error}"


def strategy_shown(one: Mapping[str, Any]) -> str:
    """Return a strategy with its width and layers."""
    options = one["options"]
    if options.get("layers") == 0:
        return "L=0"
    short = {"width": "K", "layers": "L"}
    said = [f"{short.get(key, key)}={value}" for key, value in options.items()]
    return " ".join([one["strategy"], *said])


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]

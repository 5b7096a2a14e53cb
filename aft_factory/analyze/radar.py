"""MT-Bench by category, several runs on one radar chart (figure 4)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aft_factory.analyze.evaluations import EvaluationsSettings, evaluations
from aft_factory.errors import UsageError
from aft_factory.records.record import Row
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.plotting import new_figure, plain, style, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = """\
examples:
  # the paper's figure 4
  aft analyze radar SFT=eval/sft AFT=eval/aft "AFT w/ Agg.=eval/aft_k5_l2" --output radar.png
"""


def numbers(settings: EvaluationsSettings) -> list[Row]:
    """Return a row for each run and category: the mean of its judged turns over the repeats.

    Raises:
        UsageError: If a run has no MT-Bench.
    """
    rows: list[Row] = []
    for run, content in evaluations(settings).items():
        found = [one["categories"] for one in content["benchmarks"] if one.get("categories")]
        if not found:
            raise UsageError(f"{run}: no MT-Bench among its benchmarks, and so no categories")
        for category, scores in found[0].items():
            error = statistics.stdev(scores) / math.sqrt(len(scores)) if scores[1:] else None
            row: Row = {"run": run, "category": category, "score": statistics.fmean(scores)}
            rows.append(row | {"error": error, "repeats": len(scores)})
    return rows


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a closed line for each run; it is open where a category has no score."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    angles = [2 * math.pi * i / len(categories) for i in range(len(categories))]
    figure = new_figure(7, 6.5)
    axes = figure.add_subplot(projection="polar")
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        scores = {row["category"]: row["score"] for row in rows if row["run"] == run}
        values = [scores.get(category, math.nan) for category in categories]
        around = ([*angles, angles[0]], [*values, values[0]])
        axes.plot(*around, markersize=5, label=plain(run), **style(number))
    axes.set(ylim=(0, 10), xticks=angles, xticklabels=[plain(c) for c in categories])
    axes.set(theta_offset=math.pi / 2, theta_direction=-1, rlabel_position=180 / len(categories))
    axes.tick_params(axis="x", pad=18)
    axes.set_title("MT-Bench by category (judge's score, 1 to 10)", fontsize="medium", pad=20)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def analyze(settings: EvaluationsSettings) -> int:
    """Draw the chart, and print its numbers."""
    rows = numbers(settings)
    write_plot(settings.output, rows, draw)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    by_place = {(row["category"], row["run"]): row["score"] for row in rows}
    lines = [" " * 14 + "".join(f"{run:>16}" for run in runs)]
    for category in dict.fromkeys(row["category"] for row in rows):
        scores = (by_place.get((category, run)) for run in runs)
        cells = "".join(f"{'-' if score is None else f'{score:.2f}':>16}" for score in scores)
        lines.append(f"{category:<14}{cells}")
    show("\n".join(lines))
    return 0


COMMAND = PlainCommand(
    name="analyze radar",
    description="MT-Bench by category as a radar chart (figure 4).",
    examples=EXAMPLES,
    settings=EvaluationsSettings,
    do=analyze,
)

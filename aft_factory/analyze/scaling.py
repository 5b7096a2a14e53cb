"""Test-time scaling: a score by width, depth, tokens written and FLOPs (figures 3 and 8).

A series is a model and a strategy, by width of the same layers, else of the same width. Sequential
revision is propose-and-aggregate of K = 1, parallel sampling that of L = 1 (section 3.3). A plain
answer (L = 0) has no width: it is a level across the panel, and where depth begins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.analyze.evaluations import PointsSettings, metric_shown, points
from aft_factory.errors import UsageError
from aft_factory.records.record import Row
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.plotting import log_axis, new_figure, plain, style, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # figure 8: widths and depths of GSM8K; all share a journal, and so the drafts of smaller widths
  for K in 1 3 5; do aft eval gsm8k --width $K --layers 1 --repeats 3 --output eval/k$K \\
      --model saves/aft --journal eval/drafts.sqlite --split-samples; done
  aft analyze scaling eval/k1 eval/k3 eval/k5 --output scaling.png

  # figure 3: beside Best-of-N, majority vote and sequential revision
  aft analyze scaling eval/k* eval/best_of_* eval/majority_* eval/revise_* --output scaling.png
"""
AFT = "propose_and_aggregate"
SAME = ("sequential_revision", "parallel_sampling")  # as `AFT`, of one width or depth
PANELS = {
    "width": "width K (drafts)",
    "depth": "depth L (layers)",
    "tokens": "tokens written for a question",
    "flops": "FLOPs of a question",
}
PLAIN = "plain answer"


def numbers(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each point of each panel.

    Raises:
        UsageError: If two runs would be one point.
    """
    models = len({row["model"] for row in rows})
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        of_model = f"{row['model']}: " if models > 1 else ""
        for panel, series, x in _places(row):
            point = {"benchmark": row["benchmark"], "metric": row["metric"], "panel": panel}
            point |= {"series": f"{of_model}{series}", "x": x, "value": row["value"]}
            point |= {name: row[name] for name in ("error", "error_over", "repeats", "run")}
            key: tuple[Any, ...] = (row["benchmark"], panel, point["series"], x)
            if panel not in ("width", "depth"):
                key = (*key, row["run"])  # two may have taken as many
            if key in found:
                raise UsageError(
                    f"{found[key]['run']} and {row['run']} are one point ({row['benchmark']}, "
                    f"{panel} {x} of {point['series']}); leave one out: repeats of a run are "
                    "`aft eval --repeats`, and models of one name get others by its --generator"
                )
            found[key] = point
    _begin_depths(found)
    order = list(PANELS)
    return sorted(
        found.values(), key=lambda one: (order.index(one["panel"]), one["series"], one["x"] or 0)
    )


def _places(row: Row) -> Iterator[tuple[str, str, float | None]]:
    """Go through the panels that a run has a place in: the panel, its series there, and where."""
    width, layers = row["width"], row["layers"]
    strategy = AFT if row["strategy"] in SAME else row["strategy"]
    name = strategy.replace("_", " ")
    by_width = by_depth = name
    if layers == 0:
        by_depth = PLAIN
        yield "width", PLAIN, None
        yield "depth", PLAIN, 0
    elif layers is not None:
        by_width, by_depth = f"{name}, L={layers}", f"{name}, K={width}"
        if strategy == AFT:
            by_width = "parallel sampling (L=1)" if layers == 1 else by_width
            by_depth = "sequential revision (K=1)" if width == 1 else by_depth
        yield "depth", by_depth, layers
    if layers != 0 and width is not None:
        yield "width", by_width, width
    for panel, measure in (("tokens", "tokens_written"), ("flops", "flops_exact")):
        if row[measure] is not None:
            yield panel, by_depth, row[measure]


def _begin_depths(found: dict[tuple[Any, ...], Row]) -> None:
    """Let the depths of a model begin with its plain answer, which is the same for each width."""
    depths = [key for key in found if key[1] == "depth"]
    for start in (key for key in depths if key[2].endswith(PLAIN)):
        benchmark, _, series, _ = start
        model = series.removesuffix(PLAIN)
        grown = {
            key[2]
            for key in depths
            if key[0] == benchmark and key[2].startswith(model) and key != start
        }
        for name in sorted(grown):
            found[benchmark, "depth", name, 0] = found[start] | {"series": name}
        if grown:
            del found[start]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a line of panels for each benchmark."""
    benchmarks = list(dict.fromkeys((row["benchmark"], row["metric"]) for row in rows))
    panels = [panel for panel in PANELS if any(row["panel"] == panel for row in rows)]
    names = list(dict.fromkeys(row["series"] for row in rows))
    figure = new_figure(4.2 * len(panels), 3.4 * len(benchmarks) + 0.4 + 0.22 * len(names) / 3)
    grid = figure.subplots(len(benchmarks), len(panels), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for line, (benchmark, metric) in zip(grid, benchmarks, strict=True):
        line[0].set_ylabel(plain(f"{benchmark}: {metric_shown(benchmark, metric)}"))
        for axes, panel in zip(line, panels, strict=True):
            own = [row for row in rows if (row["benchmark"], row["panel"]) == (benchmark, panel)]
            for series in dict.fromkeys(row["series"] for row in own):
                shown = style(names.index(series))
                at = [row for row in own if row["series"] == series]
                if at[0]["x"] is None:
                    level = axes.axhline(at[0]["value"], color=shown["color"], linestyle="--")
                    handles.setdefault(series, level)
                    continue
                errors = [row["error"] or 0 for row in at]
                place = ([row["x"] for row in at], [row["value"] for row in at], errors)
                handles[series] = axes.errorbar(*place, capsize=3, markersize=5, **shown)
            axes.set_xlabel(PANELS[panel])
            if panel in ("width", "depth"):
                axes.xaxis.get_major_locator().set_params(integer=True)
            else:
                log_axis(axes)
            axes.grid(alpha=0.3)
    labels = [plain(name) for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=3)
    return figure


def analyze(settings: PointsSettings) -> int:
    """Draw the curves, and tell what is on them."""
    found = points(settings)
    for row in found:
        if row["flops_exact"] is None:
            _log.warning("%s: %s: FLOPs are not known, and not drawn", row["run"], row["benchmark"])
    rows = numbers(found)
    write_plot(settings.output, rows, draw)
    lines = [f"{'panel':<8}{'x':>12}{'value':>10}{'error':>8}  series"]
    for row in rows:
        x = "-" if row["x"] is None else f"{row['x']:.4g}"
        error = "-" if row["error"] is None else f"{row['error']:.2f}"
        told = f"{row['benchmark']}: {row['series']}"
        lines.append(f"{row['panel']:<8}{x:>12}{row['value']:>10.2f}{error:>8}  {told}")
    show("\n".join(lines))
    return 0


COMMAND = PlainCommand(
    name="analyze scaling",
    description="Scores by width, depth, tokens and FLOPs (figures 3 and 8).",
    examples=EXAMPLES,
    settings=PointsSettings,
    do=analyze,
)

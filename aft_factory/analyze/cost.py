"""What a score costs: each run's metric against the FLOPs of a question (table 5).

Exactly, by the tokens that were computed, and by the paper's appendix C.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.analyze.evaluations import PointsSettings, metric_shown, points
from aft_factory.errors import UsageError
from aft_factory.evaluate.results import columns, strategy_shown, value_shown
from aft_factory.records.record import Row
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.plotting import log_axis, new_figure, plain, style, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # the paper's table 5: Best-of-N and propose-and-aggregate, SFT and AFT
  aft analyze cost sft=eval/sft sft_bon=eval/sft_bon aft=eval/aft aft_agg=eval/aft_k5_l2 \\
      --output cost.png
"""
FLOPS = {"flops_exact": "tokens computed", "flops_appendix_c": "appendix C"}


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each benchmark: filled by the tokens computed, hollow by appendix C."""
    benchmarks = list(dict.fromkeys((row["benchmark"], row["metric"]) for row in rows))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure = new_figure(5.5 * len(benchmarks) + 0.5, 5.2)
    panels = figure.subplots(1, len(benchmarks), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (benchmark, metric) in zip(panels, benchmarks, strict=True):
        for row in rows:
            if (row["benchmark"], row["metric"]) != (benchmark, metric):
                continue
            own = style(runs.index(row["run"]))
            shown: dict[str, Any] = {**own, "linestyle": "", "capsize": 3}
            x = [row[name] for name in FLOPS]
            if None not in x:
                axes.plot(x, [row["value"]] * 2, color=own["color"], linewidth=0.8, alpha=0.6)
            for name, fill in zip(FLOPS, (own["color"], "white"), strict=True):
                if row[name] is not None:
                    y = {"y": row["value"], "yerr": row["error"]}
                    bar = axes.errorbar(row[name], **y, markerfacecolor=fill, **shown)
                    handles.setdefault(row["run"], bar)
        label = metric_shown(benchmark, metric)
        log_axis(axes)
        axes.set(xlabel="FLOPs of one question", ylabel=plain(label))
        axes.set_title(plain(benchmark), fontsize="medium")
        axes.grid(alpha=0.3)
    figure.suptitle("filled: by the tokens computed; hollow: by appendix C", fontsize="medium")
    labels = [plain(run) for run in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=3)
    return figure


def analyze(settings: PointsSettings) -> int:
    """Draw, and print the table."""
    rows = points(settings)
    for row in rows:
        unknown = [what for name, what in FLOPS.items() if row[name] is None]
        if unknown:
            _log.warning(
                "%s: %s: FLOPs by %s not known", row["run"], row["benchmark"], " and ".join(unknown)
            )
    if all(row[name] is None for row in rows for name in FLOPS):
        raise UsageError(
            "no run knows its FLOPs: `aft eval` counts them where it knows the model's size, "
            "as by --model FOLDER or, for a server, --tokenizer FOLDER"
        )
    write_plot(settings.output, rows, draw)
    lines = [["run", "benchmark", "metric", "strategy", "value", "FLOPs", "by appendix C"]]
    for row in rows:
        options = {k: row[k] for k in ("width", "layers") if row[k] is not None}
        strategy = strategy_shown({"strategy": row["strategy"], "options": options})
        flops = ["?" if row[name] is None else f"{row[name]:.3g}" for name in FLOPS]
        shown = [row["run"], row["benchmark"], row["metric"], strategy, value_shown(row)]
        lines.append([*shown, *flops])
    show("\n".join([*columns(lines), "(FLOPs: of one question)"]))
    return 0


COMMAND = PlainCommand(
    name="analyze cost",
    description="Scores against FLOPs, exact and by appendix C (table 5).",
    examples=EXAMPLES,
    settings=PointsSettings,
    do=analyze,
)

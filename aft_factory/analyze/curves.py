r"""Training curves side by side, raw and smoothed, the fluctuation as a number (figure 6).

smoothed       exponential moving average of weight w, without the bias of its start, as in
               TensorBoard: m_t = w m_(t-1) + (1 - w) l_t,  shown m_t / (1 - w^t); w is as in
               LLaMA-Factory's own plot, 1.8 / (1 + exp(-n / 20)) - 0.9 for n steps of the longest
fluctuation    sqrt( sum of (l_(t+1) - l_t)^2 / (2 (n - 1)) ): the standard deviation of a loss
               about its course, whatever that is and however it is smoothed (von Neumann's)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Literal

from aft_factory.analyze.named import named
from aft_factory.analyze.training_log import TrainingLog, read_log
from aft_factory.records.record import Row
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.declaring import REQUIRED, argument, setting
from aft_factory.stage.plotting import PlotSettings, new_figure, plain, style, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # SFT and AFT side by side
  aft analyze curves saves/sft_llama saves/aft_llama --output curves.png

  # under names of your own, less smoothed
  aft analyze curves SFT=saves/sft_llama AFT=saves/aft_llama --output curves.png --smoothing 0.6
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvesSettings(PlotSettings):
    """What is drawn; see the help texts."""

    runs: list[str] = argument(
        REQUIRED, "output_dir of a training by LLaMA-Factory, DIR or NAME=DIR", "DIR"
    )
    metric: Literal["loss", "eval_loss"] = setting("loss", "which loss")
    smoothing: float | None = setting(
        None, "weight of what was before, from 0 to below 1 (default: LLaMA-Factory's)", "W"
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = PlotSettings.problems(self)
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            problems.append(f"smoothing: expected a number from 0 to below 1, got {self.smoothing}")
        return problems


def smoothed(losses: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average of losses, without the bias of its start."""
    found, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * loss
        found.append(mean / (1 - weight**count))
    return found


def fluctuation(losses: Sequence[float]) -> float | None:
    """Return the standard deviation of losses about their course; None of fewer than two.

    Example:
        >>> fluctuation([3.0, 2.0, 3.0, 2.0])
        0.7071067811865476
    """
    steps = [(after - before) ** 2 for before, after in pairwise(losses)]
    return math.sqrt(sum(steps) / (2 * len(steps))) if steps else None


def numbers(logs: Mapping[str, TrainingLog], settings: CurvesSettings) -> list[Row]:
    """Return the numbers of the plot, a row a run and step."""
    rows: list[Row] = []
    weight = settings.smoothing
    if weight is None:
        weight = 1.8 / (1 + math.exp(-max(len(log.steps) for log in logs.values()) / 20)) - 0.9
    for name, log in logs.items():
        about = fluctuation(log.losses)
        means = smoothed(log.losses, weight)
        for step, loss, mean in zip(log.steps, log.losses, means, strict=True):
            row: Row = {"run": name, "step": step, settings.metric: loss, "smoothed": mean}
            rows.append(row | {"smoothing": weight, "fluctuation": about})
    return rows


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the curves: raw ones pale, smoothed ones over them."""
    metric = list(rows[0])[2]
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row["run"] for row in rows)):
        own = [row for row in rows if row["run"] == name]
        steps, shown = [row["step"] for row in own], style(number)
        colour = shown["color"]
        about = own[0]["fluctuation"]
        label = plain(name) + ("" if about is None else f" (fluctuation {about:.3g})")
        axes.plot(steps, [row[metric] for row in own], color=colour, alpha=0.3, linewidth=1)
        axes.plot(
            *(steps, [row["smoothed"] for row in own]),
            color=colour,
            linestyle=shown["linestyle"],
            label=label,
        )
        if len(own) == 1:
            axes.plot(steps, [own[0][metric]], "o", color=colour)
    axes.set(xlabel="optimizer step", ylabel=f"{metric} (nats per target token)")
    axes.set_title(f"pale: as logged; smoothed by {rows[0]['smoothing']:.3g}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def analyze(settings: CurvesSettings) -> int:
    """Read the logs, draw, and tell the numbers of each run."""
    runs = named(settings.runs)
    settings.check([])
    logs = {name: read_log(path, settings.metric) for name, path in runs.items()}
    for name, log in logs.items():
        for what in log.left_out:
            _log.warning("%s: left out: %s", name, what)
    intervals = {
        median(b - a for a, b in pairwise(log.steps)) for log in logs.values() if log.steps[1:]
    }
    if len(intervals) > 1:
        _log.warning(
            "the runs were logged every %s steps: a mean over more steps fluctuates less, so their "
            "fluctuations cannot be compared; set logging_steps alike",
            " and ".join(f"{interval:g}" for interval in sorted(intervals)),
        )
    rows = numbers(logs, settings)
    write_plot(settings.output, rows, draw)
    lines = [f"{'run':<24}{'steps':>8}{'first':>10}{'last':>10}{'fluctuation':>13}"]
    for name, log in logs.items():
        own = [row for row in rows if row["run"] == name]
        about = own[0]["fluctuation"]
        cells = f"{len(own):>8}{log.losses[0]:>10.4g}{own[-1]['smoothed']:>10.4g}"
        lines.append(
            f"{name:<24}{cells}" + (f"{about:>13.4g}" if about is not None else f"{'-':>13}")
        )
    show("\n".join([*lines, "(last: smoothed)"]))
    return 0


COMMAND = PlainCommand(
    name="analyze curves",
    description="Training curves of LLaMA-Factory side by side (figure 6, left).",
    examples=EXAMPLES,
    settings=CurvesSettings,
    do=analyze,
)

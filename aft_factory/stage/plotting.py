"""Plots of numbers: PNG and SVG, and the numbers as CSV, from which both are drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.errors import needing
from aft_factory.records.record import Row
from aft_factory.records.replacing import check_writable, replacing, write_whole
from aft_factory.stage.declaring import REQUIRED, setting, switch
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.reading import Settings, check_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; without yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

Draw = Callable[[Sequence[Row]], "Figure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotSettings(Settings):
    """Where a plot goes; see the help texts."""

    output: Path = setting(REQUIRED, "the plot; also .svg and .csv", "OUT.png", writes=True)
    overwrite: bool = switch("replace existing outputs")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        return plot_problems("--output", self.output)

    def check(self, reads: Sequence[str]) -> None:
        """Check, before work starts, that the plot can be drawn and written.

        Raises:
            MissingPackage: If matplotlib is not installed.
            UsageError: If it would replace something.
        """
        need_matplotlib("a plot")
        files = plot_files(self.output)
        check_paths(reads, [("--output", path) for path in files])
        for path in files:
            check_writable(path, overwrite=self.overwrite)

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        return Leaves(plot_files(self.output))


def plot_problems(flag: str, path: Path | None) -> list[str]:
    """Return what is wrong with the name of a plot."""
    wrong = path is not None and path.suffix != ".png"
    return [f"{flag} {path}: expected a name that ends in .png"] if wrong else []


def plot_files(path: Path) -> list[Path]:
    """Return the files that `write_plot` writes."""
    return [path, path.with_suffix(".svg"), path.with_suffix(".csv")]


def need_matplotlib(feature: str) -> None:
    """Check that it can be drawn, before work starts.

    Raises:
        MissingPackage: If matplotlib is not installed.
    """
    with needing(feature, "matplotlib"):
        import matplotlib  # noqa: F401


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which no display and no other one knows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_plot(path: Path, rows: Sequence[Row], draw: Draw) -> None:
    """Write numbers, and the plot of them, which is drawn from nothing else.

    Equal numbers give equal bytes: no date, no random names.

    Args:
        path: The PNG file; SVG and CSV go beside it.
        rows: The numbers: of equal columns; what is not known is None.
        draw: From the rows to the figure.
    """
    from matplotlib import rc_context

    png, svg, table = plot_files(path)
    with rc_context({"svg.hashsalt": "aft"}):
        figure = draw(rows)
        for file, kind, metadata in ((png, "png", None), (svg, "svg", {"Date": None})):
            with replacing(file) as aside:
                figure.savefig(aside, format=kind, dpi=150, metadata=metadata)
    write_whole(table, csv_of(rows).encode("utf-8", "replace"))


def csv_of(rows: Sequence[Row]) -> str:
    """Return rows as CSV, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def style(number: int) -> dict[str, Any]:
    """Return colour, marker and line of one of several, by its number from 0.

    Example:
        >>> style(7)
        {'color': '#0072B2', 'marker': 's', 'linestyle': '--'}
    """
    turn, colour = divmod(number, len(COLOURS))
    marker = MARKERS[(colour + turn) % len(MARKERS)]
    return {"color": COLOURS[colour], "marker": marker, "linestyle": LINES[turn % len(LINES)]}


def log_axis(axes: Axes) -> None:
    """Make x logarithmic, with ticks that are told at any number of decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain(text: Any) -> str:
    """Keep matplotlib from reading formulas in a name, and hidden lines in one that begins so."""
    escaped = str(text).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped

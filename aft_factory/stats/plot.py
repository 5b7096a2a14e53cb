"""The histogram of `python -m aft_factory.stats --plot`: as PNG, as SVG, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aft_factory.records.record import Row
from aft_factory.stage.plotting import COLOURS, new_figure, plain, write_plot
from aft_factory.stats.counts import LIMITS
from aft_factory.stats.distributions import Distribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60


def histogram(parts: Mapping[str, Distribution]) -> tuple[int, dict[str, list[int]]]:
    """Return the width of a bin in tokens, and for each part how many texts are in each bin.

    The last bin holds all that is longer than 99.5% of the rows: one huge row would else squeeze
    all others into a line.
    """
    rows = sorted(parts["row"].counts.elements()) or [0]
    width = max(1, -(-int(rows[int(0.995 * (len(rows) - 1))] + 1) // BINS))
    bins = {}
    for name, part in parts.items():
        bins[name] = [0] * BINS
        for length, count in part.counts.items():
            bins[name][min(int(length) // width, BINS - 1)] += count
    return width, bins


def write_histogram(path: Path, parts: Mapping[str, Distribution], how: str) -> None:
    """Draw the lengths of whole rows above those of their parts.

    Args:
        path: The PNG file; SVG and CSV go beside it.
        parts: Distributions by name, with one named `row`.
        how: Where the lengths come from, for the title.
    """
    width, bins = histogram(parts)
    edges = [width * i for i in range(BINS)]
    ends = [*edges[1:], None]  # the last bin has no end
    rows = [
        {"part": name, "tokens_from": start, "tokens_below": end, "count": count}
        for name, counts in bins.items()
        for start, end, count in zip(edges, ends, counts, strict=True)
    ]
    write_plot(path, rows, partial(_draw, how=how))


def _draw(rows: Sequence[Row], how: str) -> Figure:
    bins: dict[str, list[int]] = {}
    for row in rows:
        bins.setdefault(row["part"], []).append(row["count"])
    edges = [row["tokens_from"] for row in rows[:BINS]]
    figure = new_figure(8, 6)
    above, below = figure.subplots(2, sharex=True)
    above.bar(edges, bins["row"], edges[1], align="edge", color=COLOURS[0])
    for limit in LIMITS:
        if limit < edges[-1]:
            above.axvline(limit, color=COLOURS[1], linewidth=1, linestyle="--")
    above.set(ylabel="rows", title="training rows; dashed: 2048, 4096 and 8192 tokens")
    others = [name for name in bins if name != "row"]
    for name, colour in zip(others, COLOURS, strict=False):
        below.step(edges, bins[name], where="post", label=name, color=colour)
    label = f"tokens (the last bin: and more; {plain(how)})"
    below.set(ylabel="texts", xlabel=label, yscale="symlog", ylim=(0, None))
    below.legend()
    return figure

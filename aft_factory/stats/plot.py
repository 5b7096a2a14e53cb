"""The histogram of `python -m aft_factory.stats --plot`: as PNG, as SVG, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aft_factory.errors import MissingPackage
from aft_factory.records.files import replacing, write_whole
from aft_factory.stats.counts import LIMITS, Distribution

BINS = 60


def plot_files(path: Path) -> list[Path]:
    """Return the files that `write_plot` writes."""
    return [path, path.with_suffix(".svg"), path.with_suffix(".csv")]


def need_matplotlib() -> None:
    """Check that it can be drawn, before work starts.

    Raises:
        MissingPackage: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackage("--plot", "matplotlib") from None


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


def write_plot(path: Path, parts: Mapping[str, Distribution], how: str) -> None:
    """Draw the lengths of whole rows above those of their parts.

    Args:
        path: The PNG file; SVG and CSV go beside it.
        parts: Distributions by name, with one named `row`.
        how: Where the lengths come from, for the title.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width, bins = histogram(parts)
    edges = [width * i for i in range(BINS)]
    lines = ["part,tokens_from,tokens_below,count"]
    for name, counts in bins.items():
        ends = [*map(str, edges[1:]), ""]  # the last bin has no end
        rows = zip(edges, ends, counts, strict=True)
        lines += [f"{name},{start},{end},{count}" for start, end, count in rows]
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 6), layout="constrained")
    above.bar(edges, bins["row"], width, align="edge", color="tab:blue")
    for limit in LIMITS:
        if limit < edges[-1]:
            above.axvline(limit, color="tab:red", linewidth=1, linestyle="--")
    above.set(ylabel="rows", title="training rows; dashed: 2048, 4096 and 8192 tokens")
    for name, counts in bins.items():
        if name != "row":
            below.step(edges, counts, where="post", label=name)
    label = f"tokens (the last bin: and more; {_plain(how)})"
    below.set(ylabel="texts", xlabel=label, yscale="symlog", ylim=(0, None))
    below.legend()
    png, svg, csv = plot_files(path)
    # The same numbers give the same bytes: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": "aft"}):
        for file, kind, metadata in ((png, "png", None), (svg, "svg", {"Date": None})):
            with replacing(file) as aside:
                figure.savefig(aside, format=kind, dpi=150, metadata=metadata)
    plt.close(figure)
    write_whole(csv, ("\n".join(lines) + "\n").encode())


def _plain(text: str) -> str:
    """Keep matplotlib from reading formulas in a name."""
    return text.replace("$", r"\$")

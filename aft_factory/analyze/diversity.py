"""Diversity of drafts against their quality: what subsets of drafts lead to (figure 7).

Of each query's subsets, Vendi scores, mean rewards of the drafts and rewards of the aggregations
become ranks from 1 to 10 (as many in each, equal values in the same), as rewards of two queries
cannot be compared. A cell is the mean rank of the aggregations of all subsets in it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, fmean
from typing import TYPE_CHECKING, Any

from aft_factory.analyze.subsets import SubsetSettings, build_stage
from aft_factory.records.record import Row
from aft_factory.records.tables import read_rows
from aft_factory.stage.console import show
from aft_factory.stage.job_command import JobCommand
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.plotting import need_matplotlib, new_figure, plot_files, write_plot
from aft_factory.stage.reading import check_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  # figure 7: 100 queries, 5 of 10 drafts; what would it take? (25,200 aggregations)
  aft analyze diversity alpaca_eval.json --limit 100 --output diversity.jsonl --dry-run \\
      --model saves/aft_llama_merged --reward-model sfairXC/FsfairX-LLaMA3-RM-v0.1

  # the run itself; killed, the same command goes on
  aft analyze diversity alpaca_eval.json --limit 100 --output diversity.jsonl \\
      --base-url http://gpu1:8000/v1 --reward-url http://gpu2:8000 --reward-tokenizer my/rm

  # rows and plot from the journal alone
  aft analyze diversity alpaca_eval.json --limit 100 --output diversity.jsonl --export
"""
RANKS = 10
MEASURES = {"quality": "quality", "vendi": "diversity", "score": "aggregation"}


def ranks(values: Sequence[float]) -> list[int]:
    """Return the rank of each value among all, from 1 to 10: 1 + 10 (r - 1) / n, rounded down.

    r is its place from 1, of equal values the mean of theirs.

    Example:
        >>> ranks([0.3, 0.1, 0.2, 0.2])
        [8, 1, 4, 4]
    """
    ordered, count = sorted(values), len(values)
    # Twice (r - 1), which is whole.
    places = [bisect_left(ordered, value) + bisect_right(ordered, value) - 1 for value in values]
    return [1 + RANKS * place // (2 * count) for place in places]


def ranked(rows: Iterable[Row]) -> tuple[list[dict[str, int]], int]:
    """Return the ranks of all subsets of all queries, and how many subsets were left out."""
    found: list[dict[str, int]] = []
    lost = 0
    for row in rows:
        known = [
            group for group in row["groups"] if all(group[name] is not None for name in MEASURES)
        ]
        lost += len(row["groups"]) - len(known)
        columns = [ranks([group[name] for group in known]) for name in MEASURES]
        names = MEASURES.values()
        found += [dict(zip(names, one, strict=True)) for one in zip(*columns, strict=True)]
    return found, lost


def numbers(groups: Sequence[Mapping[str, int]]) -> list[Row]:
    """Return a row for each cell of the heat map, also for one that no subset is in."""
    cells: dict[tuple[int, int], list[int]] = {}
    for group in groups:
        place = (group["diversity"], group["quality"])
        cells.setdefault(place, []).append(group["aggregation"])
    return [
        {
            "quality_rank": quality,
            "diversity_rank": diversity,
            "subsets": len(found := cells.get((diversity, quality), [])),
            "aggregation_rank": fmean(found) if found else None,
        }
        for diversity in range(1, RANKS + 1)
        for quality in range(1, RANKS + 1)
    ]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the heat map; a lighter cell is a better one, an empty cell is grey."""
    known = [row["aggregation_rank"] for row in rows if row["subsets"]]
    low, high = min(known), max(known)
    grid = [[float("nan")] * RANKS for _ in range(RANKS)]
    figure = new_figure(7, 6)
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    for row in (row for row in rows if row["subsets"]):
        value, x, y = row["aggregation_rank"], row["quality_rank"], row["diversity_rank"]
        grid[y - 1][x - 1] = value
        dark = value < (low + high) / 2
        axes.text(x, y, f"{value:.1f}", ha="center", va="center", size=7, color="wk"[not dark])
    extent = (0.5, RANKS + 0.5, 0.5, RANKS + 0.5)
    image = axes.imshow(grid, "viridis", origin="lower", extent=extent)
    figure.colorbar(image, label="aggregation: mean rank (1 to 10)", shrink=0.85)
    axes.set(xticks=range(1, RANKS + 1), yticks=range(1, RANKS + 1))
    axes.set(xlabel="quality of the drafts: rank of their mean reward")
    axes.set(ylabel="diversity of the drafts: rank of their Vendi score")
    axes.set_title("lighter: better aggregations; ranks within each query", fontsize="medium")
    return figure


@dataclass(frozen=True, kw_only=True)
class DiversityCommand(JobCommand[SubsetSettings]):
    """A job, and the plot of what it wrote."""

    def _run(self, given: Mapping[str, Any]) -> int:
        args = self._arguments(given)
        if args.output is not None and not args.dry_run:
            need_matplotlib("a plot")
            written = [("the plot", path) for path in plot_files(args.output.with_suffix(".png"))]
            check_paths([], [("--output", args.output), *written])
        code = super()._run(given)
        if args.output is not None and not args.dry_run and code != 130 and args.output.exists():
            plot(args.output)
        return code

    def leaves(self, given: Mapping[str, Any], settings: SubsetSettings) -> Leaves:
        """Tell what it leaves: also the plot."""
        job = JobCommand.leaves(self, given, settings)
        files = plot_files(Path(given["output"]).with_suffix(".png"))
        return Leaves([*job.outputs, *files], job.traces, summary=job.summary)


def plot(output: Path) -> None:
    """Draw the heat map of an output, beside it, and tell what decides."""
    groups, lost = ranked(line.value for line in read_rows(str(output)))
    if lost:
        _log.warning(
            "%d subsets left out of the plot: a draft or the aggregation has no score", lost
        )
    if not groups:
        _log.warning("no plot: no subset has all of its scores")
        return
    target = output.with_suffix(".png")
    write_plot(target, numbers(groups), draw)
    told = [f"{len(groups):,} subsets in {target}"]
    for name in ("quality", "diversity"):
        a, b = [group[name] for group in groups], [group["aggregation"] for group in groups]
        if len({*a}) > 1 and len({*b}) > 1:
            told.append(f"rank correlation of {name} and aggregation: {correlation(a, b):.3f}")
    show("\n".join(told))


COMMAND = DiversityCommand(
    name="analyze diversity",
    description="Diversity of drafts against their quality (figure 7).",
    examples=EXAMPLES,
    settings=SubsetSettings,
    build_stage=build_stage,
)

"""The settings of `python -m aft_factory.stats`, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aft_factory.stage.declaring import REQUIRED, argument, setting, switch, written
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.plotting import plot_files, plot_problems
from aft_factory.stage.reading import AGGREGATOR, INPUTS, ReadSettings, at_least
from aft_factory.stage.shard import shard_path
from aft_factory.stage.tokenizing import TokenizerSettings

SAMPLE = 1000  # rows: some seconds; 95% of shares are then within 3.1 points of all rows'


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSettings(TokenizerSettings, ReadSettings):
    """What is counted; see the help texts."""

    input: str = argument(REQUIRED, f"records ({INPUTS})", "FILE")
    tokenizer: str | None = setting(
        None, "count tokens with it instead of estimating", "DIR_OR_NAME"
    )
    template: str = setting("paper", AGGREGATOR)
    chat_template: str = setting(
        "auto", "of the rows: llama3, mistral, own (the tokenizer's), one of its names or a path"
    )
    sample: int = setting(SAMPLE, "count tokens of N rows, drawn by their ids; 0 takes all", "N")
    json: Path | None = written("write all numbers there", "OUT")
    plot: Path | None = written("draw token lengths; also .svg and .csv", "OUT.png")
    overwrite: bool = switch("replace existing outputs")
    quiet: bool = switch("no progress bar")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = ReadSettings.problems(self) + at_least(self, ("sample", 0))
        problems += self.tokenizer_problems(self.tokenizer)
        return problems + plot_problems("--plot", self.plot)

    @property
    def outputs(self) -> list[tuple[str, Path]]:
        """By flag, all files that are written."""
        numbers = [] if self.json is None else [("--json", self.json)]
        plots = [] if self.plot is None else plot_files(self.plot)
        return [*numbers, *(("--plot", path) for path in plots)]

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        beside = [] if self.json is None or self.shard is None else [shard_path(self.json)]
        return Leaves([path for _, path in self.outputs], beside)

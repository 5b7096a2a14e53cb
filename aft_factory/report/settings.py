"""The settings of `python -m aft_factory.report`, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aft_factory.stage.declaring import REQUIRED, argument, setting, switch
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.reading import INPUTS, Settings, at_least, check_paths

MOST = 10_000  # queries: their list is scrolled and searched without a wait


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings(Settings):
    """What a page is made of; see the help texts."""

    input: str = argument(REQUIRED, "output of `aft run` or `aft eval`, or a journal", "OUTPUT")
    output: Path = setting(REQUIRED, "the page", "PAGE.html", writes=True)
    data: str | None = setting(
        None,
        f"rows that were asked, for their references and order: {INPUTS} (default: the run's own "
        "input, where it still is)",
        "FILE",
    )
    most: int = setting(MOST, "queries to have in the page, the first N; numbers are of all", "N")
    overwrite: bool = switch("replace an existing page")
    quiet: bool = switch("no progress bar")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = Settings.problems(self) + at_least(self, ("most", 1))
        if self.output.suffix not in (".html", ".htm"):
            problems.append(f"--output {self.output}: expected a name that ends in .html")
        return problems

    def check_paths(self) -> None:
        """Refuse to write over what is read."""
        reads = [self.input, *([] if self.data is None else [self.data])]
        check_paths(reads, [("--output", self.output)])

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        return Leaves([self.output])

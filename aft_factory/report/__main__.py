"""The command `python -m aft_factory.report`: parse, call, print."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from aft_factory.records.replacing import check_writable, replacing
from aft_factory.report.page import Page
from aft_factory.report.reporting import told, write_page
from aft_factory.report.settings import ReportSettings
from aft_factory.report.source import open_journal, source_of
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.progress import progress_bar

EXAMPLES = """\
examples:
  # read what a run drafted: one page, to be opened in a browser or sent to somebody
  aft report out.jsonl --output report.html

  # of a run that is under way or was killed; the rows give order and references
  aft report out.jsonl.journal --data gsm8k.jsonl --output report.html --overwrite

  # of an evaluation
  aft report eval/aft --output report.html
"""


def report(settings: ReportSettings) -> int:
    """Write the page; return 0."""
    settings.check_paths()
    check_writable(settings.output, overwrite=settings.overwrite)
    path = Path(settings.input)
    if path.is_dir():  # of an evaluation
        path = path / "answers.jsonl"
    with open_journal(path) as journal:
        source = source_of(journal, path, settings.data)
        progress = partial(progress_bar, quiet=settings.quiet, unit=" queries", desc="report")
        with replacing(settings.output) as aside, aside.open("wb") as file:
            page = Page(file, settings.most)
            numbers = write_page(source, page, progress)
    show("\n".join(told(source, numbers, page, settings.output)))
    if page.full is not None:
        left = numbers.totals.read - page.queries
        print(
            f"warning: the page is full at {page.full}: {left:,} queries are not in it, and "
            "only counted in its numbers",
            file=sys.stderr,
        )
    return 0


COMMAND = PlainCommand(
    name="report",
    description="Make a page to read a run's drafts on.",
    examples=EXAMPLES,
    settings=ReportSettings,
    do=report,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

"""What stand-ins are made of: the rows that a stage would leave, in a pipeline's dry run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN
from aft_factory.errors import RecordError
from aft_factory.records.record import Record, record_from_row
from aft_factory.records.tables import Line
from aft_factory.stage.job_settings import AskSettings
from aft_factory.stage.reading import ReadSettings


def filler(settings: AskSettings) -> str:
    """Return a text of the length to reckon with."""
    return "0" * CHARACTERS_PER_TOKEN * min(settings.draft_tokens, settings.max_tokens)


def records(
    lines: Iterable[Line], settings: ReadSettings, *, proposals: bool = True
) -> Iterator[Record]:
    """Go through the rows that a stage can use; others it rejects.

    Args:
        lines: What it would read.
        settings: Name the columns.
        proposals: Whether it needs some.
    """
    for line in lines:
        try:
            record = record_from_row(line.value, settings.columns())
        except RecordError:
            continue
        if record.proposals or not proposals:
            yield record

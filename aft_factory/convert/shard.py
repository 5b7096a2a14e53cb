"""The shard of a conversion: what it leaves for `aft merge`; its rows and rejects read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aft_factory.convert.converting import Conversion
from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.summary import Summary
from aft_factory.records.record import Row
from aft_factory.records.rejects import Rejects, rejects_path
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import read_rows
from aft_factory.stage.shard import ShardFile, damaged


def begun(settings: ConvertSettings, conversion: Conversion) -> ShardFile | None:
    """Return what a conversion that is to begin is made from; None if it is none of a shard."""
    if settings.shard is None or settings.output is None:
        return None
    fitter = conversion.fitter
    template = [conversion.options.loaded.fingerprint] if settings.target != "sft" else []
    made_by = [*template, *([] if fitter is None else [fitter.fingerprint])]
    return ShardFile.of(settings.output, settings, settings.input, made_by)


def found(
    summary: Summary, table: TableWriter, rejects: Rejects, chat: str | None
) -> dict[str, Any]:
    """Return what merging needs of a shard that was converted."""
    assert table.digest is not None
    digests = [table.digest.hexdigest(), rejects.digest.hexdigest()]
    about = {"chat": chat, "moved": table.moved, "digests": digests}
    return about | {"summary": summary.to_json()}


@dataclass(frozen=True, slots=True)
class Part:
    """A shard that was converted.

    Attributes:
        file: What it is made from.
        summary: What its conversion did.
        moved: Which rows stand first in its output; see `TableWriter.moved`.
        digests: Of its rows, and of its rejects.
        chat: The chat template to train with, where it is known.
    """

    file: ShardFile
    summary: Summary
    moved: list[int]
    digests: list[str]
    chat: str | None

    @classmethod
    def of(cls, file: ShardFile) -> Part:
        """Return the part that a file is of.

        Raises:
            UsageError: If the file does not hold what `found` returns.
        """
        about = file.found
        try:
            summary = Summary.from_json(about["summary"])
            return cls(file, summary, about["moved"], about["digests"], about["chat"])
        except (ValueError, LookupError, TypeError):
            raise damaged(file.path) from None

    @property
    def rejects_path(self) -> Path:
        """Where its rejects are."""
        named = self.file.kept["settings"]["rejects"]
        return Path(named) if named else rejects_path(self.file.path)

    def rows(self) -> Iterator[Row]:
        """Go through its rows, in the order of the input."""
        values = (line.value for line in read_rows(str(self.file.path)))
        rows = (value if isinstance(value, dict) else {} for value in values)  # changed since
        moved = dict(zip(self.moved, rows, strict=False))
        for number in count():
            try:
                yield moved.pop(number) if number in moved else next(rows)
            except StopIteration:
                return

    def rejects(self) -> Iterator[bytes]:
        """Go through the lines of its rejects."""
        if self.summary.rejected:
            with self.rejects_path.open("rb") as lines:
                yield from lines

"""What a shard's conversion leaves beside its output, for `aft merge`: what it is of, and counts.

`part.jsonl.shard`, compressed JSON, is there before its output is.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aft_factory import __version__
from aft_factory.convert.converting import Conversion
from aft_factory.convert.settings import ConvertSettings, shard_path
from aft_factory.convert.summary import Summary
from aft_factory.errors import UsageError
from aft_factory.records.record import Row
from aft_factory.records.rejects import Rejects, rejects_path
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import read_rows
from aft_factory.stage.kept import keepable
from aft_factory.stage.states import state_of


@dataclass(frozen=True, slots=True)
class Origin:
    """What a shard's rows are made from.

    Attributes:
        kept: Command and settings; see `kept.keepable`.
        inputs: The state of each input.
        made_by: What else decides: our version, the aggregator prompt, the tokenizer.
        chat: The chat template to train with, where it is known.
    """

    kept: dict[str, Any]
    inputs: list[Any]
    made_by: list[str]
    chat: str | None

    @classmethod
    def of(cls, settings: ConvertSettings, conversion: Conversion, chat: str | None) -> Origin:
        """Return that of a conversion that is to begin."""
        fitter = conversion.fitter
        template = [conversion.options.loaded.fingerprint] if settings.target != "sft" else []
        return cls(
            json.loads(keepable(settings)),
            list(map(state_of, settings.input)),
            [__version__, *template, *([] if fitter is None else [fitter.fingerprint])],
            chat,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A shard that was converted.

    Attributes:
        path: Its output, as named.
        origin: What it is made from.
        summary: What its conversion did.
        moved: Which rows stand first in its output; see `TableWriter.moved`.
        digests: Of its rows, and of its rejects.
    """

    path: Path
    origin: Origin
    summary: Summary
    moved: list[int]
    digests: list[str]

    @property
    def shard(self) -> str:
        """Which of the shards it is."""
        return str(self.origin.kept["settings"]["shard"])

    @property
    def rejects_path(self) -> Path:
        """Where its rejects are."""
        named = self.origin.kept["settings"]["rejects"]
        return Path(named) if named else rejects_path(self.path)

    def rows(self) -> Iterator[Row]:
        """Go through its rows, in the order of the input."""
        values = (line.value for line in read_rows(str(self.path)))
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


def write_part(
    path: Path, origin: Origin, summary: Summary, table: TableWriter, rejects: Rejects
) -> None:
    """Write what is left beside the output of a shard."""
    assert table.digest is not None
    content = {
        **asdict(origin),
        "summary": summary.to_json(),
        "moved": table.moved,
        "digests": [table.digest.hexdigest(), rejects.digest.hexdigest()],
    }
    path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


def read_part(path: Path) -> Part:
    """Return what the conversion of a shard has left, by its output.

    Raises:
        UsageError: If it has left nothing, or not ended.
    """
    beside = shard_path(path)
    try:
        content = json.loads(gzip.decompress(beside.read_bytes()))
        origin = Origin(*(content[name] for name in ("kept", "inputs", "made_by", "chat")))
        summary = Summary.from_json(content["summary"])
        part = Part(path, origin, summary, content["moved"], content["digests"])
        part.shard  # noqa: B018 - whether it is told
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no shard that was converted: expected what `aft convert --shard` leaves "
            f"beside it, {beside}"
        ) from None
    except (ValueError, LookupError, TypeError, EOFError, gzip.BadGzipFile, zlib.error):
        raise UsageError(
            f"{beside}: damaged, or of another version of aft-factory; give the command of its "
            "shard again with --overwrite"
        ) from None
    if not path.is_file():
        raise UsageError(f"{path}: shard {part.shard} is not done; give its command again")
    return part

"""Writing tables of rows: JSON, JSON Lines (plain, .gz, .zst) and Parquet, whole or not at all.

Memory does not grow with the file. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aft_factory.records import exact_json
from aft_factory.records.early_types import EarlyTypes
from aft_factory.records.files import CHUNK, named, open_bytes
from aft_factory.records.record import Row
from aft_factory.records.replacing import check_writable, replacing
from aft_factory.records.tables import table_format

if TYPE_CHECKING:
    from aft_factory.records.parquet import ParquetSink


class _Withdrawn(Exception):
    """What is written is not to be left."""


class TableWriter:
    """Writes rows to a file that appears whole when the block ends well, and not at all otherwise.

    In JSON Lines beyond some MB, a row that is the first with a value in a column may be moved to
    the front (`early_types`); all others stay in their order.

    Example:
        with TableWriter(Path("out.jsonl")) as table:
            table.write({"id": "1"})

    Args:
        path: The file.
        overwrite: Whether an existing file may be replaced.
        until: As for `replacing.replacing`.

    Attributes:
        digest: Takes in the JSON of all rows, in the order in which they are written, if it is set.
    """

    def __init__(
        self, path: Path, *, overwrite: bool = False, until: contextlib.ExitStack | None = None
    ) -> None:
        self.path = path
        self._until = until
        self.rows = 0
        self._withdrawn = False
        self._format = table_format(path)
        check_writable(path, overwrite=overwrite)
        self._stack = contextlib.ExitStack()
        self._write_bytes: Callable[[bytes], object]
        self._parquet: ParquetSink | None = None
        self._types = EarlyTypes()
        self.digest: hashlib.blake2b | None = None

    def __enter__(self) -> TableWriter:
        aside = self._stack.enter_context(replacing(self.path, self._until))
        if self._format == ".parquet":
            from aft_factory.records.parquet import ParquetSink

            self._parquet = ParquetSink(aside)
            self._stack.push(self._finish)
            return self
        self._stack.push(partial(self._put_types_first, aside))
        stream = self._stack.enter_context(aside.open("wb", buffering=CHUNK))
        self._write_bytes = self._stack.enter_context(_compressed(stream, self.path.suffix)).write
        self._stack.push(self._finish)
        return self

    def write(self, row: Row) -> None:
        """Append one row.

        Raises:
            TypeError: If JSON has no form for something in the row; nothing is written then.
        """
        data = b""
        if self._parquet is None:
            data = exact_json.dump(row)
            if self.digest is not None:
                self.digest.update(data)
            if self._format == ".json":
                data = (b",\n" if self.rows else b"[\n") + data
            else:
                data += b"\n"
        try:
            if self._parquet is None:
                self._write_bytes(data)
            else:
                self._parquet.write(row)
        except OSError as error:
            raise named(error, self.path) from None
        if self._format == ".jsonl":
            self._types.note(row, len(data))
        self.rows += 1

    @property
    def moved(self) -> list[int]:
        """The numbers of the rows, from 0, that stand first in the file, in this order."""
        return self._types.late

    def withdraw(self) -> None:
        """Leave no file when the block ends, nor the one that was to be replaced."""
        self._withdrawn = True

    def __exit__(self, *error: Any) -> None:
        if self._withdrawn and error[0] is None:
            self._stack.__exit__(_Withdrawn, _Withdrawn(), None)
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)
        else:
            self._stack.__exit__(*error)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """End what is being written; after an error, a second one would hide the first."""
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            if self._parquet is not None:
                self._parquet.close() if kind is None else self._parquet.discard()
            elif self._format == ".json":
                self._write_bytes(b"\n]\n" if self.rows else b"[]\n")

    def _put_types_first(self, aside: Path, kind: type[BaseException] | None, *_: object) -> None:
        """Move rows to the front that give a column its type, if they come late."""
        late = self._types.late
        if kind is not None or not late:
            return
        first: list[bytes] = []
        with tempfile.TemporaryFile(dir=aside.parent) as rest:
            with open_bytes(aside, suffix=self.path.suffix) as lines:
                for number, line in enumerate(lines):
                    first.append(line) if number in late else rest.write(line)
            rest.seek(0)
            with aside.open("wb") as file, _compressed(file, self.path.suffix) as stream:
                stream.write(b"".join(first))
                shutil.copyfileobj(rest, stream, CHUNK)


def _compressed(stream: IO[bytes], suffix: str) -> Any:
    """Return what writes to an open file, as the file's suffix says."""
    if suffix == ".gz":
        # No time stamp and no name inside, so that equal rows give equal bytes.
        return gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=0)
    if suffix == ".zst":
        import zstandard

        return zstandard.ZstdCompressor(level=6).stream_writer(stream, closefd=False)
    return contextlib.nullcontext(stream)

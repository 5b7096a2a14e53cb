"""Reading and writing tables of rows, one at a time, whatever the file format.

Reads JSON, JSON Lines (plain, .gz, .zst), Parquet, local `datasets` folders and names on the
Hugging Face hub. Writes JSON, JSON Lines (the same) and Parquet, whole or not at all. Memory does
not grow with the file. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aft_factory.errors import AftError, MissingPackage, UsageError
from aft_factory.records import exact_json
from aft_factory.records.files import (
    CHUNK,
    check_writable,
    named,
    open_bytes,
    replacing,
)
from aft_factory.records.parquet import ParquetSink, read_parquet
from aft_factory.records.record import Row

FORMATS = (".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Line:
    """One row as read.

    Attributes:
        source: File or data set it came from.
        number: Line of the file (JSON Lines) or row (other formats), from 1.
        value: The row, None where the line is no JSON.
        problem: Why `value` is None.
        text: The line itself, where it is no JSON.
    """

    source: str
    number: int
    value: Any
    problem: str | None = None
    text: str | None = None

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source}:{self.number}"


def read_rows(
    name: str, *, split: str = "train", on_bytes: Callable[[int], object] = lambda _: None
) -> Iterator[Line]:
    """Read a table row by row.

    Args:
        name: A file, a folder saved by `datasets`, or the name of a data set on the hub.
        split: Split to read, of a hub data set or a saved `DatasetDict`.
        on_bytes: Told how many bytes of the file were read since the last call (for progress).

    Raises:
        UsageError: If there is nothing of that name, the format is unknown, or a file is damaged
            beyond single lines; names the place.
    """
    path = Path(name)
    if path.is_dir():
        return _read_folder(path, split)
    if not path.exists():
        if path.suffix or name.startswith(("/", ".")) or name.count("/") != 1:
            raise UsageError(
                f"{name}: no such file, and not the OWNER/NAME of a data set on the hub"
            )
        return _read_hub(name, split)
    suffix = table_format(path)
    if suffix == ".parquet":
        return _read_parquet(path, on_bytes)
    return _read_json(path, on_bytes, may_be_array=suffix == ".json")


def table_format(path: Path) -> str:
    """Return `.jsonl`, `.json` or `.parquet`, looking through `.gz` and `.zst`.

    Raises:
        UsageError: If the format is not one of these.
    """
    name = Path(path.stem) if path.suffix in COMPRESSIONS else path
    suffix = ".jsonl" if name.suffix == ".ndjson" else name.suffix
    if suffix not in FORMATS or (suffix == ".parquet" and path.suffix in COMPRESSIONS):
        raise UsageError(
            f"{path}: unknown format; expected .jsonl or .json (plain, .gz or .zst) or .parquet"
        )
    return suffix


class TableWriter:
    """Writes rows to a file that appears whole when the block ends well, and not at all otherwise.

    Example:
        with TableWriter(Path("out.jsonl")) as table:
            table.write({"id": "1"})

    Args:
        path: The file.
        overwrite: Whether an existing file may be replaced.
        until: As for `files.replacing`.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        until: contextlib.ExitStack | None = None,
    ) -> None:
        self.path = path
        self._until = until
        self.rows = 0
        self._format = table_format(path)
        check_writable(path, overwrite=overwrite)
        self._stack = contextlib.ExitStack()
        self._write_bytes: Callable[[bytes], object]
        self._parquet: ParquetSink | None = None

    def __enter__(self) -> TableWriter:
        aside = self._stack.enter_context(replacing(self.path, self._until))
        if self._format == ".parquet":
            self._parquet = ParquetSink(aside)
            self._stack.push(self._finish)
            return self
        stream: Any = self._stack.enter_context(aside.open("wb", buffering=CHUNK))
        if self.path.suffix == ".gz":
            # No time stamp and no name inside, so that equal rows give equal bytes.
            stream = gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=0)
            self._stack.enter_context(stream)
        elif self.path.suffix == ".zst":
            import zstandard

            stream = zstandard.ZstdCompressor(level=6).stream_writer(stream, closefd=False)
            self._stack.enter_context(stream)
        self._write_bytes = stream.write
        self._stack.push(self._finish)
        return self

    def write(self, row: Row) -> int:
        """Append one row and return how many bytes its JSON takes (0 for Parquet).

        Raises:
            TypeError: If JSON has no form for something in the row; nothing is written then.
        """
        data = b""
        if self._parquet is None:
            data = exact_json.dump(row)
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
        self.rows += 1
        return len(data)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """End what is being written; after an error, a second one would hide the first."""
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            if self._parquet is not None:
                self._parquet.close() if kind is None else self._parquet.discard()
            elif self._format == ".json":
                self._write_bytes(b"\n]\n" if self.rows else b"[]\n")


def _read_json(
    path: Path, on_bytes: Callable[[int], object], *, may_be_array: bool
) -> Iterator[Line]:
    """Read JSON Lines, or one array; many published files of JSON Lines call themselves .json."""
    source = str(path)
    with open_bytes(path, on_bytes) as stream:
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            stream.read(3)
        blank = 0
        while may_be_array and stream.peek(1)[:1].isspace():
            blank += stream.read(1) == b"\n"
        if may_be_array and stream.peek(1)[:1] == b"[":
            yield from _read_array(source, stream)
            return
        for number, line in enumerate(stream, start=1 + blank):
            if not line.isspace():
                yield _parse(source, number, line)


def _read_array(source: str, stream: IO[bytes]) -> Iterator[Line]:
    number = 0
    try:
        for number, element in enumerate(exact_json.array_elements(stream), start=1):
            yield _parse(source, number, element)
    except ValueError as error:
        raise UsageError(f"{source}: damaged JSON after row {number}: {error}") from None


def _parse(source: str, number: int, text: bytes) -> Line:
    try:
        return Line(source, number, exact_json.load(text))
    except ValueError as error:
        shown = text.decode("utf-8", errors="replace").rstrip("\r\n")
        return Line(source, number, None, f"not JSON: {error}", shown)


def _read_parquet(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Line]:
    for number, row in enumerate(read_parquet(path, on_bytes), start=1):
        yield Line(str(path), number, row)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingPackage("reading a `datasets` folder or hub data set", "datasets") from None
    return datasets


def _read_folder(path: Path, split: str) -> Iterator[Line]:
    datasets = _datasets()
    with _explained(f"{path}: not a folder saved by datasets' save_to_disk"):
        table = datasets.load_from_disk(str(path))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise UsageError(f"{path}: no split {split!r}; it has: {', '.join(table)}")
            table = table[split]
        for number, value in enumerate(table, start=1):
            yield Line(str(path), number, value)


def _read_hub(name: str, split: str) -> Iterator[Line]:
    datasets = _datasets()
    with _explained(f"{name}: neither a file nor a data set the hub gave"):
        table = datasets.load_dataset(name, split=split, streaming=True)
        for number, value in enumerate(table, start=1):
            yield Line(f"{name}[{split}]", number, value)


@contextlib.contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Show whatever `datasets` raises as one error; of its dozen types the words are clear."""
    try:
        yield
    except AftError:
        raise
    except Exception as error:
        raise UsageError(f"{problem}: {error}") from error

"""Reading and writing tables of rows, one at a time, whatever the file format.

Reads JSON, JSON Lines (plain, .gz, .zst), Parquet, local `datasets` folders and names on the Hugging
Face hub. Writes JSON, JSON Lines (the same) and Parquet, whole or not at all: into a file aside that
is renamed at the end. Memory does not grow with the file. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson

from aft_factory.errors import MissingPackage, UsageError
from aft_factory.records import Row

FORMATS = (".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")
PARQUET_ROWS = 2000


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
        UsageError: If there is nothing of that name, the format is unknown, or a file that must be
            read as a whole (.json, .parquet, compressed) is damaged; names the place.
    """
    path = Path(name)
    if path.is_dir():
        return _read_folder(path, split)
    if not path.exists():
        if path.suffix or name.startswith(("/", ".")) or name.count("/") != 1:
            raise UsageError(f"{name}: no such file, and not the OWNER/NAME of a data set on the hub")
        return _read_hub(name, split)
    suffix = table_format(path)
    if suffix == ".parquet":
        return _read_parquet(path, on_bytes)
    if suffix == ".json" and not _is_json_lines(path):
        return _read_json(path, on_bytes)
    return _read_json_lines(path, on_bytes)


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
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.rows = 0
        self._format = table_format(path)
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; pass --overwrite to replace it")
        self._aside = path.with_name(f".{path.name}.part")
        self._stack = contextlib.ExitStack()
        self._write_bytes: Callable[[bytes], object]
        self._parquet: _ParquetSink | None = None

    def __enter__(self) -> TableWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._format == ".parquet":
            self._parquet = _ParquetSink(self._aside)
        else:
            raw = self._stack.enter_context(self._aside.open("wb"))
            stream = raw
            if self.path.suffix == ".gz":
                # No time stamp and no name inside, so that equal rows give equal bytes.
                stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0)  # type: ignore[assignment]
            elif self.path.suffix == ".zst":
                import zstandard

                stream = zstandard.ZstdCompressor(level=6).stream_writer(raw, closefd=False)  # type: ignore[assignment]
            if stream is not raw:
                self._stack.enter_context(stream)
            self._write_bytes = stream.write
        return self

    def write(self, row: Row) -> int:
        """Append one row and return how many bytes its JSON takes (0 for Parquet).

        Raises:
            TypeError: If the row holds something that JSON has no form for; nothing is written then.
        """
        if self._parquet is not None:
            self._parquet.write(row)
            size = 0
        else:
            data = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
            if self._format == ".json":
                data = (b",\n" if self.rows else b"[\n") + data[:-1]
            self._write_bytes(data)
            size = len(data)
        self.rows += 1
        return size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._parquet is not None:
                self._parquet.close()
            elif self._format == ".json":
                self._write_bytes(b"\n]\n" if self.rows else b"[]\n")
            self._stack.close()
            if kind is None:
                with self._aside.open("rb") as written:
                    os.fsync(written.fileno())
                os.replace(self._aside, self.path)
        finally:
            self._aside.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class _ParquetSink:
    """Collects rows into Parquet row groups; the schema is the records' own where the rows are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._writer: Any = None

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= PARQUET_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            schema = _record_schema()
            if self._rows and set(self._rows[0]) != set(schema.names):
                schema = pa.Table.from_pylist(self._rows).schema
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._writer.schema))
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _record_schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        {
            "id": text,
            "messages": pa.list_(pa.struct({"role": text, "content": text})),
            "proposals": pa.list_(text),
            "aggregation": text,
            "reference": text,
            "source": text,
            "scores": pa.list_(pa.float64()),
            "proposal_models": pa.list_(text),
            "meta": text,
        }
    )


def _open(path: Path, on_bytes: Callable[[int], object]) -> IO[bytes]:
    raw: IO[bytes] = io.BufferedReader(_Counted(path, on_bytes), buffer_size=1 << 20)
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), 1 << 20)  # type: ignore[type-var]
    return raw


class _Counted(io.FileIO):
    """A file that tells how much of it was read, before any decompression."""

    def __init__(self, path: Path, on_bytes: Callable[[int], object]) -> None:
        super().__init__(path, "rb")
        self._on_bytes = on_bytes

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if count:
            self._on_bytes(count)
        return count


def _is_json_lines(path: Path) -> bool:
    """Tell JSON Lines that calls itself .json, as many published files do, from one JSON array."""
    with _open(path, lambda _: None) as stream:
        while character := stream.read(1):
            if not character.isspace() and character not in b"\xef\xbb\xbf":
                return character == b"{"
    return True


def _read_json_lines(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Line]:
    source = str(path)
    with _open(path, on_bytes) as stream, _damage(path):
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield Line(source, number, orjson.loads(line))
            except orjson.JSONDecodeError as error:
                if line.isspace():
                    continue
                text = line.decode("utf-8", errors="replace").rstrip("\r\n")
                yield Line(source, number, None, f"not JSON: {error}", text)


def _read_json(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Line]:
    import ijson

    number = 0
    with _open(path, on_bytes) as stream, _damage(path):
        try:
            for number, value in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                yield Line(str(path), number, value)
        except ijson.JSONError as error:
            raise UsageError(f"{path}: damaged JSON after row {number}: {error}") from None
    if not number and not _is_empty_array(path):
        raise UsageError(f"{path}: expected a JSON array of objects (or use .jsonl)")


def _is_empty_array(path: Path) -> bool:
    with _open(path, lambda _: None) as stream:
        return stream.read(4096).strip().startswith(b"[")


def _read_parquet(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: not a Parquet file: {error}") from None
    size = path.stat().st_size
    number = 0
    for batch in file.iter_batches(batch_size=PARQUET_ROWS):
        for value in batch.to_pylist():
            number += 1
            yield Line(str(path), number, value)
        on_bytes(size * batch.num_rows // max(file.metadata.num_rows, 1))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingPackage("reading a `datasets` folder or hub data set", "datasets") from None
    return datasets


def _read_folder(path: Path, split: str) -> Iterator[Line]:
    datasets = _datasets()
    try:
        table = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: a folder, but not one saved by datasets' save_to_disk") from None
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise UsageError(f"{path}: no split {split!r}; it has: {', '.join(table)}")
        table = table[split]
    for number, value in enumerate(table, start=1):
        yield Line(str(path), number, value)


def _read_hub(name: str, split: str) -> Iterator[Line]:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the hub's client has a dozen error types; their words are clear
        raise UsageError(f"{name}: neither a file nor a data set the hub gave: {error}") from error
    for number, value in enumerate(table, start=1):
        yield Line(f"{name}[{split}]", number, value)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file where a compressed stream turns out damaged."""
    import zlib

    import zstandard

    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(f"{path}: damaged or cut-off compressed file: {error}") from None


class Rejects:
    """The rows that could not be used, each with its reason, in a JSON Lines file beside the output.

    A file of the same name left by an earlier run is replaced; without rejects there is no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.by_field: dict[str, tuple[int, str]] = {}  # field: how often, the first reason
        self._aside = path.with_name(f".{path.name}.part")
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Rejects:
        return self

    def add(self, line: Line, reason: str, field: str | None = None) -> None:
        """Keep a row with the reason why it was not used."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._aside.open("wb")
        row = {"file": line.source, "line": line.number, "field": field, "reason": reason}
        row |= {"text": line.text} if line.value is None and line.text else {"row": line.value}
        # The standard library's encoder: it takes whatever a reader gave, down to lone surrogates.
        self._stream.write(json.dumps(row, default=str).encode("ascii") + b"\n")
        self.count += 1
        key = re.sub(r"\[\d+\]", "[]", field or "row")
        count, first = self.by_field.get(key, (0, reason))
        self.by_field[key] = (count + 1, first)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            if kind is None:
                self.path.unlink(missing_ok=True)
            return
        self._stream.close()
        os.replace(self._aside, self.path)

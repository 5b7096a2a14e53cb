"""Reading tables of rows, one at a time, whatever the file format; `table_writer` writes them.

Reads JSON, JSON Lines (plain, .gz, .zst), Parquet, local `datasets` folders and names on the
Hugging Face hub. Memory does not grow with the file. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import codecs
import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aft_factory.errors import UsageError
from aft_factory.records import exact_json
from aft_factory.records.files import CHUNK, open_bytes, other_encoding, readable
from aft_factory.records.hub import HubSet, explained, import_datasets, is_hub_name, tell_of_splits

MOST_NO_JSON = 10  # lines at the start of a file of which none is JSON: it is something else
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
    name: str,
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> Iterator[Line]:
    """Read a table row by row.

    Args:
        name: A file, a folder saved by `datasets`, or the name of a data set on the hub.
        split: Split to read, of a hub data set or a saved `DatasetDict`.
        subset: Configuration to read, of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        on_bytes: Told how many bytes of the file were read since the last call (for progress).

    Raises:
        UsageError: If there is nothing of that name, the format is unknown, or a file is damaged
            beyond single lines; names the place.
    """
    path = Path(name)
    if not path.exists():
        if not is_hub_name(name, (*FORMATS, ".ndjson", *COMPRESSIONS)):
            raise UsageError(
                f"{name}: no such file, and not the OWNER/NAME of a data set on the hub"
            )
        parts = split if subset is None else f"{subset}, {split}"
        return _numbered(f"{name}[{parts}]", HubSet(name, split, subset, revision).rows())
    for flag, value in (("--data-subset", subset), ("--data-revision", revision)):
        if value is not None:
            raise UsageError(f"{name}: no data set on the hub, to which {flag} {value} belongs")
    if path.is_dir():
        return _read_folder(path, split)
    if table_format(path) == ".parquet":
        from aft_factory.records.parquet import read_parquet

        return _numbered(readable(str(path)), read_parquet(path, on_bytes))
    return _read_json(path, on_bytes)


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


def is_table(name: str) -> bool:
    """Tell whether a name is that of a file of rows, which need not be there."""
    try:
        table_format(Path(name))
    except UsageError:
        return False
    return "://" not in name


def _read_json(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Line]:
    """Read JSON Lines, one array, or objects that stand otherwise; their names do not tell."""
    source = readable(str(path))
    with open_bytes(path, on_bytes) as stream:
        start = stream.peek(CHUNK)
        if other := other_encoding(start[:4]):  # zero bytes further on cost their lines alone
            raise UsageError(f"{path}: expected JSON in UTF-8, got {other}; save it as UTF-8")
        if start[:3] == codecs.BOM_UTF8:
            stream.read(3)
        blank = 0
        while stream.peek(1)[:1].isspace():
            blank += stream.read(1) == b"\n"
        split = _splitter(stream.peek(CHUNK), lines=table_format(path) == ".jsonl")
        if split is not None:
            yield from _read_values(source, split(stream))
            return
        no_json = 0
        for number, line in enumerate(stream, start=1 + blank):
            if line.isspace():
                continue
            row = _parse(source, number, line)
            no_json = no_json + 1 if row.problem and no_json >= 0 else -1  # -1: one was
            if no_json == MOST_NO_JSON:
                raise UsageError(
                    f"{row.place}: none of the first {no_json} lines is JSON: {row.problem}"
                )
            yield row


def _splitter(start: bytes, *, lines: bool) -> Callable[[IO[bytes]], Iterator[bytes]] | None:
    """Return what splits a text that begins so into values; None where each line is one.

    Args:
        start: What is read of it so far.
        lines: Whether its name says that each is: then it is no array that begins as none.
    """
    if start[:1] == b"[":
        line, _, rest = start.partition(b"\n")
        with contextlib.suppress(ValueError):
            if rest.strip() and isinstance(exact_json.load(line), list):
                return None  # lines, of which the first is an array
        try:
            next(exact_json.array_elements(io.BytesIO(start)), None)
        except ValueError:
            return None if lines and len(start) < CHUNK else exact_json.array_elements
        return exact_json.array_elements
    with contextlib.suppress(ValueError, StopIteration):
        first = next(exact_json.values(io.BytesIO(start)))
        line = start[len(first) :].partition(b"\n")[0]
        # It goes over several lines, or others stand on the same one.
        if b"\n" in first or line.strip()[:1] == b"{":
            return exact_json.values
    return None


def _read_values(source: str, texts: Iterator[bytes]) -> Iterator[Line]:
    number = 0
    try:
        for number, text in enumerate(texts, start=1):
            yield _parse(source, number, text)
    except ValueError as error:
        raise UsageError(f"{source}: damaged JSON after row {number}: {error}") from None


def _parse(source: str, number: int, text: bytes) -> Line:
    try:
        return Line(source, number, exact_json.load_given(text))
    except ValueError as error:
        shown = text.decode("utf-8", errors="replace").rstrip("\r\n")
        return Line(source, number, None, f"not JSON: {error}", shown)


def _numbered(source: str, rows: Iterable[Any]) -> Iterator[Line]:
    for number, row in enumerate(rows, start=1):
        yield Line(source, number, row)


def _read_folder(path: Path, split: str) -> Iterator[Line]:
    datasets = import_datasets()
    with explained(f"{path}: not a folder saved by datasets' save_to_disk"):
        table = datasets.load_from_disk(str(path))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise UsageError(f"{path}: no split {split!r}; it has: {', '.join(table)}")
            tell_of_splits(str(path), split, tuple(table))
            table = table[split]
        yield from _numbered(readable(str(path)), table)

"""Files: texts read, bytes read through compression, names and errors told.

Knows nothing of rows or records; `tables` builds on it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError

CODECS = {".gz": "gzip", ".zst": "zstd"}
CHUNK = 1 << 20
OPEN_FILES = 65536
MARK = "\ufeff"  # the byte order mark, which editors put before a text
OTHERS = {  # how a text in another encoding begins, or what is none; the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "gzip, whose name should end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd, whose name should end in .zst",
    b"PAR1": "Parquet, whose name should end in .parquet",
    b"PK\x03\x04": "a zip archive, to be unpacked",
}


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, without byte order mark and carriage returns.

    All texts of ours and the user's are read here: a mark would stand in every prompt of a
    template, in a chat template even before BOS.

    Raises:
        UsageError: If it is in another encoding.
    """
    data = path.read_bytes()
    other = other_encoding(data)
    try:
        text = data.decode() if other is None else ""
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        other = f"the byte 0x{data[error.start]:02x} in line {line}, which is none of it"
    if other is not None:
        raise UsageError(f"{path}: expected a text in UTF-8, got {other}; save it as UTF-8")
    return unmarked(text.replace("\r\n", "\n").replace("\r", "\n"))


def other_encoding(data: bytes) -> str | None:
    """Return what a text is in, where it is seen not to be UTF-8."""
    other = next((name for start, name in OTHERS.items() if data.startswith(start)), None)
    return "zero bytes, as in UTF-16" if other is None and b"\0" in data else other


def unmarked(text: str) -> str:
    """Return a text that others have read from a file, without its byte order mark."""
    return text.lstrip(MARK)


@contextlib.contextmanager
def open_bytes(
    path: Path,
    on_bytes: Callable[[int], object] = lambda _: None,
    suffix: str | None = None,
) -> Iterator[io.BufferedReader]:
    """Open a file for reading, through .gz and .zst.

    Args:
        path: The file.
        on_bytes: Told how many bytes were read since the last call, before decompression.
        suffix: Tells how it is compressed, where its own name does not.

    Raises:
        UsageError: Inside the block, where compressed data turn out to be damaged or cut off.
    """
    raw: Any = _Counted(path, on_bytes)
    codec = CODECS.get(path.suffix if suffix is None else suffix)
    if codec is not None:
        import pyarrow as pa

        # Python's own readers are slower, and zstandard's takes a cut-off file for a whole one.
        raw = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    try:
        with io.BufferedReader(raw, CHUNK) as stream:
            yield stream
    except OSError as error:
        if error.errno is not None:
            raise named(error, path) from None
        raise UsageError(f"{path}: damaged or cut-off compressed file: {error}") from None


class _Counted(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, on_bytes: Callable[[int], object]) -> None:
        super().__init__(os.fspath(path), "rb")
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._on_bytes(len(data))
        return data

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if count:
            self._on_bytes(count)
        return count


def named(error: OSError, path: Path) -> OSError:
    """Return an error of the operating system, such as a full disk, that tells the file it met."""
    if error.errno is None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


def readable(name: str) -> str:
    r"""Return the name of a file as text that UTF-8 can hold, which not every name is.

    Example:
        >>> readable(os.fsdecode(b"caf\xe9.jsonl"))
        'caf\\udce9.jsonl'
    """
    return name.encode(errors="backslashreplace").decode()


def allow_open_files() -> None:
    """Raise this process's own limit of open files, often 1024 or 256, as far as it may."""
    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

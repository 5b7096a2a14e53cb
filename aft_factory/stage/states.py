"""What tells one state of a file or folder from another, to know whether it has changed since."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from aft_factory.records.files import readable

MOST_READ = 1 << 30  # bytes: some seconds; of a larger file, size and time stand for its content


def state_of(name: str) -> Any:
    """Return the state of a file or folder; None of anything else, such as a name on the hub."""
    if os.path.isfile(name):  # unlike Path's, it takes any text
        return content(Path(name))
    return folder(Path(name)) if os.path.isdir(name) else None


def content(path: Path) -> list[Any]:
    """Return the state of a file: what is in it."""
    if path.stat().st_size > MOST_READ:
        return _size_and_time(path)
    with path.open("rb") as stream:
        return [hashlib.file_digest(stream, hashlib.blake2b).hexdigest()]


def folder(path: Path) -> list[Any]:
    """Return the state of a folder: sizes and times of all that is in it."""
    files = sorted(path for path in path.rglob("*") if path.is_file())
    return [[readable(str(path)), *_size_and_time(path)] for path in files]


def _size_and_time(path: Path) -> list[Any]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]

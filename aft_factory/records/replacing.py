"""Files that are written whole or not at all, and whether one can be written, told before."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from aft_factory.errors import UsageError
from aft_factory.records.files import named, readable

TRIED = 4096  # bytes, to see whether there is room


def check_writable(path: Path, *, overwrite: bool, note: str = "") -> None:
    """Check what can be checked of an output before work starts.

    Args:
        path: The file.
        overwrite: Whether an existing one may be replaced.
        note: What there is to know before it is.

    Raises:
        UsageError: If there is such a file and it is not to be replaced, or it is no plain file.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a plain file; name one to write to")
    if path.exists() and not overwrite and not _is_left(Path(os.path.realpath(path))):
        raise UsageError(f"{path} exists; pass --overwrite to replace it{note}")


def check_place(path: Path) -> None:
    """Try whether a file can be written at a place, before work starts; nothing is left there.

    Raises:
        UsageError: If it cannot, or what is there is no plain file.
    """
    folder = Path(os.path.realpath(path)).parent
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a plain file; name one to write to")
        while not os.path.lexists(folder):  # it will be made
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(TRIED))  # a full disk may take a name and no content
    except OSError as error:
        problem = os.strerror(error.errno or 0)
        raise UsageError(f"{path}: cannot be written: {folder}: {problem}") from None


@contextlib.contextmanager
def replacing(path: Path, until: contextlib.ExitStack | None = None) -> Iterator[Path]:
    """Yield the path of a file aside, which takes the place of `path` if the block ends well.

    Folders are made as needed. A symbolic link stays one: the file it leads to is replaced. What a
    killed process left for `path` is removed.

    Args:
        path: The file.
        until: Ends once the file it belongs to is in place too. Up to then the file aside is kept
            as a second name of the new one: whoever is killed leaves one that may be replaced.
    """
    target = Path(os.path.realpath(path))
    with contextlib.ExitStack() as own:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside, lock = _make_aside(target)
        except OSError as error:
            raise named(error, path) from None

        def let_go(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not None and _is_same(aside, target):
                target.unlink()
            aside.unlink(missing_ok=True)
            os.close(lock)

        (own if until is None else until).push(let_go)
        try:
            yield aside
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            if until is not None:
                # Not where there is one to replace, or on a file system without links.
                with contextlib.suppress(OSError):
                    os.link(aside, target)
                    return
            os.replace(aside, target)
        except OSError as error:
            if error.filename in (None, str(aside)):
                raise named(error, path) from None
            raise


def _make_aside(target: Path) -> tuple[Path, int]:
    """Make a file of its own, as two may write at a time; return it and the lock on it."""
    for left in _asides(target):
        _remove_if_left(left, target)
    while True:
        aside = target.with_name(f"{_aside_name(target)}{secrets.token_hex(6)}.part")
        lock = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks; nothing is removed there
            fcntl.flock(lock, fcntl.LOCK_EX)
        if aside.exists():
            return aside, lock
        os.close(lock)  # somebody took it for one that was left, before it was locked


def _aside_name(target: Path) -> str:
    name = hashlib.blake2b(os.fsencode(target.name), digest_size=6).hexdigest()
    return f".aft-{name}-"


def _asides(target: Path) -> Iterator[Path]:
    return target.parent.glob(f"{_aside_name(target)}*.part")


def _is_same(aside: Path, target: Path) -> bool:
    return aside.exists() and target.exists() and aside.samefile(target)


def _is_left(target: Path) -> bool:
    """Tell whether who put a file in place was killed before what it belongs to was there too."""
    for aside in _asides(target):
        with contextlib.suppress(OSError):
            os.close(locked(aside))
            if _is_same(aside, target):
                return True
    return False


def _remove_if_left(aside: Path, target: Path) -> None:
    """Remove a file whose writer is dead: a living one holds the lock, on whatever machine."""
    with contextlib.suppress(OSError):
        lock = locked(aside)
        if _is_same(aside, target):
            target.unlink()
        aside.unlink(missing_ok=True)
        os.close(lock)


def locked(path: Path) -> int:
    """Take a file, made if need be, until what is returned is closed.

    Raises:
        BlockingIOError: If another has taken it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Write what is told about rows as JSON, whole or not at all."""
    data = orjson.dumps(_readable(content), option=orjson.OPT_INDENT_2, default=str)
    write_whole(path, data + b"\n")


def _readable(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return readable(str(value))
    if isinstance(value, Mapping):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return list(map(_readable, value)) if isinstance(value, (list, tuple)) else value


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as aside:
        aside.write_bytes(data)

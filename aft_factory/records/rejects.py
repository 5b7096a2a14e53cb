"""Rejects: the rows that could not be used, each with its reason, in a file of JSON Lines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from aft_factory.records.files import named
from aft_factory.records.record import Row
from aft_factory.records.replacing import check_writable, replacing
from aft_factory.records.tables import Line

MOST_KINDS = 1000  # of reasons told apart; a field's others are counted together
# Ends what a line tells of a row; within a text each quote has a backslash.
BEFORE_ROW = re.compile(rb', "(?:row|text)": ')
# What differs between reasons of one kind: what was got, what is quoted, numbers.
VALUE = re.compile(r"(?:, got|; the row has:|: ).*|'[^']*'|\d+", re.DOTALL)


def rejects_path(output: Path) -> Path:
    """Return where the rejects of an output go: `out.rejects.jsonl` for `out.jsonl`.

    The whole name of another format stays: `out.parquet` may stand beside `out.jsonl`.

    Example:
        >>> str(rejects_path(Path("data/out.v1.jsonl.gz")))
        'data/out.v1.jsonl.gz.rejects.jsonl'
    """
    return output.parent / f"{output.name.removesuffix('.jsonl')}.rejects.jsonl"


class Rejects:
    """Keeps the rows that could not be used.

    Without rejects there is no file; one left by an earlier run is removed. Without a path, rejects
    are counted only.

    Args:
        path: Where they go.
        overwrite: Whether an existing file may be replaced.
        until: As for `replacing.replacing`: ends with the output.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        overwrite: bool = False,
        until: contextlib.ExitStack | None = None,
    ) -> None:
        self.path = path
        self._until = until
        self.count = 0
        self.digest = hashlib.blake2b(digest_size=16)  # of what is in the file
        self.by_field: dict[str, tuple[int, str]] = {}  # field: how often, the first reason
        # By field and what its reason says but for the values: the same.
        self.by_kind: dict[tuple[str, str], tuple[int, str]] = {}
        if path is not None:
            check_writable(path, overwrite=overwrite)
        self._stack = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Rejects:
        return self

    def add(self, line: Line, reason: str, field: str | None = None) -> None:
        """Keep a row with the reason why it was not used."""
        row = {"file": line.source, "line": line.number, "field": field, "reason": reason}
        row |= {"text": line.text} if line.value is None and line.text else {"row": line.value}
        self._keep(reason, field, lambda: _dump_anything(row) + b"\n")

    def copy(self, data: bytes) -> None:
        """Keep a row as another has kept it: a line of its file."""
        told = json.loads(BEFORE_ROW.split(data, 1)[0] + b"}")
        self._keep(told["reason"], told["field"], lambda: data)

    def _keep(self, reason: str, field: str | None, data: Callable[[], bytes]) -> None:
        self.count += 1
        key = re.sub(r"\[\d+\]", "[]", field or "row")
        count, first = self.by_field.get(key, (0, reason))
        self.by_field[key] = (count + 1, first)
        sort = (key, VALUE.sub("", reason))
        if len(self.by_kind) >= MOST_KINDS and sort not in self.by_kind:
            sort = (key, "")
        count, first = self.by_kind.get(sort, (0, reason))
        self.by_kind[sort] = (count + 1, first)
        if self.path is None:
            return
        if self._stream is None:
            aside = self._stack.enter_context(replacing(self.path, self._until))
            self._stream = self._stack.enter_context(aside.open("wb"))
        row = data()
        self.digest.update(row)
        try:
            self._stream.write(row)
        except OSError as error:
            raise named(error, self.path) from None

    def unusable(self, read: int) -> str:
        """Say of how many rows these are how many, and why the first."""
        first = next((f" (the first: {key}: {why})" for key, (_, why) in self.by_field.items()), "")
        return f"{read} rows, {self.count} of them unusable{first}"

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._stack.__exit__(kind, *error)
        if self._stream is None and self.path is not None and kind is None:
            self.path.unlink(missing_ok=True)


def _dump_anything(row: Row) -> bytes:
    """JSON of whatever a reader gave; of a row nested too deeply for that, only the place."""
    try:
        return json.dumps(row, default=str).encode("ascii")
    except RecursionError:
        return _dump_anything(row | {"row": None})

"""Parquet: rows in and out, in groups. The one module that knows the Arrow types of a record."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from aft_factory.errors import UsageError
from aft_factory.records.files import named
from aft_factory.records.record import Row

ROWS = 2000  # of a group: what is held in memory
REFUSALS = (pa.ArrowException, OverflowError, TypeError, ValueError)
_log = logging.getLogger(__name__)

_TEXT, _NUMBER = pa.string(), pa.int64()
_RECORD = {
    "id": _TEXT,
    "messages": pa.list_(pa.struct({"role": _TEXT, "content": _TEXT})),
    "proposals": pa.list_(_TEXT),
    "aggregation": _TEXT,
    "reference": _TEXT,
    "source": _TEXT,
    "scores": pa.list_(pa.float64()),
    "proposal_models": pa.list_(_TEXT),
    "aggregation_thought": _TEXT,
    "meta": _TEXT,
}
_PLACE = {"turn": _NUMBER, "layer": _NUMBER}
_COUNTS = ("requests", "samples", "prompt", "cached", "completion", "attended")
_RUN = {  # the columns of `run` that may hold nothing to tell their types by
    "usage": pa.list_(pa.struct(_PLACE | dict.fromkeys(_COUNTS, _NUMBER))),
    "events": pa.list_(pa.struct(_PLACE | {"slot": _NUMBER, "event": _TEXT})),
    "extracted": _TEXT,
}


def read_parquet(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Row]:
    """Read the rows of a file.

    Args:
        path: The file.
        on_bytes: Told how much of the file was read since the last call.

    Raises:
        UsageError: If the file is no Parquet file, or damaged.
    """
    size = path.stat().st_size
    try:
        with pa.OSFile(os.fsencode(path)) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield from batch.to_pylist()
                on_bytes(size * batch.num_rows // max(file.metadata.num_rows, 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise named(error, path) from None  # such as a file that may not be read
        raise UsageError(f"{path}: no Parquet file, or damaged: {error}") from None


class ParquetSink:
    """Collects rows, and writes them once it knows the type that all values of a column have.

    No column is left out, whichever row it comes with. Our own have their types even where all are
    empty. A column whose values have no one type in Parquet is written as JSON text.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._types: dict[str, Any] = {}  # by the groups so far
        self._as_text: set[str] = set()
        self._groups: IO[bytes] | None = None

    def write(self, row: Row) -> None:
        """Append one row."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._note_types()
            if self._groups is None:
                # Without a name: nothing stays behind, however this process ends.
                self._groups = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
            pickle.dump(self._rows, self._groups, pickle.HIGHEST_PROTOCOL)
            self._rows = []

    def close(self) -> None:
        """Write the file."""
        try:
            self._close()
        finally:
            self.discard()

    def discard(self) -> None:
        """Let go of what was collected."""
        if self._groups is not None:
            self._groups.close()

    def _close(self) -> None:
        self._note_types()
        own = _RECORD | _RUN
        types = {name: _settled(found, own.get(name)) for name, found in self._types.items()}
        types = types or _RECORD
        self._as_text |= {name for name, found in types.items() if _has_empty_object(found)}
        while not self._write(types):
            pass
        for name in sorted(self._as_text):
            _log.warning("column %s is JSON text, as its values have no one Parquet type", name)

    def _note_types(self) -> None:
        for name in {name: None for row in self._rows for name in row}:
            found = pa.null()
            try:
                found = pa.array([row.get(name) for row in self._rows]).type
                found = _merged(self._types.get(name, found), found)
            except REFUSALS:
                self._as_text.add(name)
            self._types[name] = found

    def _write(self, types: dict[str, Any]) -> bool:
        """Write all rows; False where a column turned out to have no one type."""
        types = types | dict.fromkeys(self._as_text, pa.string())
        schema = pa.schema(types)
        alters = {name: _alters(kind) for name, kind in types.items()}
        with (
            pa.OSFile(os.fsencode(self._path), "wb") as opened,  # as bytes, which any name is
            pq.ParquetWriter(opened, schema, compression="zstd") as writer,
        ):
            for rows in self._all_groups():
                columns = []
                for name, kind in types.items():
                    values = [row.get(name) for row in rows]
                    if name in self._as_text:
                        texts = [v if v is None else json.dumps(v, default=str) for v in values]
                        columns.append(pa.array(texts, kind))
                        continue
                    try:
                        columns.append(pa.array(values, kind))
                    except REFUSALS:  # such as a huge integer among numbers with a fraction
                        self._as_text.add(name)
                        return False
                    if (altered := alters[name]) and any(map(altered, values)):
                        self._as_text.add(name)
                        return False
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        return True

    def _all_groups(self) -> Iterator[list[Row]]:
        if self._groups is not None:
            self._groups.seek(0)
            with contextlib.suppress(EOFError):
                while True:
                    yield pickle.load(self._groups)
        yield self._rows


def _merged(one: Any, other: Any) -> Any:
    """Return the type that holds values of both; ArrowException if there is none."""
    schemas = [pa.schema({"column": kind}) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _settled(found: Any, own: Any) -> Any:
    """Return our own type of a column, where there is one and it holds all that was found."""
    try:
        return own if own is not None and _merged(own, found) == own else found
    except REFUSALS:
        return found


def _has_empty_object(kind: Any) -> bool:
    """Tell whether a type has an object without keys in it, for which Parquet has no form."""
    if pa.types.is_list(kind):
        return _has_empty_object(kind.value_type)
    return pa.types.is_struct(kind) and (
        not kind.num_fields or any(_has_empty_object(field.type) for field in kind)
    )


def _alters(kind: Any) -> Callable[[Any], bool] | None:
    """Return what tells whether Arrow makes another value of one, such as 1.0 of true.

    None where it never does, as it says itself what does not fit.
    """
    types = pa.types
    if types.is_struct(kind):
        parts = [(part.name, alters) for part in kind if (alters := _alters(part.type))]
        if parts:
            return lambda value: bool(value) and any(test(value.get(key)) for key, test in parts)
    if types.is_list(kind) and (alters := _alters(kind.value_type)):
        return lambda value: bool(value) and any(map(alters, value))
    if types.is_floating(kind):
        return lambda value: isinstance(value, bool)
    if types.is_binary(kind):
        return lambda value: isinstance(value, str)
    if types.is_date(kind):
        return lambda value: isinstance(value, datetime)
    return None

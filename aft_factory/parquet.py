"""Parquet: rows in and out, in groups. The one module that knows the Arrow types of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.files import named
from aft_factory.records import Row

ROWS = 2000  # of a group: what is held in memory


def read_parquet(path: Path, on_bytes: Callable[[int], object]) -> Iterator[Row]:
    """Read the rows of a file.

    Args:
        path: The file.
        on_bytes: Told how much of the file was read since the last call.

    Raises:
        UsageError: If the file is no Parquet file, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield from batch.to_pylist()
                on_bytes(size * batch.num_rows // max(file.metadata.num_rows, 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise named(error, path) from None  # such as a file that may not be read
        raise UsageError(f"{path}: no Parquet file, or damaged: {error}") from None


class ParquetSink:
    """Collects rows into row groups; the schema is the records' own where the rows are records."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._writer: Any = None

    def write(self, row: Row) -> None:
        """Append one row."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
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
        """Write what is left and the footer."""
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

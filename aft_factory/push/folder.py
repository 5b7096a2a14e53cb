"""The folder of a data set: Parquet shards of its records, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.push.publication import Publication
from aft_factory.push.settings import PushSettings
from aft_factory.records.files import named
from aft_factory.records.record import Row
from aft_factory.records.table_writer import TableWriter
from aft_factory.stats.counts import Counts


@contextlib.contextmanager
def new_folder(target: Path | None) -> Iterator[Path]:
    """Yield a folder that becomes `target` if the block ends well; None: that is removed."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="aft-push-") as made:
            yield Path(made)
        return
    target = Path(os.path.realpath(target))
    aside = target.with_name(f".aft-{secrets.token_hex(6)}.part")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise named(error, target) from None
    try:
        yield aside
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_data(settings: PushSettings, folder: Path, publication: Publication) -> dict[str, Any]:
    """Write the records as Parquet shards under `data/` and return their counts.

    Raises:
        UsageError: If a row is no record and that was not foreseen, none is one, or no row has a
            column to publish.
    """
    counts = Counts(settings.columns())
    shards: list[Path] = []
    for rows in _shards(_rows(settings, counts, publication), settings.shard_rows):
        shards.append(folder / "data" / f"{len(shards):05d}.parquet")
        with TableWriter(shards[-1]) as table:
            for row in rows:
                table.write(row)
    if not counts.usable:
        raise UsageError(f"{settings.input}: no usable record in {counts.read} rows")
    publication.check()
    for number, path in enumerate(shards):
        path.rename(path.with_name(f"train-{number:05d}-of-{len(shards):05d}.parquet"))
    return counts.to_dict()


def _rows(settings: PushSettings, counts: Counts, publication: Publication) -> Iterator[Row]:
    with settings.shown([settings.input], "write", quiet=settings.quiet) as lines:
        for line in lines:
            record = counts.read_line(line)
            if record is not None:
                try:
                    yield publication.record(record, line.place).to_row()
                except (TypeError, RecursionError) as error:  # JSON has no form for it in `meta`
                    raise UsageError(f"{line.place}: cannot be written: {error}") from None
            elif not settings.skip_unusable:
                field, (_, reason) = next(iter(counts.rejects.by_field.items()))
                raise UsageError(
                    f"{line.place}: {field}: {reason}; --skip-unusable leaves such rows out "
                    "(aft_factory.stats counts them)"
                )


def _shards(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    for first in rows:
        yield chain([first], islice(rows, size - 1))

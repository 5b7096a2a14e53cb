"""The shards of a conversion, joined: their rows and rejects are put back in the input's order.

Nothing is converted anew and no input is read: what the shards wrote is copied, and written,
counted, judged and told by the conversion's own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.shard import Part
from aft_factory.convert.summary import Summary, added
from aft_factory.convert.writing import check_files, tell, write_files
from aft_factory.errors import UsageError
from aft_factory.records import exact_json
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.declaring import build
from aft_factory.stage.shard import ShardFile, shard_path


def merge_conversions(
    files: Sequence[ShardFile], kept: dict[str, Any], given: dict[str, Any]
) -> int:
    """Write what one conversion would have written; return the exit code that it would have had.

    Args:
        files: Of its shards, in their order.
        kept: Its settings.
        given: Where the merged files go, and what may be replaced.
    """
    parts = list(map(Part.of, files))
    kept |= {name: given[name] for name in ("output", "rejects", "overwrite", "strict")}
    settings = build(ConvertSettings, [(str(shard_path(files[0].path)), kept)])
    beside = [path for part in parts for path in (part.rejects_path, shard_path(part.file.path))]
    check_files(settings, [*(str(file.path) for file in files), *map(str, beside)])
    try:
        summary = added([part.summary for part in parts])
    except ValueError:
        raise UsageError(
            f"{files[0].path} and the others are not parts of one input, by how many rows each has "
            "read; give the commands of all shards again with --overwrite"
        ) from None

    def fill(table: TableWriter | None, rejects: Rejects) -> Summary:
        assert table is not None
        copy_rows(parts, summary, table, rejects)
        return summary

    return tell(settings, *write_files(settings, fill, parts[0].chat), parts[0].chat, merged=True)


def copy_rows(
    parts: Sequence[Part], summary: Summary, table: TableWriter, rejects: Rejects
) -> None:
    """Copy rows and rejects in the order in which one run would have come to them.

    Raises:
        UsageError: If a part is not as its conversion left it.
    """
    rows, lost = [part.rows() for part in parts], [part.rejects() for part in parts]
    digests = [[hashlib.blake2b(digest_size=16) for _ in part.digests] for part in parts]
    for number, count in enumerate(summary.rows):
        at = number % len(parts)
        for row in islice(rows[at], count):
            digests[at][0].update(exact_json.dump(row))
            table.write(row)
        for line in islice(lost[at], not count):
            digests[at][1].update(line)
            try:
                rejects.copy(line)
            except (ValueError, LookupError, TypeError):
                raise _changed(parts[at], parts[at].rejects_path) from None
    for part, found, *rest in zip(parts, digests, rows, lost, strict=True):
        names = (part.file.path, part.rejects_path)
        for name, digest, then, more in zip(names, found, part.digests, rest, strict=True):
            if digest.hexdigest() != then or any(True for _ in more):
                raise _changed(part, name)


def _changed(part: Part, name: Path) -> UsageError:
    """Return the error of a file that is not the one that a shard has left."""
    return UsageError(
        f"{name}: not as its shard left it ({part.file.shard}); copy it anew, or give the command "
        "of the shard again with --overwrite"
    )

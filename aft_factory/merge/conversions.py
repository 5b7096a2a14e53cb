"""The shards of a conversion, joined: their rows and rejects are put back in the input's order.

Nothing is converted anew and no input is read: what the shards wrote is copied, and written,
counted, judged and told by the conversion's own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from aft_factory.convert.settings import ConvertSettings, shard_path
from aft_factory.convert.shard import Part, read_part
from aft_factory.convert.summary import Summary, added
from aft_factory.convert.writing import check_files, tell, write_files
from aft_factory.errors import UsageError
from aft_factory.merge.parts import in_order
from aft_factory.records import exact_json
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.declaring import build, declared
from aft_factory.stage.left import difference

# What decides no row.
INDIFFERENT = {
    *("output", "rejects", "shard", "by_flag", "preview", "overwrite", "strict", "quiet"),
}


def merge_conversions(paths: Sequence[Path], own: ConvertSettings) -> int:
    """Write what one conversion would have written; return the exit code that it would have had.

    Args:
        paths: The outputs of the shards.
        own: Where the merged files go, and what may be replaced.
    """
    parts = [read_part(path) for path in paths]
    first = parts[0]
    for part in parts:
        _check_same(first, part)
    parts = in_order(parts)
    kept = first.origin.kept["settings"]
    known = {name: value for name, value in kept.items() if name in declared(ConvertSettings)}
    known |= {name: getattr(own, name) for name in ("output", "rejects", "overwrite", "strict")}
    known |= {"shard": None}
    settings = build(ConvertSettings, [(str(shard_path(first.path)), known)])
    settings = replace(settings, by_flag=tuple(kept["by_flag"]))
    beside = [path for part in parts for path in (part.rejects_path, shard_path(part.path))]
    check_files(settings, list(map(str, [*paths, *beside])))
    try:
        summary = added([part.summary for part in parts])
    except ValueError:
        raise UsageError(
            f"{first.path} and the others are not parts of one input, by how many rows each has "
            "read; give the commands of all shards again with --overwrite"
        ) from None

    def fill(table: TableWriter | None, rejects: Rejects) -> Summary:
        assert table is not None
        copy_rows(parts, summary, table, rejects)
        return summary

    return tell(settings, *write_files(settings, fill), first.origin.chat, merged=True)


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
            rejects.copy(line)
    for part, found, *rest in zip(parts, digests, rows, lost, strict=True):
        names = (part.path, part.rejects_path)
        for name, digest, then, more in zip(names, found, part.digests, rest, strict=True):
            if digest.hexdigest() != then or any(True for _ in more):
                raise UsageError(
                    f"{name}: not as its shard left it ({part.shard}); copy it anew, or give the "
                    "command of the shard again with --overwrite"
                )


def _check_same(first: Part, part: Part) -> None:
    """Refuse a part of another conversion."""
    if found := difference(first.origin.kept, part.origin.kept, INDIFFERENT):
        raise UsageError(f"{part.path} is of other settings than {first.path}: {found}")
    for name, one, other in zip(
        part.origin.kept["settings"]["input"], first.origin.inputs, part.origin.inputs, strict=True
    ):
        if one != other:
            raise UsageError(
                f"{part.path} and {first.path}: {name} was not the same when these read it; give "
                "the command of one again with --overwrite"
            )
    if part.origin.made_by != first.origin.made_by:
        raise UsageError(
            f"{part.path} and {first.path}: of equal settings, but another aggregator prompt, "
            "tokenizer, chat template or version of aft-factory made them"
        )

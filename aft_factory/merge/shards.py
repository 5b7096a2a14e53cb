"""Shards of commands that keep no journal: which belong together, and what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aft_factory.convert.settings import ConvertSettings
from aft_factory.errors import UsageError
from aft_factory.merge.conversions import merge_conversions
from aft_factory.merge.counts import merge_counts
from aft_factory.merge.parts import in_order
from aft_factory.stage.declaring import declared
from aft_factory.stage.kept import command_of
from aft_factory.stage.left import difference
from aft_factory.stage.shard import ShardFile, damaged
from aft_factory.stats.settings import StatsSettings

# By command: its settings, what joins its shards, and the flags of a merge that are of use there.
JOINED: dict[str, tuple[type[Any], Any, set[str]]] = {
    "ConvertSettings": (ConvertSettings, merge_conversions, {"rejects", "strict"}),
    "StatsSettings": (StatsSettings, merge_counts, set()),
}
# What decides no row and no count.
INDIFFERENT = {
    *("output", "rejects", "json", "plot", "shard", "by_flag"),
    *("preview", "overwrite", "strict", "quiet"),
}


def merge_shards(paths: Sequence[Path], given: dict[str, Any]) -> int:
    """Write what one run would have written; return the exit code that it would have had.

    Args:
        paths: The outputs of the shards.
        given: What else is asked of the merge, by name: `output`, `overwrite`, ...
    """
    files = [ShardFile.read(path) for path in paths]
    first = files[0]
    for file in files:
        _check_same(first, file)
    files = in_order(files)
    if first.kept["command"] not in JOINED:
        raise damaged(first.path)
    kind, join, taken = JOINED[first.kept["command"]]
    for name in ("input", "task_output", "rejects", "strict"):
        if given[name] and name not in taken:
            flag, command = name.replace("_", "-"), command_of(kind.__name__)
            raise UsageError(f"--{flag}: not for shards of {command}; leave it out")
    kept = {key: value for key, value in first.kept["settings"].items() if key in declared(kind)}
    return int(join(files, kept | {"shard": None}, given))


def _check_same(first: ShardFile, other: ShardFile) -> None:
    """Refuse a part of another run."""
    if found := difference(first.kept, other.kept, INDIFFERENT):
        told = f"{other.path} is of other settings than {first.path}"
        raise UsageError(f"{told}: {found}" if "now" in found else f"{told}: {found} made that")
    for name, state in first.inputs.items():
        if other.inputs[name] != state:
            raise UsageError(
                f"{other.path} and {first.path}: {name} was not the same when these read it; give "
                "the command of one again with --overwrite"
            )
    if other.made_by != first.made_by:
        raise UsageError(
            f"{other.path} and {first.path}: of equal settings, but another aggregator prompt, "
            "tokenizer, chat template or version of aft-factory made them"
        )

"""The shards of `aft stats`, joined: counts are added up, and told by the command's own code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.records.replacing import check_writable
from aft_factory.stage.declaring import build
from aft_factory.stage.reading import check_paths
from aft_factory.stage.shard import ShardFile, damaged, shard_path
from aft_factory.stats.__main__ import tell
from aft_factory.stats.counts import MOST_NAMES, OTHERS, Counts, added
from aft_factory.stats.settings import StatsSettings


def merge_counts(files: Sequence[ShardFile], kept: dict[str, Any], given: dict[str, Any]) -> int:
    """Write and tell what one run would have counted; return the exit code it would have had.

    Args:
        files: Of the shards, in their order.
        kept: Settings of the run.
        given: Where all numbers are written, and what may be replaced.

    Raises:
        UsageError: If the shards do not tell what one run would.
    """
    kept |= {"json": given["output"], "plot": None, "overwrite": given["overwrite"]}
    settings = build(StatsSettings, [(str(shard_path(files[0].path)), kept)])
    if settings.tokenizer is not None and settings.sample:
        raise UsageError(
            f"{files[0].path} and the others: each counted the tokens of {settings.sample} rows of "
            "its own, which are none of the whole; with --sample 0 they count all, and are joined"
        )
    paths = [path for file in files for path in (file.path, shard_path(file.path))]
    check_paths(list(map(str, paths)), settings.outputs)
    for _, path in settings.outputs:
        check_writable(path, overwrite=settings.overwrite)
    counts = Counts(settings.columns(), settings.template)
    try:
        counts.add_json(reduce(added, (file.found for file in files)))
    except (ValueError, LookupError, TypeError):
        raise damaged(files[0].path) from None
    for what, names in (("sources", counts.sources), ("models", counts.models)):
        if OTHERS in names or len(names) > MOST_NAMES:
            raise UsageError(
                f"{files[0].path} and the others: more than {MOST_NAMES} {what}, of which one run "
                "counts by themselves those that come first: that cannot be told of shards"
            )
    return tell(settings, counts)

"""What comes next: the last line of a command, for a person to copy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

PIPELINE = "AFT_FACTORY_PIPELINE"  # an environment variable: in a pipeline, it does what comes next


def following(*words: str | Path) -> list[str]:
    """Return the line that tells the next command."""
    return [] if in_pipeline() else [f"next: {shlex.join(map(str, words))}"]


def merging(output: Path, shard: str) -> list[str]:
    """Return the line that tells that the parts are joined, after a shard."""
    merged = "merged.json" if output.suffix == ".json" else "merged.jsonl"
    lines = following("aft", "merge", output, "...", "--output", merged)
    return [f"{line}, with the outputs of the other shards (this was {shard})" for line in lines]


def in_pipeline() -> bool:
    """Tell whether this command is a stage of a pipeline, whose user gives it no flags."""
    return bool(os.environ.get(PIPELINE))

"""What a shard of a command without journal leaves beside its output, for `aft merge`.

`part.jsonl.shard`, compressed JSON, is there before its output is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_factory import __version__
from aft_factory.errors import UsageError
from aft_factory.records.files import open_bytes
from aft_factory.stage.kept import keepable
from aft_factory.stage.reading import Settings
from aft_factory.stage.states import state_of


def shard_path(output: Path) -> Path:
    """Return where a shard of that output leaves what `aft merge` needs beside it."""
    return output.with_name(f"{output.name}.shard")


def damaged(path: Path) -> UsageError:
    """Return the error of an output whose file is none that we can read."""
    return UsageError(
        f"{shard_path(path)}: damaged, or of another version of aft-factory; give the command of "
        "its shard again with --overwrite"
    )


@dataclass(frozen=True, slots=True)
class ShardFile:
    """What a shard is made from, and what it has found.

    Attributes:
        path: Its output, as named.
        kept: Command and settings; see `kept.keepable`.
        inputs: The state of each input when it began.
        made_by: What else decides: our version, the aggregator prompt, the tokenizer.
        found: What its command needs to join it with others.
    """

    path: Path
    kept: dict[str, Any]
    inputs: dict[str, Any]
    made_by: list[str]
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, path: Path, settings: Settings, inputs: Iterable[str], made_by: Iterable[str]
    ) -> ShardFile:
        """Return that of a shard that is to begin."""
        states = {name: state_of(name) for name in inputs}
        return cls(path, json.loads(keepable(settings)), states, [__version__, *made_by])

    @property
    def shard(self) -> str:
        """Which of the shards it is."""
        return str(self.kept["settings"]["shard"])

    def data(self, found: dict[str, Any]) -> bytes:
        """Return what the file holds, once the shard has found that."""
        made_from = {"kept": self.kept, "inputs": self.inputs, "made_by": self.made_by}
        return gzip.compress(json.dumps(made_from | {"found": found}).encode(), mtime=0)

    @classmethod
    def read(cls, path: Path) -> ShardFile:
        """Return what a shard has left, by its output.

        Raises:
            UsageError: If it has left nothing, or not ended.
        """
        beside = shard_path(path)
        try:
            with open_bytes(beside, suffix=".gz") as stream:
                content = json.loads(stream.read())
            read = cls(path, *(content[name] for name in ("kept", "inputs", "made_by", "found")))
            shard = read.shard
        except FileNotFoundError:
            raise UsageError(
                f"{path}: no shard of `aft convert` or `aft stats`, as others are: expected what "
                f"such a one leaves beside it, {beside}"
            ) from None
        except (ValueError, LookupError, TypeError, UsageError):
            raise damaged(path) from None
        if not path.is_file():
            raise UsageError(f"{path}: shard {shard} is not done; give its command again")
        return read

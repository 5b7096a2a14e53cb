"""What a command leaves: files, and entries of files that are others' too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.records.files import read_text


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a JSON file that holds those of others too, such as `dataset_info.json`."""

    file: Path
    name: str
    content: Mapping[str, Any]

    def is_there(self) -> bool:
        """Tell whether the file has it as it is here."""
        try:
            return bool(json.loads(read_text(self.file))[self.name] == self.content)
        except (OSError, ValueError, LookupError, TypeError):
            return False


@dataclass(frozen=True, slots=True)
class Leaves:
    """What a command leaves.

    Attributes:
        outputs: What it is for, the main one first.
        traces: What lies beside: rejects, summary and journal.
        entry: What it adds to a file of others'.
        summary: Of the traces, the one that counts the rows whose engine failed.
    """

    outputs: Sequence[Path] = ()
    traces: Sequence[Path] = ()
    entry: Entry | None = None
    summary: Path | None = None

    def files(self) -> list[Path]:
        """Return all files that it writes, also such as hold what is others'."""
        entry = [] if self.entry is None else [self.entry.file]
        return [*self.outputs, *self.traces, *entry]

    def places(self) -> dict[str, str]:
        """Return all that it writes: what tells it from others, and how to name it."""
        found = {str(path.resolve()): str(path) for path in (*self.outputs, *self.traces)}
        if self.entry is not None:
            file, name = self.entry.file, self.entry.name
            found[f"{file.resolve()}: {name}"] = f"the data set {name!r} of {file}"
        return found

    def are_there(self) -> bool:
        """Tell whether all that it is for is there."""
        entry = self.entry is None or self.entry.is_there()
        return entry and all(path.exists() for path in self.outputs)

"""What LLaMA-Factory logs of a training: the loss of each step.

trainer_log.jsonl            {"current_steps": 5, "total_steps": 8, "loss": 1.2, ...}, as it goes
trainer_state.json           {"log_history": [{"step": 5, "loss": 1.2, ...}, ...]}, at the end
checkpoint-N/trainer_state.json    the same up to a step

A training that was resumed logs steps anew; those are what it went on from, so they count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.records.files import read_text

LOG, STATE = "trainer_log.jsonl", "trainer_state.json"


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """A loss by step.

    Attributes:
        steps: Optimizer steps, ascending.
        losses: Of each; finite.
        anew: Steps that a resumed training logged again.
        unknown: Steps whose loss is not finite.
        broken: Lines that are no JSON, as of a training that was killed.
    """

    steps: list[int]
    losses: list[float]
    anew: int = 0
    unknown: int = 0
    broken: int = 0

    @property
    def left_out(self) -> list[str]:
        """What was left out, in words."""
        counts = {
            "steps that a resumed training logged again": self.anew,
            "steps whose loss is not finite": self.unknown,
            "lines that are no JSON": self.broken,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]


def read_log(folder: Path, metric: str = "loss") -> TrainingLog:
    """Read what a training logged, from its output folder or from one of its files.

    Raises:
        UsageError: If there is no such file, or no finite loss in it.
    """
    path = _log_of(folder)
    broken = 0
    entries: list[Any] = []
    if path.name.endswith(".json"):
        try:
            entries = json.loads(read_text(path))["log_history"]
        except (ValueError, LookupError, TypeError):
            raise UsageError(f"{path}: not a trainer_state.json") from None
    else:
        for line in filter(str.strip, read_text(path).splitlines()):
            try:
                entries.append(json.loads(line))
            except ValueError:
                broken += 1
    found: dict[int, float] = {}
    anew: set[int] = set()
    for step, loss in _losses(entries, metric):
        gone = [later for later in found if later >= step]
        anew.update(gone)
        for later in gone:
            del found[later]
        found[step] = loss
    known = {step: loss for step, loss in found.items() if math.isfinite(loss)}
    if not known:
        raise UsageError(f"{path}: no step with a finite {metric}")
    return TrainingLog(
        list(known), list(known.values()), len(anew), len(found) - len(known), broken
    )


def _losses(entries: Any, metric: str) -> Iterator[tuple[int, float]]:
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        step, loss = entry.get("current_steps", entry.get("step")), entry.get(metric)
        if isinstance(step, int) and isinstance(loss, (int, float)):
            yield step, float(loss)


def _log_of(folder: Path) -> Path:
    if folder.is_file():
        return folder
    checkpoints = [
        path for path in folder.glob(f"checkpoint-*/{STATE}") if path.parent.name[11:].isdigit()
    ]
    checkpoints.sort(key=lambda path: -int(path.parent.name[11:]))
    for path in (folder / LOG, folder / STATE, *checkpoints):
        if path.is_file() and path.stat().st_size:
            return path
    raise UsageError(
        f"{folder}: no {LOG} and no {STATE} with anything in it; expected the output_dir of a "
        "training by LLaMA-Factory"
    )

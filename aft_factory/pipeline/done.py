"""What a step's outputs were made from, in a file beside them: what is done is not done again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from aft_factory.errors import UsageError
from aft_factory.pipeline.step import Step
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.records.files import read_text, readable
from aft_factory.records.replacing import check_place, write_whole
from aft_factory.stage.states import content, state_of

PROMPTS = ("template", "prompt", "chat_template")  # a path, or the name of one of ours


def fingerprint(step: Step) -> str:
    """Name what a step's outputs are made from: its settings and all files that these name."""
    settings, named = step.made_from()
    states = [(key, text, _state(key, text)) for key, text in named]
    kept = [step.stage, settings, sorted(state for state in states if state[2] is not None)]
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    data = orjson.dumps(kept, default=str, option=options)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _state(key: str, text: str) -> Any:
    """Return what tells one state of a file or folder from another; None if there is none."""
    names = [text]
    if key in PROMPTS:
        names += [str(kind / f"{text}.jinja") for kind in sorted(TEMPLATES.iterdir())]
    for name in names:
        # Not folders, such as caches, that change at any time: models, adapters, tokenizers.
        if os.path.isdir(name) and key != "input" and not any(Path(name).glob("*config.json")):
            continue
        if (state := state_of(name)) is not None:
            return state
    return None


def marker(step: Step, path: Path) -> Path:
    """Return the file that says what a step's outputs were made from."""
    if step.outputs:
        return Path(f"{step.outputs[0]}.done")
    return path.with_name(f".{path.stem}.{step.number}-{step.stage}.done")


def is_done(step: Step, path: Path) -> bool:
    """Tell whether a step's outputs are there, made from what would be used now."""
    kept = marker(step, path)
    noted = _noted(kept)
    return bool(noted) and step.is_there() and noted[0] == fingerprint(step)


def _noted(kept: Path) -> list[str]:
    return read_text(kept).split("\n") if kept.exists() else []  # a name may hold U+2028


def check_unchanged(step: Step, path: Path) -> None:
    """Before a step is done anew: an output that was changed by hand is not written over.

    Raises:
        UsageError: With every output that is not as the step has left it.
    """
    noted = _noted(marker(step, path))
    left = orjson.loads(noted[1]) if len(noted) > 1 else {}  # earlier versions noted none
    problems = [
        f"{step.place}: {step.outputs[0].parent / name} was changed since it was made, and is to "
        "be made anew, as its settings or what it was made from have changed; move it away first. "
        "It can stay in use as the `input` of the next stage"
        for name, state in _left(step).items()
        if left.get(name, state) != state
    ]
    if problems:
        raise UsageError(*problems)


def _left(step: Step) -> dict[str, Any]:
    """Return the state of each file that a step is for, by its place from the first one's."""
    files = [file for file in step.outputs if file.is_file()]  # a training leaves a folder
    return {
        readable(os.path.relpath(file, step.outputs[0].parent)): content(file) for file in files
    }


def check_places(steps: Iterable[Step], path: Path) -> None:
    """Try whether what is left to do can be written, before the first step starts.

    Raises:
        UsageError: With the first place of every step that cannot.
    """
    problems: list[str] = []
    for step in steps:
        if is_done(step, path):
            continue
        try:
            check_unchanged(step, path)
        except UsageError as error:
            problems += error.args
        try:
            for place in (*step.written(), marker(step, path)):
                check_place(place)
        except UsageError as error:
            problems.append(f"{step.place}: {error}")
    if problems:
        raise UsageError(*problems)


def forget(step: Step, path: Path) -> None:
    """Before a step is done anew: what it then leaves may be less than what it left before."""
    marker(step, path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Rows that have no answer as the engine failed, and may have one when they are asked again.

    Attributes:
        count: How many.
        read: Of how many.
        reason: Why the first has none.
    """

    count: int
    read: int
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.count} of {self.read} rows have no answer, as the engine failed "
            f"(the first: {' '.join(self.reason.split())}); the same command asks again"
        )


def note_done(step: Step, path: Path, state: str) -> Unanswered | None:
    """Note that a step has ended well, unless its engine failed for some rows; return these.

    They are asked for again at the next start, which takes all others from the journal.
    """
    left = orjson.dumps(_left(step)).decode()
    if step.leaves.summary is not None:
        summary = orjson.loads(read_text(step.leaves.summary))
        if failed := summary["rejects"].get("engine"):
            write_whole(marker(step, path), f"\n{left}".encode())
            return Unanswered(failed["count"], summary["read"], failed["first"])
    write_whole(marker(step, path), f"{state}\n{left}".encode())
    return None

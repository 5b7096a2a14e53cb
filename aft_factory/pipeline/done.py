"""What a step's outputs were made from, in a file beside them: what is done is not done again."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from aft_factory.pipeline import training
from aft_factory.pipeline.steps import ASKING, WRITES, Step
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.records.files import read_text, write_whole
from aft_factory.stage.output import summary_path

MOST_READ = 1 << 30  # bytes: some seconds; of a larger file, size and time stand for its content
PROMPTS = ("template", "prompt", "chat_template")  # a path, or the name of one of ours
# Settings whose folders are read whole. Others, such as a cache, may change for any reason.
FOLDERS = ("input", "model", "adapter", "tokenizer", "reward_model", *training.FOLDERS)


def fingerprint(step: Step) -> str:
    """Name what a step's outputs are made from: its settings and all files that these name."""
    settings: Any = dict(step.settings)
    names = [(key, text) for key, text in _named(step) if key not in WRITES]
    if step.stage == "train":
        settings = [step.read, training.datasets(step.read)]
        names = [(key, text) for key, text in names if key not in training.NOT_READ]
        names += [("input", file) for file in training.files(step.read)]
    states = [(key, text, _state(key, text)) for key, text in names]
    kept = [step.stage, settings, sorted(state for state in states if state[2] is not None)]
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    data = orjson.dumps(kept, default=str, option=options)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _named(step: Step) -> Iterator[tuple[str, str]]:
    """Go through the texts in all settings, those that its command reads elsewhere included."""
    read = step.read
    if isinstance(read, argparse.Namespace):
        read = vars(read)
    elif not isinstance(read, Mapping):
        read = asdict(read)
    for key, value in (*step.settings.items(), *read.items()):
        for text in _texts(value):
            yield key, text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, (list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _state(key: str, text: str) -> Any:
    """Return what tells one state of a file or folder from another; None if there is none."""
    names = [text]
    if key in PROMPTS:
        names += [str(kind / f"{text}.jinja") for kind in sorted(TEMPLATES.iterdir())]
    for name in names:
        if os.path.isfile(name):  # unlike Path's, it takes any text
            return _content(Path(name))
        if key in FOLDERS and os.path.isdir(name):
            files = sorted(path for path in Path(name).rglob("*") if path.is_file())
            return [[str(path), *_size_and_time(path)] for path in files]
    return None


def _content(path: Path) -> list[Any]:
    if path.stat().st_size > MOST_READ:
        return _size_and_time(path)
    with path.open("rb") as stream:
        return [hashlib.file_digest(stream, hashlib.blake2b).hexdigest()]


def _size_and_time(path: Path) -> list[Any]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def marker(step: Step, path: Path) -> Path:
    """Return the file that says what a step's outputs were made from."""
    if step.outputs:
        return Path(f"{step.outputs[0]}.done")
    return path.with_name(f".{path.stem}.{step.number}-{step.stage}.done")


def is_done(step: Step, path: Path) -> bool:
    """Tell whether a step's outputs are there, made from what would be used now."""
    kept = marker(step, path)
    there = all(output.exists() for output in step.outputs)
    if step.stage == "train":
        there = training.is_trained(step.read)
    return there and kept.exists() and read_text(kept) == fingerprint(step)


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


def keep(step: Step, path: Path, state: str) -> Unanswered | None:
    """Note that a step has ended well, unless its engine failed for some rows; return these.

    They are asked for again at the next start, which takes all others from the journal.
    """
    if step.stage in ASKING:
        summary = orjson.loads(read_text(summary_path(step.outputs[0])))
        if failed := summary["rejects"].get("engine"):
            return Unanswered(failed["count"], summary["read"], failed["first"])
    write_whole(marker(step, path), state.encode())
    return None

"""A step that is a training by LLaMA-Factory, as its file of settings has it.

Knows LLaMA-Factory's files only; loads nothing of it.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.pipeline.step import Step, texts
from aft_factory.records.files import read_text
from aft_factory.records.replacing import write_whole
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.yaml_file import read_yaml

Training = Mapping[str, Any]

CLI = "llamafactory-cli"
KEYS = ("config", "input")

NOT_READ = ("config", "output_dir", "logging_dir", "dataset_dir", "resume_from_checkpoint")
WEIGHTS = ("*.safetensors*", "*.bin*")


class TrainStep(Step):
    """A training; `read` is the content of its file."""

    __slots__ = ()

    trains = True

    def checked(self) -> tuple[Step, list[str]]:
        """Return the step with what its file says, and all that is wrong with it."""
        unknown = [key for key in self.settings if key not in KEYS]
        problems = [f"unknown key {key!r}; {suggest(str(key), KEYS)}" for key in unknown]
        config = self.settings.get("config")
        if not isinstance(config, str):
            return self, [*problems, "config is missing: a YAML file of LLaMA-Factory's"]
        try:
            training = read_yaml(Path(config))
        except UsageError as error:
            return self, [*problems, *error.args]
        folder = training.get("output_dir")
        if not isinstance(folder, str):
            missing = f"{config}: output_dir is missing; a folder for what is trained"
            return self, [*problems, missing]
        return replace(self, read=training, leaves=Leaves([Path(folder)])), problems

    def command(self, *more: str) -> list[str]:
        """Return the command that does it."""
        beside = Path(sys.executable).with_name(CLI)
        program = str(beside) if beside.exists() else CLI
        return [program, "train", self.settings["config"], *more]

    def __str__(self) -> str:
        """Its command, for a person to read or to run."""
        return shlex.join([CLI, *self.command()[1:]])

    def missing(self, made: Container[Path]) -> str | None:
        """Tell whether LLaMA-Factory is."""
        if shutil.which(self.command()[0]) is None:
            return f"needs {CLI}; install it with: pip install llamafactory"
        return None

    def written(self) -> list[Path]:
        """Return one of the files in its folder, and what lies beside that."""
        folder = self.outputs[0]
        return [folder / "config.json", _begun(folder)]

    def is_there(self) -> bool:
        """Tell whether there are weights."""
        return is_trained(self.read)

    def made_from(self) -> tuple[Any, list[tuple[str, str]]]:
        """Return its settings and data sets, and all texts in them that may be those of files."""
        named = [*texts(self.settings), *texts(self.read)]
        named = [(key, text) for key, text in named if key not in NOT_READ]
        named += [("input", file) for file in files(self.read)]
        return [self.read, datasets(self.read)], named

    def begin(self, state: str) -> list[str]:
        """See that it resumes what was begun in the same state, and nothing else."""
        return prepare(self.read, state)


def is_trained(training: Training) -> bool:
    """Tell whether there are weights in the output folder itself, which come at the end."""
    folder = Path(training["output_dir"])
    return any(any(folder.glob(name)) for name in WEIGHTS)


def datasets(training: Training) -> dict[str, Any]:
    """Return the entries of `dataset_info.json` that a training names."""
    info = Path(str(training.get("dataset_dir", "data"))) / "dataset_info.json"
    try:
        entries = json.loads(read_text(info))
    except (OSError, ValueError):  # LLaMA-Factory will say so
        return {}
    names = ",".join(str(training.get(key)) for key in ("dataset", "eval_dataset")).split(",")
    return {name: entries[name] for name in map(str.strip, names) if name in entries}


def files(training: Training) -> list[str]:
    """Return the files of these data sets."""
    folder = Path(str(training.get("dataset_dir", "data")))
    entries = datasets(training).values()
    return [str(folder / entry["file_name"]) for entry in entries if "file_name" in entry]


def prepare(training: Training, state: str) -> list[str]:
    """See that a training resumes what was begun in the same state, and nothing else.

    By itself LLaMA-Factory goes on from the last checkpoint in the output folder, whatever settings
    it was made with and even if it was cut off, and refuses a folder of weights without checkpoint.

    Args:
        training: Its settings.
        state: The fingerprint of its settings and files.

    Returns:
        What to add to the command.

    Raises:
        UsageError: If something else was trained there, by another than a pipeline.
    """
    folder = Path(training["output_dir"])
    begun = _begun(folder)
    own = begun.exists() and read_text(begun) == state
    if own:
        for checkpoint in folder.glob("checkpoint-*"):
            if not _is_whole(checkpoint):
                shutil.rmtree(checkpoint)
    checkpoints = any(folder.glob("checkpoint-*"))
    more = []
    if checkpoints or is_trained(training):
        if own:
            more = [f"overwrite_output_dir={'false' if checkpoints else 'true'}"]
        elif begun.exists() or training.get("overwrite_output_dir"):
            _move_aside(folder)
        elif not training.get("resume_from_checkpoint"):
            raise UsageError(
                f"{folder}: a training that no pipeline began is in it; move it away, name another "
                "output_dir, or set overwrite_output_dir or resume_from_checkpoint"
            )
    write_whole(begun, state.encode())
    return more


def _begun(folder: Path) -> Path:
    """Return the file that says what a training in a folder was begun with."""
    return Path(f"{folder}.begun")


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has the file that transformers writes last."""
    try:
        json.loads(read_text(checkpoint / "trainer_state.json"))
    except (OSError, ValueError):
        return False
    return True


def _move_aside(folder: Path) -> None:
    names = (Path(f"{folder}.old{number or ''}") for number in itertools.count())
    aside = next(name for name in names if not name.exists())
    folder.rename(aside)
    print(f"{folder} was trained with other settings or data; it is in {aside} now", flush=True)

"""A training by LLaMA-Factory, as its file of settings has it: what it reads, where it writes.

Knows LLaMA-Factory's files only; loads nothing of it.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.records.files import read_text, write_whole

Training = Mapping[str, Any]

FOLDERS = ("model_name_or_path", "adapter_name_or_path", "ref_model", "reward_model")
NOT_READ = ("config", "output_dir", "logging_dir", "dataset_dir")
WEIGHTS = ("*.safetensors*", "*.bin*")


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
    begun = Path(f"{folder}.begun")
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

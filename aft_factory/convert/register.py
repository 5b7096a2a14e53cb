"""Entries in LLaMA-Factory's `dataset_info.json`.

{"my_aft": {"file_name": "my_aft.jsonl", "formatting": "aggregation"}}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.prompts.selection import PAPER, Aggregation
from aft_factory.records.files import read_text, write_whole

TRAINABLE = (".jsonl", ".json", ".parquet")  # LLaMA-Factory looks at the last suffix only


def dataset_entry(folder: Path, output: Path, target: str, options: Aggregation) -> dict[str, Any]:
    """Return the entry for a converted file, in the `dataset_info.json` of a folder.

    The proposals in the file are selected and shuffled already, so of the options only the template
    matters to training, and only in records.
    """
    file_name = os.path.relpath(output.resolve(), folder.resolve())
    if target != "aggregation":
        return {"file_name": file_name, "formatting": "sharegpt"}
    entry: dict[str, Any] = {"file_name": file_name, "formatting": "aggregation"}
    if options.template != PAPER.template:
        path = Path(options.template)
        template = str(path.resolve()) if path.is_file() else options.template
        entry["aggregation"] = {"template": template}
    return entry


def check_registration(
    folder: Path, name: str, output: Path, overwrite: bool, entry: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of the folder's `dataset_info.json`, to be called before work starts.

    An entry that is there already and says the same is no other data set: it stands before its
    output does, and a killed run may have left it.

    Raises:
        UsageError: If the entry could not be added at the end.
    """
    if output.suffix not in TRAINABLE:
        raise UsageError(
            f"LLaMA-Factory does not read {output.suffix} files; write .jsonl to --register it"
        )
    if not name or name != name.strip() or "," in name:
        raise UsageError(
            f"--name {name!r}: LLaMA-Factory needs a name without commas and outer blanks"
        )
    info = folder / "dataset_info.json"
    if not folder.is_dir():
        raise UsageError(f"--register {folder}: no such folder")
    text = read_text(info) if info.exists() else "{}"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{info}: not JSON ({error}); mend it first") from None
    if not isinstance(entries, dict):
        raise UsageError(f"{info}: expected a JSON object of data sets")
    try:
        _text({**entries, name: {}})
    except UnicodeEncodeError as error:
        raise UsageError(f"{info}: cannot be written with {name!r} in it: {error}") from None
    if name in entries and entries[name] != entry and not overwrite:
        raise UsageError(
            f"{info} has a data set {name!r} already; choose another --name or pass --overwrite"
        )
    return entries


def register(folder: Path, name: str, output: Path, entry: dict[str, Any]) -> None:
    """Add or replace one entry of the folder's `dataset_info.json` and keep all others."""
    entries = check_registration(folder, name, output, overwrite=True)
    write_whole(folder / "dataset_info.json", _text({**entries, name: entry}))


def _text(entries: dict[str, Any]) -> bytes:
    return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode()

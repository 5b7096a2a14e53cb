"""Entries in LLaMA-Factory's `dataset_info.json`.

{"my_aft": {"file_name": "my_aft.jsonl", "formatting": "aggregation"}}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.prompts.selection import PAPER
from aft_factory.records.files import read_text
from aft_factory.records.replacing import write_whole
from aft_factory.stage.leaves import Entry

TRAINABLE = (".jsonl", ".json", ".parquet")  # LLaMA-Factory looks at the last suffix only


def dataset_entry(folder: Path, name: str, output: Path, target: str, template: str) -> Entry:
    """Return the entry for a converted file.

    The proposals in the file are selected and shuffled already, so of the options only the template
    matters to training, and only in records.
    """
    content: dict[str, Any] = {"file_name": os.path.relpath(output.resolve(), folder.resolve())}
    content["formatting"] = "aggregation" if target == "aggregation" else "sharegpt"
    if target == "aggregation" and template != PAPER.template:
        path = Path(template)
        content["aggregation"] = {"template": str(path.resolve()) if path.is_file() else template}
    return Entry(folder / "dataset_info.json", name, content)


def check_registration(entry: Entry, output: Path, *, overwrite: bool) -> dict[str, Any]:
    """Return the content of the file that is to have an entry, to be called before work starts.

    An entry that is there already and says the same is no other data set: it stands before its
    output does, and a killed run may have left it.

    Raises:
        UsageError: If the entry could not be added at the end.
    """
    info, name = entry.file, entry.name
    if output.suffix not in TRAINABLE:
        raise UsageError(
            f"LLaMA-Factory does not read {output.suffix} files; write .jsonl to --register it"
        )
    if not name or name != name.strip() or "," in name:
        raise UsageError(
            f"--name {name!r}: LLaMA-Factory needs a name without commas and outer blanks"
        )
    if not info.parent.is_dir():
        raise UsageError(f"--register {info.parent}: no such folder")
    text = read_text(info) if info.exists() else "{}"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{info}: not JSON ({error}); mend it first") from None
    if not isinstance(entries, dict):
        raise UsageError(f"{info}: expected a JSON object of data sets")
    try:
        _text({**entries, name: dict(entry.content)})
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{info}: cannot be written with {name!r} of {output} in it: {error}; LLaMA-Factory "
            "needs names in UTF-8"
        ) from None
    if name in entries and entries[name] != entry.content and not overwrite:
        raise UsageError(
            f"{info} has a data set {name!r} already; choose another --name or pass --overwrite"
        )
    return entries


def register(entry: Entry, output: Path) -> None:
    """Add or replace one entry of the folder's `dataset_info.json` and keep all others."""
    entries = check_registration(entry, output, overwrite=True)
    write_whole(entry.file, _text({**entries, entry.name: dict(entry.content)}))


def _text(entries: dict[str, Any]) -> bytes:
    return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode()

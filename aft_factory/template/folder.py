"""The chat templates in a model's folder: every file that transformers and vLLM may read one from.

A file is changed beside a copy of what was there, `NAME.before-aft`, which `undo` puts back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from aft_factory.errors import UsageError
from aft_factory.prompts.prelude import made_by
from aft_factory.records.files import read_text
from aft_factory.records.replacing import write_whole

PLAIN = "chat_template.jinja"
NAMED = "additional_chat_templates"
# In the order in which they count.
IN_JSON = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
KEY = "chat_template"
COPY = ".before-aft"
NAME = "aft template"  # in the prelude of what this command has made


def templates(path: Path) -> dict[str, str]:
    """Return the chat templates in a file by their names; none if it has none."""
    if not path.is_file():
        return {}
    if path.suffix == ".jinja":
        return {"default" if path.name == PLAIN else path.stem: read_text(path)}
    try:
        given = json.loads(read_text(path)).get(KEY)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: expected an object in JSON: {error}") from None
    if isinstance(given, list):
        return {str(one["name"]): str(one["template"]) for one in given}
    return {} if given is None else {"default": str(given)}


def files(folder: Path) -> list[Path]:
    """Return the files of a folder that have chat templates; the one that counts first."""
    found = [folder / PLAIN, *(folder / name for name in IN_JSON)]
    return [path for path in (*found, *sorted((folder / NAMED).glob("*.jinja"))) if templates(path)]


def own_template(folder: Path) -> str | None:
    """Return the chat template that a model's folder has; None if it has none."""
    return next((t["default"] for t in map(templates, files(folder)) if "default" in t), None)


def write(folder: Path, chat: str, more: Callable[[str, str], str]) -> list[Path]:
    """Write a chat template into all files of a folder that have one.

    Args:
        folder: The model's.
        chat: The chat template.
        more: What becomes of others, by name and text.

    Returns:
        The files that were changed.
    """
    changed = []
    found = files(folder)
    if not any("default" in templates(path) for path in found):
        found.append(folder / PLAIN)
    for path in found:
        before = templates(path)
        after = {name: chat if name == "default" else more(name, t) for name, t in before.items()}
        after = after or {"default": chat}
        if after == before:
            continue
        if before and not any(map(_is_ours, before.values())):
            shutil.copyfile(path, path.with_name(path.name + COPY))
        _replace(path, after)
        changed.append(path)
    return changed


def undo(folder: Path) -> list[Path]:
    """Put the files of a folder back as they were before `write`.

    Returns:
        The files that were changed.

    Raises:
        UsageError: If there is nothing to put back.
    """
    changed = []
    for copy in (*sorted(folder.glob(f"*{COPY}")), *sorted((folder / NAMED).glob(f"*{COPY}"))):
        path = copy.with_name(copy.name.removesuffix(COPY))
        copy.replace(path)
        changed.append(path)
    plain = folder / PLAIN
    if plain not in changed and _is_ours(templates(plain).get("default", "")):
        plain.unlink()  # where there was none
        changed.append(plain)
    if not changed:
        raise UsageError(f"{folder}: nothing to undo; there is no file NAME{COPY}")
    return changed


def _is_ours(chat: str) -> bool:
    return (made_by(chat) or "").startswith(NAME)


def _replace(path: Path, after: dict[str, str]) -> None:
    if path.suffix == ".jinja":
        (data,) = after.values()
    else:
        content = json.loads(read_text(path))
        named = [{"name": name, "template": text} for name, text in after.items()]
        content[KEY] = named if isinstance(content[KEY], list) else after["default"]
        data = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    if path.is_symlink():
        path.unlink()  # in the hub's cache it leads to a file that others share
    write_whole(path, data.encode())

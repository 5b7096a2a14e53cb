"""What a model is known by: a name, or the files of a folder that decide what it answers."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import orjson

from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.files import readable

DECIDING_FILES = re.compile(
    r".*\.(safetensors|bin|pt|gguf)|(adapter_|generation_)?config\.json|tokenizer.*"
)


def fingerprint(model: str) -> str:
    """Return what a model or adapter is known by in journals; see `VllmEngine.model`."""
    stats = _deciding(model)
    if stats is None:
        return model
    state = digest([(name, s.st_size, s.st_mtime_ns) for name, s in stats])
    return f"{readable(str(Path(model).resolve()))}#{state}"


def identity_of(source: Pretrained, *parts: str) -> str:
    """Return what a model that transformers loads is known by, with all else that decides."""
    revision = source.options.get("revision")
    own = [f"revision={revision}"] if revision else []
    return "+".join([fingerprint(source.name), *parts, *own])


def contents(model: str) -> str:
    """Return the same for all copies of a model's files: names and sizes, and no place or time."""
    stats = _deciding(model)
    return model if stats is None else digest([(name, s.st_size) for name, s in stats])


def _deciding(model: str) -> list[tuple[str, os.stat_result]] | None:
    """Return a folder's files that decide what is answered; None of what is only a name here."""
    path = Path(model)
    # What a server says of its own machine may be a place here that is closed to us.
    if not os.path.exists(path) or not os.access(path, os.R_OK):
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(readable(f.name), f.stat()) for f in files if DECIDING_FILES.fullmatch(f.name)]


def digest(content: Any) -> str:
    """Return a short hash of what JSON can hold."""
    return hashlib.blake2b(orjson.dumps(content), digest_size=8).hexdigest()

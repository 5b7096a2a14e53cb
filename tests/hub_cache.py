"""A cache of the hub with models in it, as huggingface_hub lays it out, for several test files."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path


def cache_of(cache: Path, name: str, revisions: Mapping[str, Path]) -> Path:
    """Put a model into a cache: of each revision the files of a folder. Returns the cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    for revision, folder in revisions.items():
        commit = hashlib.sha1(revision.encode()).hexdigest()
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    return cache

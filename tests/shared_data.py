"""Real data for tests, from `shared/data` beside the project; without it they skip."""

import gzip
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "data"


def shared_path(name: str) -> Path:
    """Return the path of a shared data file."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no {name}: the real test data (shared/data) is not beside this checkout")
    return path


def shared_rows(name: str) -> list[dict]:
    """Return the rows of a shared JSON Lines file."""
    path = shared_path(name)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]

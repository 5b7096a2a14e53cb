"""Real data for tests: samples of published files in `data`, and whole files of `shared/data`.

    def test_a_rule(real):
        rows = real.rows("gsm8k_train500.jsonl")
        assert len(rows) == real.either(sample=30, whole=500)

The fixture `real` (in conftest.py) runs a test on the samples, and where `shared` lies beside the
project once more on the whole files.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

SAMPLES = Path(__file__).with_name("data")
CASES = SAMPLES / "cases"  # of our own making, each of a kind that users of such tools reported
WHOLE = Path(__file__).parents[2] / "shared" / "data"

# AlpacaEval's data may not be passed on. MT-Bench's stand in for them, in the same layout.
STAND_INS = {
    "alpaca_eval_proposals.jsonl": "mt_bench_proposals.jsonl",
    "alpaca_eval_v2.aft.jsonl": "mt_bench_queries.jsonl",
}


@dataclass(frozen=True)
class RealData:
    """Published files by name, less `.gz`: the whole ones, or samples of them."""

    whole: bool

    def path(self, name: str) -> Path:
        """Return the path of a file, which may end in `.gz`."""
        if not self.whole:
            return SAMPLES / STAND_INS.get(name, name)
        plain = WHOLE / name
        path = plain if plain.exists() else plain.with_name(f"{name}.gz")
        if not path.exists():
            pytest.skip(f"no {name}: the whole files (shared/data) are not beside this checkout")
        return path

    def rows(self, name: str) -> list[dict]:
        """Return the rows of a file of JSON Lines."""
        path = self.path(name)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]

    def either(self, *, sample, whole):
        """Return what is expected of these data."""
        return whole if self.whole else sample

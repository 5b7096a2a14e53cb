"""What we write loads in `datasets`, whatever was mixed into it.

Run: pytest tests/records/test_early_types.py
"""

import json

import pytest

from aft_factory.records import early_types
from aft_factory.records.early_types import EarlyTypes
from aft_factory.records.record import Record
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import read_rows

EMPTY = {"proposals": [], "meta": {"pad": "y" * 1000}}
FULL = {"proposals": ["a", "b"], "aggregation": "A", "reference": "R", "scores": [0.5, None]}
FULL |= {"proposal_models": ["m", "n"]}


def record(number, **fields):
    messages = [{"role": "user", "content": "q"}]
    return Record(id=str(number), messages=messages, **fields).to_row()


def write(path, rows):
    with TableWriter(path) as table:
        for row in rows:
            table.write(row)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_columns_that_are_empty_for_10_mb_load_in_datasets(tmp_path, suffix):
    from datasets import load_dataset

    rows = [record(i, **EMPTY) for i in range(12_000)]
    rows[11_000:11_003] = [record(11_000, **EMPTY, aggregation="only"), *[record(1, **FULL)] * 2]
    path = tmp_path / f"mixed.{suffix}"
    write(path, rows)
    loaded = load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    expected = [*rows[11_000:11_002], *rows[:11_000], *rows[11_002:]]
    assert list(loaded) == expected == [line.value for line in read_rows(str(path))]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_a_file_whose_types_are_early_keeps_its_order(tmp_path):
    rows = [record(0, **FULL), *(record(i, **EMPTY) for i in range(1, 9000)), record(1, **FULL)]
    write(tmp_path / "out.jsonl", rows)
    text = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in text] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("early", "late", "moved"),
    [
        ({"a": None}, {"a": 1}, True),
        ({"a": []}, {"a": [1]}, True),
        ({"a": [None]}, {"a": [None, 1]}, True),
        ({"a": [{"b": None}]}, {"a": [{"b": "x"}]}, True),
        ({}, {"a": "x"}, True),
        ({"a": 1}, {"a": 0.5}, True),
        ({"a": 0.5}, {"a": None}, False),
        ({"a": None}, {"a": float("nan")}, False),
        ({"a": float("nan")}, {"a": 0.5}, True),
        ({"a": [float("nan")]}, {"a": [0.5]}, True),
        ({"a": 1}, {"b": 1}, True),
        ({"a": [1, 2]}, {"a": []}, False),
        ({"a": None}, {"a": {}}, False),
    ],
)
def test_a_row_is_late_if_it_is_the_first_with_a_value_somewhere(early, late, moved):
    types = EarlyTypes()
    types.note(early, early_types.EARLY)
    types.note(late, 9)
    types.note(late, 9)
    assert types.late == ([1] if moved else [])


def test_of_two_kinds_of_rows_with_the_same_values_the_first_alone_is_late(monkeypatch):
    monkeypatch.setattr(early_types, "MOST_KINDS", 2)  # what was seen of values is not forgotten
    types = EarlyTypes()
    for row in ({}, {"a": 1}, {"a": "x"}, {"a": True}, {"b": 1}):
        types.note(row, early_types.EARLY)
    assert types.late == [1, 4]


def test_what_is_early_is_never_late():
    types = EarlyTypes()
    types.note({}, early_types.EARLY - 1)
    types.note({"a": 1}, 1)
    types.note({"a": 2}, 1)
    assert types.late == []


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(early_types, "EARLY", 1)
    with pytest.raises(TypeError):
        write(tmp_path / "out.jsonl", [{"a": None}, {"a": 1}, {"a": object()}])
    assert list(tmp_path.iterdir()) == []

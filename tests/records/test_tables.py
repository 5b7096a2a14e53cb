"""Tables: every format in and out, damage named, nothing half written. Run: pytest tests/records/test_tables.py"""

import contextlib
import gc
import gzip
import io
import json
import math
import os
import random
import resource
import subprocess
import sys
import tracemalloc
import unittest.mock
import warnings
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shared_data import CASES

from aft_factory.errors import RecordError, UsageError
from aft_factory.records import exact_json
from aft_factory.records.exact_json import array_elements
from aft_factory.records.files import CHUNK
from aft_factory.records.parquet import ROWS as ROWS_HELD
from aft_factory.records.record import Record, record_from_row
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line, read_rows

ROWS = [
    Record("1", [{"role": "user", "content": "六 pails?"}], ["5", "6 😀"], "Six.", meta={"n": 1}).to_row(),
    Record("2", [{"role": "user", "content": "q"}], [], scores=None, source="x").to_row(),
    Record("3", [{"role": "user", "content": "q"}], ["a"], None, "a", "x", [0.5], ["m"]).to_row(),
]  # fmt: skip
FORMATS = ["jsonl", "ndjson", "json", "jsonl.gz", "jsonl.zst", "json.gz", "json.zst", "parquet"]


def write(path, rows, **options):
    with TableWriter(path, **options) as table:
        for row in rows:
            table.write(row)


def values(name, **options):
    lines = list(read_rows(str(name), **options))
    assert all(line.problem is None for line in lines)
    return [line.value for line in lines]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []], ids=["rows", "one", "none"])
def test_rows_written_are_read_again(tmp_path, suffix, rows):
    path = tmp_path / f"t.{suffix}"
    write(path, rows)
    lines = list(read_rows(str(path)))
    assert lines == [Line(str(path), i, row) for i, row in enumerate(rows, start=1)]
    assert files(tmp_path) == [f"t.{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_rows_give_equal_bytes(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", ROWS)
    os.utime(tmp_path / f"a.{suffix}", (0, 0))
    write(tmp_path / f"b.{suffix}", ROWS)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_gzip_holds_no_time_and_no_name(tmp_path):
    write(tmp_path / "t.jsonl.gz", ROWS)
    assert (tmp_path / "t.jsonl.gz").read_bytes()[3:8] == bytes(5)  # flags and time


def test_json_lines_are_compact_utf8(tmp_path):
    write(tmp_path / "t.jsonl", [{"a": "é", "b": [1, None]}, {"a": ""}])
    assert (tmp_path / "t.jsonl").read_bytes() == '{"a":"é","b":[1,null]}\n{"a":""}\n'.encode()


def test_json_is_one_array_with_a_row_a_line(tmp_path):
    write(tmp_path / "t.json", [{"a": 1}, {"a": 2}])
    assert (tmp_path / "t.json").read_text() == '[\n{"a":1},\n{"a":2}\n]\n'
    write(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "jsonl.zst", "json.gz", "parquet"])
def test_datasets_loads_what_is_written(tmp_path, suffix):
    import datasets

    path = tmp_path / f"t.{suffix}"
    write(path, ROWS)
    kind = "parquet" if suffix == "parquet" else "json"
    table = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "c")
    )
    assert table.to_list() == ROWS


def test_parquet_has_the_types_of_a_record_even_without_rows(tmp_path):
    write(tmp_path / "none.parquet", [])
    write(tmp_path / "rows.parquet", ROWS)
    schema = pq.read_schema(tmp_path / "none.parquet")
    assert schema == pq.read_schema(tmp_path / "rows.parquet")
    assert schema.field("scores").type == pa.list_(pa.float64())


def test_parquet_takes_other_rows_too(tmp_path):
    rows = [{"id": str(i), "conversations": [{"from": "human", "value": "q"}]} for i in range(4500)]
    write(tmp_path / "t.parquet", rows)
    assert values(tmp_path / "t.parquet") == rows


EVENT = {"turn": 0, "layer": 1, "slot": 2, "event": "empty"}
LATE = {
    "an event, where there was none before": ({"events": []}, {"events": [EVENT]}),
    "a column": ({"a": 1}, {"a": 1, "details": [{"votes": ["7", None]}]}),
    "a column that is missing": ({"a": 1, "b": [1]}, {"a": 1}),
    "a key of an object": ({"a": [{"x": 1}]}, {"a": [{"x": 1, "y": "z"}]}),
    "a fraction": ({"a": 1}, {"a": 0.5}),
    "a value": ({"a": None, "b": {}}, {"a": {"b": [True]}, "b": {"c": None}}),
}


@pytest.mark.parametrize(("first", "last"), LATE.values(), ids=LATE.keys())
def test_parquet_loses_nothing_that_comes_late(tmp_path, first, last):
    rows = [*[first] * (2 * ROWS_HELD), last]
    write(tmp_path / "t.parquet", rows)
    read = values(tmp_path / "t.parquet")
    assert read[-1] == filled(last, read[-1])
    assert read[:-1] == [filled(first, read[0])] * (2 * ROWS_HELD)


def filled(value, like):
    """The value with null for the keys that others have, which is all that Arrow adds."""
    if isinstance(value, dict):
        return value | {key: filled(value.get(key), like[key]) for key in like}
    if isinstance(value, list):
        return [filled(*pair) for pair in zip(value, like, strict=True)]
    return value


NO_ONE_TYPE = {
    "a number, then a text": (1, "x"),
    "a text, then a list": ("x", ["x"]),
    "a huge integer": (1, 2**70),
    "a fraction, then an integer that is none in floating point": (0.5, 2**53 + 1),
    "objects that clash": ({"a": 1}, {"a": "x"}),
    "only objects without keys": ({}, {}),
    "objects without keys inside": ({"a": [{}]}, {"a": [{}]}),
    "a fraction, then true": (1.5, True),
    "fractions with true among them": ([1.5], [0.5, True]),
    "objects with a fraction, then true": ({"a": [{"b": 1.5}]}, {"a": [{}, {"b": True}]}),
    "half of a surrogate pair": ("a", "\ud800"),
}


@pytest.mark.parametrize(("first", "last"), NO_ONE_TYPE.values(), ids=NO_ONE_TYPE.keys())
@pytest.mark.parametrize("apart", [1, ROWS_HELD], ids=["in one group", "in two"])
def test_parquet_has_json_text_where_values_have_no_one_type(tmp_path, caplog, apart, first, last):
    rows = [*({"id": "a", "x": first, "y": 1} for _ in range(apart)), {"x": last}, {"x": None}]
    write(tmp_path / "t.parquet", rows)
    read = values(tmp_path / "t.parquet")
    assert [row["x"] and json.loads(row["x"]) for row in read] == [row["x"] for row in rows]
    assert [(row["id"], row["y"]) for row in read] == [
        (row.get("id"), row.get("y")) for row in rows
    ]
    assert "column x is JSON text, as its values have no one Parquet type" in caplog.text


@pytest.mark.parametrize("wrapped", [lambda x: x, lambda x: [x], lambda x: {"a": [None, x]}])
@pytest.mark.parametrize(
    ("first", "last"), [(date(2025, 1, 2), datetime(2025, 1, 2, 3, 4)), ("a", b"b"), (b"a", "b")]
)
def test_parquet_has_text_where_arrow_would_alter_a_value(tmp_path, first, last, wrapped):
    write(tmp_path / "t.parquet", [{"x": wrapped(first)}, {"x": wrapped(last)}, {"x": None}])
    assert [row["x"] and json.loads(row["x"]) for row in values(tmp_path / "t.parquet")] == [
        wrapped(first if isinstance(first, str) else str(first)),
        wrapped(last if isinstance(last, str) else str(last)),
        None,
    ]


def test_parquet_has_the_types_of_a_runs_columns_even_where_all_are_empty(tmp_path):
    usage = dict.fromkeys(("turn", "layer", "requests", "samples", "prompt", "cached"), 1)
    usage |= {"completion": None, "attended": None}
    write(tmp_path / "empty.parquet", [{"usage": [usage], "events": [], "extracted": None}])
    full = {"usage": [dict.fromkeys(usage, 1)], "events": [EVENT], "extracted": "6"}
    write(tmp_path / "full.parquet", [full])
    assert pq.read_schema(tmp_path / "empty.parquet") == pq.read_schema(tmp_path / "full.parquet")


def test_parquet_keeps_a_column_that_is_called_as_one_of_ours(tmp_path):
    rows = [{"events": "at noon", "meta": {"a": 1}, "usage": [{"turn": 1, "mine": "x"}]}]
    write(tmp_path / "t.parquet", rows)
    assert values(tmp_path / "t.parquet") == rows


def test_parquet_leaves_nothing_aside_while_it_writes(tmp_path):
    with TableWriter(tmp_path / "t.parquet") as table:
        for i in range(2 * ROWS_HELD):
            table.write({"a": i})
        assert len(files(tmp_path)) == 1  # the file to be
    assert files(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize("error", [None, KeyError()], ids=["ended well", "failed"])
def test_parquet_closes_what_it_held_aside(tmp_path, error):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(KeyError), TableWriter(tmp_path / "t.parquet") as table:
            for i in range(2 * ROWS_HELD):
                table.write({"a": i})
            if error is not None:
                raise error
        del table
        gc.collect()
    assert [w.message for w in caught if w.category is ResourceWarning] == []


BOM = b"\xef\xbb\xbf"
LINES_READ = {
    "no newline at the end": (b'{"a":1}\n{"a":2}', [(1, {"a": 1}), (2, {"a": 2})]),
    "CRLF": (b'{"a":1}\r\n{"a":2}\r\n', [(1, {"a": 1}), (2, {"a": 2})]),
    "BOM": (BOM + b'{"a":1}\n', [(1, {"a": 1})]),
    "blank lines": (b'\n  \n{"a":1}\n\r\n\n{"a":2}\n\t\n', [(3, {"a": 1}), (6, {"a": 2})]),
    "any JSON value": (b'[1]\nnull\n"x"\n3\ntrue\n{}\n', [(1, [1]), (2, None), (3, "x"), (4, 3), (5, True), (6, {})]),
    "a separator that is none in JSON": ('{"a":"\u2028\x85\\u0000"}\n'.encode(), [(1, {"a": "\u2028\x85\x00"})]),
    "nothing": (b"", []),
    "blanks": (b"\n \n", []),
    "BOM alone": (BOM, []),
}  # fmt: skip


@pytest.mark.parametrize(("data", "rows"), LINES_READ.values(), ids=LINES_READ.keys())
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_as_found_in_the_wild(tmp_path, data, rows, suffix):
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(compress(data))
    assert list(read_rows(str(path))) == [Line(str(path), number, value) for number, value in rows]


@pytest.mark.parametrize(
    ("data", "first"),
    [(b'{"a":1}\n{"a":2}\n', 1), (b'\n \n{"a":1}\n{"a":2}', 3), (BOM + b'{"a":1}\n{"a":2}\n', 1)],
)
def test_json_that_is_really_json_lines(tmp_path, data, first):
    path = tmp_path / "t.json"
    path.write_bytes(data)
    assert list(read_rows(str(path))) == [
        Line(str(path), first, {"a": 1}),
        Line(str(path), first + 1, {"a": 2}),
    ]


def test_a_line_that_begins_as_an_array_and_is_none_is_a_line_where_the_name_says_so(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'[x\n{"a":1}\n')
    bad, good = read_rows(str(tmp_path / "t.jsonl"))
    assert (bad.number, bad.text, good.number, good.value) == (1, "[x", 2, {"a": 1})
    (tmp_path / "t.json").write_bytes(b'[x\n{"a":1}\n')
    with pytest.raises(UsageError, match="damaged JSON after row 0"):
        list(read_rows(str(tmp_path / "t.json")))


def test_an_array_whose_first_row_is_long_is_one_by_any_name(tmp_path):
    rows = [{"a": "x" * CHUNK}, {"a": "y"}]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows))
    assert values(tmp_path / "t.jsonl") == rows


ARRAYS = {
    "compact": b'[{"a":1},{"a":2}]',
    "indented": b'\n[\n  {\n    "a": 1\n  },\n  {\n    "a": 2\n  }\n]\n',
    "BOM": BOM + b'[{"a":1},{"a":2}]',
    "CRLF": b'[\r\n{"a":1},\r\n{"a":2}\r\n]\r\n',
}


@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS.keys())
def test_json_arrays_as_found_in_the_wild(tmp_path, data):
    (tmp_path / "t.json").write_bytes(data)
    assert list(read_rows(str(tmp_path / "t.json"))) == [
        Line(str(tmp_path / "t.json"), 1, {"a": 1}),
        Line(str(tmp_path / "t.json"), 2, {"a": 2}),
    ]


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text('"\\[]{},:ab é😀\n')
)
trees = st.recursive(
    scalars,
    lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text('"\\[]{},a'), t, max_size=4),
)


@given(
    st.lists(trees, max_size=5),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.sampled_from([1, 2, 7, exact_json.PIECE]),
)
@settings(max_examples=300)
def test_an_array_is_read_exactly_wherever_it_is_read_in_pieces(rows, indent, ascii, piece):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    with unittest.mock.patch.object(exact_json, "PIECE", piece):
        found = list(array_elements(io.BytesIO(text.encode())))
    assert [json.loads(element) for element in found] == rows


@given(st.lists(st.text('"\\[]{},', max_size=6), max_size=3), st.binary(max_size=6))
def test_reading_an_array_never_fails_otherwise(texts, junk):
    data = json.dumps(texts).encode()
    for cut in range(1, len(data)):
        with pytest.raises(ValueError, match="does not end"):
            list(array_elements(io.BytesIO(data[:cut])))
    with contextlib.suppress(ValueError):
        list(array_elements(io.BytesIO(b"[" + junk)))


def test_a_damaged_array_is_not_read_to_its_end():
    stream = io.BytesIO(b'[{"a": 1}, {"a":}' + b", 1" * exact_json.PIECE)
    with pytest.raises(ValueError, match="Expecting value"):
        list(array_elements(stream))
    assert stream.tell() == exact_json.PIECE


def test_an_element_may_be_longer_than_any_buffer(tmp_path):
    rows = [{"a": '\\"' * 3_000_000}, {"a": [1]}, {"a": "x" * 3_000_000}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert values(tmp_path / "t.json") == rows


BAD_LINES = {
    "value missing": b'{"a":}',
    "two values": b"{} {}",
    "not UTF-8": b'{"a":"caf\xe9"}',
    "null byte": b"\x00",
    "control character": b'{"a":"\x01"}',
    "too deep": b"[" * 2000 + b"]" * 2000,
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_a_problem_with_its_number(tmp_path, bad):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"n":1}\n' + bad + b'\n{"n":3}\n')
    check_one_problem(path, bad)


def check_one_problem(path, bad):
    first, problem, last = read_rows(str(path))
    assert (first.value, last.value, last.number) == ({"n": 1}, {"n": 3}, 3)
    assert problem == Line(
        str(path), 2, None, problem.problem, bad.decode("utf-8", errors="replace")
    )
    assert problem.problem.startswith("not JSON: ")
    assert problem.place == f"{path}:2"


@pytest.mark.parametrize("name", ["not UTF-8", "control character"])
def test_an_element_of_an_array_with_what_is_no_character_is_a_problem_of_its_own(tmp_path, name):
    path = tmp_path / "t.json"
    path.write_bytes(b'[{"n":1},' + BAD_LINES[name] + b',{"n":3}]')
    check_one_problem(path, BAD_LINES[name])


@pytest.mark.parametrize("name", ["value missing", "two values", "null byte", "too deep", "binary"])
def test_an_array_with_what_is_no_json_is_damaged_from_there_on(tmp_path, name):
    path = tmp_path / "t.json"
    path.write_bytes(b'[{"n":1},' + BAD_LINES[name] + b',{"n":3}]' + b" " * 99)
    rows = read_rows(str(path))
    assert next(rows) == Line(str(path), 1, {"n": 1})
    with pytest.raises(UsageError, match=rf"^{path}: damaged JSON after row 1: "):
        next(rows)


@pytest.mark.parametrize(
    ("suffix", "form"), [("jsonl", b"%s"), ("json", b"[%s]")], ids=["lines", "array"]
)
def test_what_python_reads_is_read(tmp_path, suffix, form):
    lines = [
        rb'{"a":"fine \ud83d done","b":"\ud83d\ude00"}',
        b'{"a":NaN,"b":[Infinity,-Infinity]}',
        b'{"a":1e999}',
        b'{"a":123456789012345678901234567890,"b":{"c":[1e300,7]}}',
    ]
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(form % (b"\n" if suffix == "jsonl" else b",\n").join(lines))
    cut, nan, large, exact = values(path)
    assert cut == {"a": "fine \ufffd done", "b": "😀"}
    assert (math.isnan(nan["a"]), nan["b"], large["a"]) == (True, [math.inf, -math.inf], math.inf)
    assert exact == {"a": 123456789012345678901234567890, "b": {"c": [1e300, 7]}}


def test_what_json_has_no_number_for_is_null_and_large_numbers_stay(tmp_path):
    with TableWriter(tmp_path / "t.jsonl") as table:
        table.write({"a": math.nan, "b": [2**64, -math.inf], "c": "é"})
    assert (
        tmp_path / "t.jsonl"
    ).read_text() == '{"a":null,"b":[18446744073709551616,null],"c":"é"}\n'


def test_of_json_lines_cut_off_only_the_last_is_lost(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"n":1}\n{"n":')
    first, last = read_rows(str(tmp_path / "t.jsonl"))
    assert (first.value, last.number, last.text) == ({"n": 1}, 2, '{"n":')
    assert last.problem.startswith("not JSON: ")


DAMAGED = {
    "array cut off": ("t.json", b'[{"a":1},{"a"', "damaged JSON after row 1: the array does not end"),
    "array not closed": ("t.json", b'[{"a":1},{"a":2}', "damaged JSON after row 1: the array does not end"),
    "text after the array": ("t.json", b'[{"a":1}] x', "damaged JSON after row 1: there is more after the array"),
    "two arrays": ("t.json", b'[{"a":1}][{"a":2}]', "damaged JSON after row 1: there is more after the array"),
    "gz cut off": ("t.jsonl.gz", gzip.compress(b'{"a":1}\n' * 999)[:-9], "damaged or cut-off compressed file: Truncated"),
    "gz cut in the checksum": ("t.jsonl.gz", gzip.compress(b'{"a":1}\n' * 999)[:-3], "damaged or cut-off compressed file: Truncated"),
    "gz wrong checksum": ("t.jsonl.gz", gzip.compress(b'{"a":1}\n')[:-8] + bytes(8), "damaged or cut-off compressed file: zlib"),
    "gz is no gz": ("t.jsonl.gz", b'{"a":1}\n', "damaged or cut-off compressed file: zlib"),
    "json.gz is no gz": ("t.json.gz", b"[]", "damaged or cut-off compressed file: zlib"),
    "json.gz cut off": ("t.json.gz", gzip.compress(b"[1,2]")[:-9], "damaged or cut-off compressed file: Truncated"),
    "zst cut off": ("t.jsonl.zst", zstandard.compress(b'{"a":1}\n' * 999)[:-9], "damaged or cut-off compressed file: Truncated"),
    "zst cut in its header": ("t.jsonl.zst", zstandard.compress(b"x")[:3], "damaged or cut-off compressed file: Truncated"),
    "zst is no zst": ("t.jsonl.zst", b'{"a":1}\n', "damaged or cut-off compressed file: ZSTD"),
    "parquet is no parquet": ("t.parquet", b'{"a":1}\n', "no Parquet file, or damaged: "),
    "empty parquet": ("t.parquet", b"", "no Parquet file, or damaged: "),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_one_clear_error_that_names_the_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        list(read_rows(str(path)))
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_files_compressed_in_parts_are_read_to_the_end(tmp_path, compress):
    path = tmp_path / ("t.jsonl.gz" if compress is gzip.compress else "t.jsonl.zst")
    path.write_bytes(compress(b'{"a":1}\n{"a"') + compress(b":2}\n"))
    assert values(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "t.csv",
            "{path}: unknown format; expected .jsonl or .json (plain, .gz or .zst) or .parquet",
        ),
        (
            "t.parquet.gz",
            "{path}: unknown format; expected .jsonl or .json (plain, .gz or .zst) or .parquet",
        ),
        ("none.jsonl", "{path}: no such file, and not the OWNER/NAME of a data set on the hub"),
        ("folder", "{path}: not a folder saved by datasets' save_to_disk: "),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, message):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif not name.startswith("none"):
        path.touch()
    with pytest.raises(UsageError) as caught:
        list(read_rows(str(path)))
    assert str(caught.value).startswith(message.format(path=path))


def test_datasets_folders(tmp_path, caplog):
    import datasets

    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "two", split="test") == ROWS[:1]
    assert caplog.messages == []
    assert values(tmp_path / "two") == values(tmp_path / "two") == ROWS
    told = "the split train is read, and not test; --split chooses"
    assert caplog.messages == [f"{tmp_path / 'two'}: {told}"]
    with pytest.raises(UsageError, match="no split 'dev'; it has: train, test"):
        values(tmp_path / "two", split="dev")


@pytest.mark.parametrize("suffix", FORMATS)
def test_progress_adds_up_to_the_size_of_the_file(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    write(path, ROWS * 3000)
    counts = []
    assert len(list(read_rows(str(path), on_bytes=counts.append))) == 9000
    size = path.stat().st_size
    assert size - len(counts) <= sum(counts) <= size


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, suffix, error):
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(error), TableWriter(path, overwrite=True) as table:  # noqa: PT012
        for row in ROWS * 3000:
            table.write(row)
        raise error
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == [f"t.{suffix}"]


def test_the_file_appears_only_at_the_end(tmp_path):
    with TableWriter(tmp_path / "new" / "t.jsonl") as table:
        table.write(ROWS[0])
        assert not (tmp_path / "new" / "t.jsonl").exists()
    assert values(tmp_path / "new" / "t.jsonl") == ROWS[:1]


def test_two_writers_at_a_time_do_not_mix(tmp_path):
    path = tmp_path / "t.jsonl"
    with TableWriter(path) as one, TableWriter(path) as two:
        for i in range(5000):
            one.write({"writer": 1, "i": i})
            two.write({"writer": 2, "i": i})
    assert values(path) == [{"writer": 1, "i": i} for i in range(5000)]


WRITING = """
import sys, time
from pathlib import Path
from aft_factory.records.table_writer import TableWriter
with TableWriter(Path(sys.argv[1])) as table:
    table.write({"a": 1})
    print("writing", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def writing(path):
    """A process in the middle of writing a file."""
    process = subprocess.Popen([sys.executable, "-c", WRITING, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_a_killed_process_left_aside_is_removed_when_its_file_is_written(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    with writing(path), writing(tmp_path / "other.jsonl"):
        pass  # both are killed
    assert [name.endswith(".part") for name in files(tmp_path)] == [True, True]
    write(path, [{"a": 2}])
    assert [name.endswith(".part") for name in files(tmp_path)] == [True, False]
    write(tmp_path / "other.jsonl", [{"a": 3}])
    assert files(tmp_path) == ["other.jsonl", path.name]


def test_what_others_are_writing_is_left_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    with writing(path):
        with TableWriter(path) as table:
            table.write({"a": 2})
            write(path, [{"a": 3}])  # in this process, too
            assert len(files(tmp_path)) == 3
        assert (values(path), len(files(tmp_path))) == ([{"a": 2}], 2)


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "t.jsonl"
    write(path, ROWS)
    with pytest.raises(UsageError, match="exists; pass --overwrite to replace it"):
        TableWriter(path)
    write(path, ROWS[:1], overwrite=True)
    assert values(path) == ROWS[:1]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "t.jsonl").symlink_to(tmp_path / "disk" / "t.jsonl")
    write(tmp_path / "t.jsonl", ROWS, overwrite=True)
    assert (tmp_path / "t.jsonl").is_symlink()
    assert values(tmp_path / "disk" / "t.jsonl") == ROWS


@pytest.mark.parametrize("kind", ["folder", "device"])
@pytest.mark.parametrize("open_it", [TableWriter, Rejects])
def test_only_plain_files_are_replaced(tmp_path, kind, open_it):
    path = tmp_path / "t.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UsageError, match="not a plain file"):
        open_it(path, overwrite=True)


def test_what_json_has_no_form_for_is_not_written(tmp_path):
    with TableWriter(tmp_path / "t.jsonl") as table:
        table.write({"a": 1})
        for value in ("\ud800", {1, 2}):
            with pytest.raises(TypeError):
                table.write({"a": value})
        table.write({"a": 2})
    assert values(tmp_path / "t.jsonl") == [{"a": 1}, {"a": 2}]
    assert table.rows == 2


@pytest.mark.parametrize("text", ["x" * 3000, "x" * 100], ids=["while writing", "while closing"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, text, suffix):
    path = tmp_path / f"t.{suffix}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # the kernel refuses to write more
    try:
        with pytest.raises(OSError) as caught:
            write(path, [{"a": text}] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert files(tmp_path) == []


def _peak(path, count):
    """Peak memory of writing and reading that many rows."""
    rng = random.Random(0)
    tracemalloc.start()
    with TableWriter(path, overwrite=True) as table:
        for i in range(count):
            proposals = [rng.randbytes(100).hex() for _ in range(3)]
            table.write(Record(str(i), [{"role": "user", "content": "q"}], proposals).to_row())
    assert sum(1 for _ in read_rows(str(path))) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.zst", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    _peak(path, 100)  # imports
    assert _peak(path, 20_000) < 1.25 * _peak(path, 2_000) + 2_000_000


LINE = Line("in.jsonl", 7, {"a": [1]})


def test_rejects_hold_place_reason_and_row(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    with Rejects(path) as rejects:
        rejects.add(LINE, "expected x", "messages[3].role")
        rejects.add(Line("in.jsonl", 8, None, "not JSON: y", '{"a'), "not JSON: y")
        rejects.add(Line("in.jsonl", 9, None), "expected an object, got nothing", "row")
        rejects.add(Line("in.jsonl", 10, "\ud800"), "cannot be read", "messages[4].role")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"file": "in.jsonl", "line": 7, "field": "messages[3].role", "reason": "expected x", "row": {"a": [1]}},
        {"file": "in.jsonl", "line": 8, "field": None, "reason": "not JSON: y", "text": '{"a'},
        {"file": "in.jsonl", "line": 9, "field": "row", "reason": "expected an object, got nothing", "row": None},
        {"file": "in.jsonl", "line": 10, "field": "messages[4].role", "reason": "cannot be read", "row": "\ud800"},
    ]  # fmt: skip
    assert rejects.count == 4
    assert rejects.by_field == {"messages[].role": (2, "expected x"), "row": (2, "not JSON: y")}


def test_a_reject_nested_too_deeply_keeps_its_place(tmp_path):
    value = []
    for _ in range(5000):
        value = [value]
    with Rejects(tmp_path / "r.jsonl") as rejects:
        rejects.add(Line("in.jsonl", 7, value), "too deep")
    row = json.loads((tmp_path / "r.jsonl").read_text())
    assert row == {"file": "in.jsonl", "line": 7, "field": None, "reason": "too deep", "row": None}


def test_without_rejects_there_is_no_file(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("of an earlier run")
    with Rejects(path, overwrite=True):
        pass
    assert files(tmp_path) == []


def test_rejects_of_a_failed_run_do_not_replace_those_of_the_last(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("of an earlier run")
    with pytest.raises(RuntimeError), Rejects(path, overwrite=True) as rejects:  # noqa: PT012
        rejects.add(LINE, "reason")
        raise RuntimeError
    assert path.read_text() == "of an earlier run"
    assert files(tmp_path) == ["r.jsonl"]


def test_rejects_replace_no_file_unasked(tmp_path):
    path = tmp_path / "thesis.tex"
    path.write_text("years of work")
    with pytest.raises(UsageError, match="exists; pass --overwrite to replace it"):
        Rejects(path)


def test_rejects_without_a_path_only_count(tmp_path):
    with Rejects(None) as rejects:
        rejects.add(LINE, "reason", "x")
    assert (rejects.count, rejects.by_field) == (1, {"x": (1, "reason")})


def test_what_belongs_to_an_output_is_there_with_it_or_not_at_all(tmp_path):
    path = tmp_path / "r.jsonl"
    with (  # noqa: PT012
        pytest.raises(RuntimeError),
        contextlib.ExitStack() as until,
        TableWriter(tmp_path / "t.jsonl"),
    ):
        with Rejects(path, until=until) as rejects:
            rejects.add(LINE, "reason")
        assert "r.jsonl" in files(tmp_path)
        with pytest.raises(UsageError, match="exists; pass --overwrite to replace it"):
            Rejects(path)  # its writer lives
        raise RuntimeError
    assert files(tmp_path) == []


@pytest.mark.parametrize("suffix", ["json", "jsonl", "json.gz"])
@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}{"a": 2} {"a": 3}',
        '{\n "a": 1\n}\n{\n "a": 2\n}\n{"a": 3}\n',
        '{"a": 1}\r{"a": 2}\r{"a": 3}\r',
        '[{"a": 1},\n{"a": 2}, {"a": 3}]\n',
        '[{"a": 1}, {"a": 2}, {"a": 3}]',
        '\n\n{"a": 1}\n\n{"a": 2}\r\n{"a": 3}',
        '\ufeff{"a":\n 1}{"a": 2}{"a": 3}',
    ],
)
def test_json_is_read_however_its_objects_stand_and_whatever_the_file_is_called(
    tmp_path, text, suffix
):
    path = tmp_path / f"t.{suffix}"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert [line.value for line in read_rows(str(path))] == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_damaged_first_line_costs_itself_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    for damaged in ('{"a": 1', '{"a": 1} and more', "nothing"):
        path.write_text(f'{damaged}\n{{"a": 2}}\n{{"a": 3}}\n')
        first, *others = read_rows(str(path))
        assert first.problem.startswith("not JSON: ")
        assert [line.value for line in others] == [{"a": 2}, {"a": 3}]


def test_a_file_of_which_no_line_is_json_is_one_error(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("a,b\n1,2\n" * 10)
    with pytest.raises(UsageError, match=r"t\.jsonl:10: none of the first 10 lines is JSON"):
        list(read_rows(str(path)))
    path.write_text("a,b\n" * 9 + '{"a": 1}\n' + "a,b\n" * 20)
    assert sum(line.problem is None for line in read_rows(str(path))) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_one_error_that_names_it(tmp_path, encoding):
    path = tmp_path / "t.jsonl"
    path.write_bytes('{"a": 1}\n{"a": 2}\n'.encode(encoding))
    with pytest.raises(UsageError, match=r"t\.jsonl: expected JSON in UTF-8, got .*UTF-"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (gzip.compress(b'{"a": 1}', mtime=0), r"gzip, whose name should end in \.gz"),
        (b'PK\x03\x04\n\x00rows.jsonl{"a": 1}\n', "a zip archive, to be unpacked"),
        (b"\x28\xb5\x2f\xfd\x04\0", r"zstd, whose name should end in \.zst"),
        (b"PAR1\x15\x04PAR1", r"Parquet, whose name should end in \.parquet"),
    ],
)
def test_what_is_no_text_under_the_name_of_one_is_told_by_what_it_is(tmp_path, data, told):
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"t\.jsonl: expected JSON in UTF-8, got {told}"):
        list(read_rows(str(path)))


AS_PEOPLE_HAVE_THEM = {
    "array.jsonl": 9,
    "concat.json": 9,
    "cr.jsonl": 9,
    "pretty.json": 9,
    "nan.jsonl": 2,
    "sur.jsonl": 1,
}


@pytest.mark.parametrize("name", AS_PEOPLE_HAVE_THEM)
def test_files_as_people_have_them(name):
    lines = list(read_rows(str(CASES / "files" / name)))
    assert [line.problem for line in lines] == [None] * AS_PEOPLE_HAVE_THEM[name]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, -(10**19) + 1, 10**40 + 1])
def test_no_whole_number_is_rounded_wherever_it_stands(number):
    for blanks in range(12):
        assert exact_json.load(f'{{"a":{" " * blanks}[{number}]}}') == {"a": [number]}


TWICE = {
    "a query": '{"query": "a", "query": "b"}',
    "beside other columns": '{"query": "a", "n": {"m": 1}, "query": "b"}',
    "the same one": '{"query": "a", "query": "a"}',
    "in a message": '{"m": [{"query": "a", "role": "user", "query": "b"}]}',
    "with blanks": '{"query" : "a", "query" : "b"}',
    "escaped": '{"query": "a", "quer\\u0079": "b"}',
    "beside NaN": '{"query": "a", "x": NaN, "query": "b"}',
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_that_a_row_has_twice_is_refused(tmp_path, name):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"query": "z"}}\n{TWICE[name]}\n')
    first, second = read_rows(str(path))
    assert (first.value, second.number, second.value) == ({"query": "z"}, 2, None)
    assert second.problem == "not JSON: the name 'query' is given twice"


def joined(opening, parts, closing):
    """A JSON list or object whose parts and marks stand apart by blanks, or by nothing."""
    blanks = st.sampled_from(["", "", " ", "\n\t"])
    pieces = st.lists(st.tuples(blanks, parts, blanks).map("".join), max_size=3)
    return pieces.map(lambda pieces: opening + ",".join(pieces) + closing)


JSON_TEXTS = st.sampled_from(
    [r'"a"', r'"b"', r'"\u0061"', '":"', '" :"', r'"\":"', r'"\\"', r'"\\\":"', r'"\u0022:"', '"{"']
)
HALVES = st.sampled_from(['"\\ud83d"', '"\\ud83e"', '"\ufffd"'])
NUMBERS = st.sampled_from(["1", "0.5", "1e30", "123456789012345678901", "NaN", "null", "-Infinity"])
ANY_JSON = st.recursive(
    JSON_TEXTS | NUMBERS | HALVES,
    lambda more: (
        joined("[", more, "]")
        | joined(
            "{",
            st.tuples(
                JSON_TEXTS | JSON_TEXTS | HALVES, st.sampled_from([":", ": ", " :", "\n:"]), more
            ).map("".join),
            "}",
        )
    ),
    max_leaves=8,
)


def whole(text):
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_by_python(text):
    """What Python's own reader makes of a text, or the word `twice`."""

    def each_once(pairs):
        names = [whole(name) for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        value = json.loads(text, object_pairs_hook=each_once)
    except ValueError:
        return "twice"
    return whole(json.dumps(value, ensure_ascii=False))


@settings(max_examples=200)
@given(ANY_JSON)
@example('{"a" :1,"a":2}')
@example('{"a":1,"b":":","a" :2}')
@example('{"a":"\\":","\\\\":1,"a" :2}')
@example('{"\\\\":1,"\\\\":2}')
def test_a_name_is_refused_exactly_where_an_object_has_it_twice(text):
    for given_text in (text, text.encode()):
        try:
            read = json.dumps(exact_json.load_given(given_text), ensure_ascii=False)
        except ValueError as error:
            read = str(error).split()[-1]
        assert read == read_by_python(text)


def test_what_is_too_deep_to_look_for_names_is_refused():
    text = "[" * 1010 + '{"a":1,"a":2}' + "]" * 1010
    with pytest.raises(ValueError, match="nested too deeply"):
        exact_json.load_given(text)


def test_a_conversation_as_text_has_each_name_once():
    text = '[{"role": "user", "content": "a", "content": "b"}]'
    with pytest.raises(RecordError, match="looks like messages, but is no JSON"):
        record_from_row({"messages": text})

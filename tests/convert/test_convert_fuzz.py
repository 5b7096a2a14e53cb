"""Whatever stands in an input file, a row of it is written or rejected, and nothing else happens.

10,000 rows go through every target of every source. Run: pytest tests/convert/test_convert_fuzz.py
"""

import contextlib
import io
import json
import re
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aft_factory.convert.__main__ import main
from aft_factory.merge.__main__ import main as merge
from aft_factory.records.record import record_from_row
from aft_factory.records.tables import read_rows

EXAMPLES, ROWS = 80, 25  # of each source

characters = st.characters(exclude_categories=[]) | st.sampled_from(
    ["\u200b", "\x00", "\ud800", "\\", '"']
)
texts = st.text(characters, max_size=8)
numbers = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, 1, 10, 2**63, 2**64, 1e308, -0.0])
)
scalars = (
    st.none()
    | st.booleans()
    | numbers
    | texts
    | st.sampled_from(["<|eot_id|>", "N/A", "None", "10", "8/10", "", " ", "9" * 400])
)
KEYS = [
    *(
        "query",
        "messages",
        "proposals",
        "responses",
        "response",
        "text",
        "score",
        "scores",
        "model",
        "id",
        "meta",
    ),
    *(
        "role",
        "content",
        "aggregation",
        "reference",
        "source",
        "proposal_models",
        "instruction",
        "prompt",
    ),
    *(
        "completions",
        "annotations",
        "Rating",
        "overall_score",
        "fine-grained_score",
        "correct_answers",
    ),
    *(
        "chosen",
        "rejected",
        "metadata",
        "score_chosen",
        "chosen-rating",
        "chosen-model",
        "prompt_id",
    ),
]
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4)
    ),
    max_leaves=6,
)

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
VALID = {
    "proposals": [
        {"id": "1", "query": "q", "proposals": ["a", "b"], "aggregation": "A", "reference": "R", "meta": {"x": 1}},
        {"messages": [USER, ANSWER, USER], "responses": [{"response": "a", "model": "m", "score": 1}, {"text": "b"}]},
        {"prompt": [{"role": "system", "content": "s"}, USER], "proposals": ["a"], "scores": [1], "proposal_models": ["m"]},
    ],
    "ultrafeedback": [
        {"source": "flan", "instruction": "q", "models": ["m"], "correct_answers": ["None"], "completions": [
            {"model": "m", "response": "a", "overall_score": 10, "fine-grained_score": 1.5, "annotations":
                {"helpfulness": {"Rating": "4"}, "honesty": [{"Rating": "N/A"}]}}, {"response": "b"}]},
        {"prompt": "q", "prompt_id": "p", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "b"}],
         "score_chosen": 8.5, "score_rejected": 1, "chosen-model": "m"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "metadata": {"score_chosen": 8}, "aggregation": "A"},
    ],
}  # fmt: skip


def paths(value, path=()):
    """Every place in a tree."""
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from paths(inner, (*path, key))


def changed(value, path, new, how):
    """A copy of a tree with one place replaced, removed, doubled, wrapped or renamed."""
    if not path:
        return {"replace": new, "wrap": [value], "remove": None}.get(how, value)
    copy = value.copy()
    key = path[0]
    if len(path) > 1 or how in ("replace", "wrap"):
        copy[key] = changed(copy[key], path[1:], new, how)
    elif how == "remove":
        del copy[key]
    elif isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[new if isinstance(new, str) else "x"] = copy.pop(key)
    return copy


@st.composite
def mutated(draw, source):
    row = draw(st.sampled_from(VALID[source]))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(sorted(paths(row), key=repr)))
        row = changed(
            row, path, draw(values), draw(st.sampled_from(["replace", "remove", "wrap", "double"]))
        )
    return row


def encoded(rows):
    return rows.map(lambda row: json.dumps(row).encode())


def lines(source):
    raw = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b" "))
    cut = st.tuples(encoded(mutated(source)), st.integers(0, 200)).map(
        lambda pair: pair[0][: pair[1]]
    )
    deep = st.integers(1, 3000).map(lambda n: b"[" * n + b"]" * n)
    kinds = [encoded(mutated(source))] * 6 + [encoded(values), raw, cut, deep]
    return st.integers(0, 9).flatmap(lambda kind: kinds[kind])


def run(folder, source, target):
    command = [
        source,
        str(folder / "in.jsonl"),
        "--target",
        target,
        "--output",
        str(folder / "out.jsonl"),
    ]
    command += [] if target == "sft" else ["--shuffle-proposals"]
    for name in ("out.jsonl", "out.rejects.jsonl"):
        (folder / name).unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*command, "--preview", "2", "--overwrite", "--quiet"])
    if code == 2:  # of a file whose every row lacks a column, or in UTF-16, nothing is written
        assert re.match(
            r"error: .*( (has|have) (proposals|an aggregation|aggregations)|expected JSON in UTF-8)",
            err.getvalue(),
        )
        assert not (folder / "out.jsonl").exists()
        return None
    assert (code in (0, 1), err.getvalue()) == (True, "")
    read, written, rejected = map(int, re.search(r"^read (\d+) rows: (\d+) written(?: to .*)?, (\d+) rejected", out.getvalue(), re.M).groups())  # fmt: skip
    return read, written, rejected


def check_conversation(row):
    """LLaMA-Factory's rules: an optional system turn, then human and gpt in turn; gpt has the last word."""
    roles = [turn["from"] for turn in row["conversations"]]
    roles = roles[1:] if roles[0] == "system" else roles
    assert (roles[0], roles[-1]) == ("human", "gpt")
    assert all({before, after} == {"human", "gpt"} for before, after in pairwise(roles))
    assert all(
        list(turn) == ["from", "value"] and isinstance(turn["value"], str)
        for turn in row["conversations"]
    )
    assert all(turn["value"].strip() for turn in row["conversations"][-2:])


@pytest.mark.parametrize("source", VALID)
def test_every_row_is_written_or_rejected(tmp_path, source):
    total = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(lines(source), min_size=ROWS, max_size=ROWS))
    def check(rows):
        nonlocal total
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(rows))
        numbers = [i for i, row in enumerate(rows, start=1) if row.strip()]
        total += len(rows)
        for target in ("aggregation", "sharegpt", "sft"):
            counts = run(tmp_path, source, target)
            if counts is None:
                continue
            read, written, rejected = counts
            assert read == written + rejected == len(numbers)

            output = tmp_path / "out.jsonl"
            table = list(read_rows(str(output))) if output.exists() else []
            assert len(table) == written
            for line in table:
                assert line.problem is None
                if target == "aggregation":
                    assert record_from_row(line.value).to_row() == line.value
                else:
                    assert list(line.value) == ["id", "conversations"]
                    check_conversation(line.value)

            path = tmp_path / "out.rejects.jsonl"
            rejects = (
                [json.loads(line) for line in path.read_text().splitlines()]
                if path.exists()
                else []
            )
            assert len(rejects) == rejected
            assert {reject["file"] for reject in rejects} <= {str(tmp_path / "in.jsonl")}
            assert all(
                isinstance(reject["reason"], str) and 0 < len(reject["reason"]) < 400
                for reject in rejects
            )
            places = [reject["line"] for reject in rejects]
            assert len(set(places)) == len(places)
            assert set(places) <= set(numbers)

    check()
    assert total >= EXAMPLES * ROWS
    left = {path.name for path in tmp_path.iterdir() if "reject" not in path.name}
    assert left - {"out.jsonl"} == {"in.jsonl"}  # it is not there if no row of the last is usable


@pytest.mark.parametrize("source", VALID)
def test_shards_of_any_rows_are_joined_to_what_one_conversion_writes(tmp_path, source):
    def told(command, *words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([*map(str, words), "--overwrite"])
        return code, out.getvalue(), err.getvalue()

    def left(output):
        files = (output, output.with_name(f"{output.stem}.rejects.jsonl"))
        return [path.read_bytes() for path in files if path.exists()]

    @settings(
        max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.lists(lines(source), max_size=ROWS),
        st.integers(1, 5),
        st.sampled_from([("aggregation", "--mix-plain", 0.5), ("sharegpt",), ("sft",)]),
        st.sampled_from([".jsonl", ".parquet"]),
    )
    def check(rows, count, target, suffix):
        rows = [row for row in rows if not row.startswith(b"\x00")]  # or it is UTF-16
        (tmp_path / "in.jsonl").write_bytes(b"{}\n" + b"\n".join(rows))
        words = (source, tmp_path / "in.jsonl", "--quiet", "--target", *target, "--output")
        one, all_ = (tmp_path / name / f"out{suffix}" for name in ("one", "all"))
        code, out, err = told(main, *words, one)
        parts = [tmp_path / f"part-{index}.jsonl" for index in range(count)]
        for index, part in enumerate(parts):
            assert told(main, *words, part, "--shard", f"{index}/{count}")[0] == 0
        joined = told(merge, *parts, "--output", all_)
        out = re.sub("next: the same command .*\n", "", out)
        assert joined == (code, out.replace(str(one.parent), str(all_.parent)), err)
        assert code == 2 or left(one) == left(all_)

    check()

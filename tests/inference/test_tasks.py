"""Benchmarks' own layouts, in and out, and the presets. Run: pytest tests/inference/test_tasks.py"""

import copy
import json
from pathlib import Path

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import aft_factory
from aft_factory.engines.sampling import Sampling
from aft_factory.errors import RecordError
from aft_factory.inference.queries import Query
from aft_factory.inference.tasks import TASKS, detect_task
from aft_factory.records.record import record_from_row


def user(text):
    return [{"role": "user", "content": text}]


ALPACA = {
    "instruction": "Name a bird.",
    "dataset": "koala",
    "output": "Tit",
    "generator": "davinci",
}
MT_BENCH = {"question_id": 81, "category": "stem", "turns": ["Name a bird.", "Another."]}
GSM8K = {"question": "How much is 8 * 9?", "answer": "8 * 9 = 72\n#### 72"}
IFEVAL = {"key": 1000, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}  # fmt: skip
CHAT = [{"role": "system", "content": "Be brief."}, *user("Hi"), {"role": "assistant", "content": "Hi"}, *user("Bird?")]  # fmt: skip

BIRD = "f7426fd2f2a6ddad"  # the hash of the conversation "Name a bird."

READ = {
    "a record": (
        "records",
        {"id": 7, "query": "Bird?", "proposals": ["Tit", "Owl"]},
        {"id": "7", "turns": [user("Bird?")], "proposals": ["Tit", "Owl"]},
    ),
    "a record's earlier turns are given, not asked": (
        "records",
        {"id": "a", "messages": CHAT},
        {"id": "a", "turns": [CHAT]},
    ),
    "AlpacaEval": ("alpaca_eval", ALPACA, {"id": BIRD, "turns": [user("Name a bird.")]}),
    "AlpacaEval as the authors of AFT publish it": (
        "alpaca_eval",
        {"query": user("Name a bird.")},
        {"id": BIRD, "turns": [user("Name a bird.")]},
    ),
    "MT-Bench, with the temperature of its category": (
        "mt_bench",
        MT_BENCH,
        {"id": "81", "turns": [user("Name a bird."), user("Another.")], "final": {"temperature": 0.1}},
    ),
    "MT-Bench, category unknown": (
        "mt_bench",
        {"question_id": "a-1", "turns": ["Name a bird."]},
        {"id": "a-1", "turns": [user("Name a bird.")], "final": {"temperature": 0.7}},
    ),
    "MT-Bench, where the question asks for a temperature": (
        "mt_bench",
        MT_BENCH | {"required_temperature": 1},
        {"id": "81", "turns": [user("Name a bird."), user("Another.")], "final": {"temperature": 1.0}},
    ),
    "MT-Bench, where no question of the file asks for one": (
        "mt_bench",
        MT_BENCH | {"required_temperature": None},
        {"id": "81", "turns": [user("Name a bird."), user("Another.")], "final": {"temperature": 0.1}},
    ),
    "GSM8K": ("gsm8k", GSM8K, {"id": "cb4d689815210a16", "turns": [user("How much is 8 * 9?")]}),
    "GSM8K, where the rows have ids": (
        "gsm8k",
        GSM8K | {"id": "row-17"},
        {"id": "row-17", "turns": [user("How much is 8 * 9?")]},
    ),
    "AlpacaEval, where the rows have ids": (
        "alpaca_eval",
        ALPACA | {"id": 17},
        {"id": "17", "turns": [user("Name a bird.")]},
    ),
    "IFEval": ("ifeval", IFEVAL, {"id": "1000", "turns": [user("No commas.")]}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_row_of_its_own_layout_is_a_query(name):
    task, row, wanted = READ[name]
    before = copy.deepcopy(row)
    query = TASKS[task].read_row(row)
    assert query == Query(row=row, **wanted)
    assert query.row is row
    assert row == before


WRITTEN = {
    "alpaca_eval": (
        ALPACA,
        ["Owl"],
        {"dataset": "koala", "instruction": "Name a bird.", "output": "Owl", "generator": "aft"},
    ),
    "alpaca_eval of the authors of AFT": (
        {"query": user("Name a bird.")},
        ["Owl"],
        {"instruction": "Name a bird.", "output": "Owl", "generator": "aft"},
    ),
    "mt_bench": (
        MT_BENCH,
        ["Owl", "Tit"],
        {
            "question_id": 81,
            "answer_id": "RaQwA_KiceIvM89usGDxaw",
            "model_id": "aft",
            "choices": [{"index": 0, "turns": ["Owl", "Tit"]}],
            "tstamp": 0.0,
        },
    ),
    "gsm8k": (GSM8K, ["$72.00"], GSM8K | {"response": "$72.00", "extracted": "72", "correct": True}),
    "gsm8k, wrong": (GSM8K, ["Many."], GSM8K | {"response": "Many.", "extracted": None, "correct": False}),
    "ifeval": (IFEVAL, ["No."], {"prompt": "No commas.", "response": "No."}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_an_answer_is_a_row_of_the_benchmarks_own_output(name):
    row, answers, written = WRITTEN[name]
    task = TASKS[name.split(",")[0].split(" ")[0]]
    assert task.write_row(task.read_row(row), answers, "aft") == written


def test_answer_ids_of_mt_bench_differ_by_question_answers_and_model():
    task = TASKS["mt_bench"]
    query, other = task.read_row(MT_BENCH), task.read_row(MT_BENCH | {"question_id": 82})
    rows = [
        task.write_row(query, ["Owl", "Tit"], "aft"),
        task.write_row(query, ["Owl", "Tit"], "sft"),
        task.write_row(query, ["Owl", "Owl"], "aft"),
        task.write_row(other, ["Owl", "Tit"], "aft"),
    ]
    assert len({row["answer_id"] for row in rows}) == 4


WRONG = [
    ("alpaca_eval", {}, "query: missing"),
    ("alpaca_eval", {"instruction": None}, "instruction: missing"),
    ("alpaca_eval", {"instruction": " "}, "instruction: the query is empty"),
    ("alpaca_eval", {"query": CHAT}, "query: expected one instruction, got 4 messages"),
    ("alpaca_eval", ALPACA | {"context": "a nest"}, "context: may belong to the query"),
    ("mt_bench", {"question_id": 1, "turns": ["a"], "context": "b"}, "context: may belong to the query"),
    ("gsm8k", {"question": "a", "answer": "#### 1", "context": "b"}, "context: may belong to the query"),
    ("ifeval", {"key": 1, "prompt": "a", "context": "b"}, "context: may belong to the query"),
    ("mt_bench", {"turns": ["a"]}, "question_id: missing; expected a text or a whole number"),
    ("mt_bench", MT_BENCH | {"question_id": 8.5}, "question_id: expected a text or a whole number"),
    ("mt_bench", MT_BENCH | {"turns": "a"}, "turns: expected a list of texts, got str 'a'"),
    ("mt_bench", MT_BENCH | {"turns": []}, "turns: expected a list of texts, got list []"),
    ("mt_bench", MT_BENCH | {"turns": ["a", None]}, "turns[1]: expected a text, got nothing"),
    ("mt_bench", MT_BENCH | {"turns": ["a", ""]}, "turns[1]: the query is empty"),
    ("mt_bench", MT_BENCH | {"category": 5}, "category: expected a text, got int 5"),
    ("mt_bench", MT_BENCH | {"required_temperature": True}, "required_temperature: expected a number"),
    ("mt_bench", MT_BENCH | {"required_temperature": 11}, "required_temperature: expected"),
    ("gsm8k", GSM8K | {"question": 5}, "question: expected a text, got int 5"),
    ("gsm8k", {"question": "a"}, "answer: expected a text with a number, got nothing"),
    ("gsm8k", GSM8K | {"answer": "none"}, "answer: expected a text with a number, got str 'none'"),
    ("gsm8k", GSM8K | {"id": [1]}, "id: expected a text or a whole number, got list [1]"),
    ("alpaca_eval", ALPACA | {"id": 1.5}, "id: expected a text or a whole number"),
    ("ifeval", {"prompt": "a"}, "key: missing; expected a text or a whole number"),
    ("ifeval", {"key": 1}, "prompt: expected a text, got nothing"),
    *[(task, [], "row: expected an object, got list []") for task in TASKS],
]  # fmt: skip


@pytest.mark.parametrize(("task", "row", "message"), WRONG)
def test_a_wrong_row_is_refused_by_the_name_of_the_field(task, row, message):
    with pytest.raises(RecordError) as error:
        TASKS[task].read_row(row)
    assert str(error.value).startswith(message)


LEAVES = st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63) | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)  # fmt: skip
OTHER_KEYS = ["id", "query", "messages", "proposals", "input", "required_temperature"]
KEYS = st.sampled_from([*ALPACA, *MT_BENCH, *GSM8K, *IFEVAL, *CHAT[0], *OTHER_KEYS])
ROWS = st.recursive(
    LEAVES | st.sampled_from(["user", "7 apples"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=12,
)


@given(JSON | ROWS)
def test_any_json_is_a_query_or_a_record_error(row):
    assert detect_task(row) in TASKS
    for task in TASKS.values():
        try:
            query = task.read_row(row)
        except RecordError:
            continue
        assert query.id
        assert all(turn[-1]["content"].strip() for turn in query.turns)
        if task.write_row is not None:
            orjson.dumps(task.write_row(query, ["7"] * len(query.turns), "aft"))


DETECTED = {
    "alpaca_eval_v2.aft.jsonl": "records",
    "alpaca_eval_proposals.jsonl": "records",
    "mt_bench_questions.jsonl": "mt_bench",
    "gsm8k_train500.jsonl": "gsm8k",
    "ifeval_input_data.jsonl": "ifeval",
}


@pytest.mark.parametrize("file", DETECTED)
def test_the_published_files_are_known_by_their_keys(file, real):
    assert {detect_task(row) for row in real.rows(file)} == {DETECTED[file]}


@pytest.mark.parametrize("row", [{"instruction": "a", "dataset": "b"}, ALPACA])
def test_rows_of_alpaca_eval_are_known_by_their_keys(row):
    assert detect_task(row) == "alpaca_eval"


def test_rows_of_gsm8k_are_known_by_how_their_answers_end_whatever_else_they_have():
    more = {"idx": 0, "split": "test", "note": "checked"}
    assert detect_task(GSM8K | more) == "gsm8k"
    assert detect_task(GSM8K | more | {"answer": "72"}) == "records"
    assert detect_task(GSM8K | more | {"proposals": ["72"]}) == "records"


@pytest.mark.parametrize(
    "row",
    [
        *({"instruction": "a"}, {"prompt": "a", "id": 1}, ALPACA | {"proposals": ["a"]}, [], "a"),
        {"body": "Seven red apples.", "question": "How many?", "answer": "7 (apples)"},
        {"question": "Which?", "answer": "2", "A": "1", "B": "2"},
        {"instruction": "Explain.", "code": "def f(): pass", "dataset": "mine"},
    ],
)
def test_all_else_is_a_record(row):
    assert detect_task(row) == "records"


PUBLISHED = {
    "alpaca_eval_v2.aft.jsonl": ("alpaca_eval", 16, 805),
    "mt_bench_questions.jsonl": ("mt_bench", 16, 80),
    "gsm8k_train500.jsonl": ("gsm8k", 30, 500),
    "ifeval_input_data.jsonl": ("ifeval", 30, 541),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_published_files_are_read_whole_under_distinct_ids(file, real):
    task, sample, whole = PUBLISHED[file]
    count = real.either(sample=sample, whole=whole)
    assert len({TASKS[task].read_row(row).id for row in real.rows(file)}) == count


def test_alpaca_eval_as_records_has_the_same_ids(real):
    for row in real.rows("alpaca_eval_v2.aft.jsonl"):
        assert TASKS["alpaca_eval"].read_row(row).id == record_from_row(row).id


def test_the_temperatures_of_mt_bench_are_fastchats(real):
    queries = [TASKS["mt_bench"].read_row(row) for row in real.rows("mt_bench_questions.jsonl")]
    assert {query.row["category"]: query.final["temperature"] for query in queries} == {
        "writing": 0.7,
        "roleplay": 0.7,
        "reasoning": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "extraction": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }


def test_the_reference_of_mt_bench_is_an_answer_row_in_the_same_layout(real):
    row = real.rows("mt_bench_reference.gpt-4.jsonl")[0]
    task = TASKS["mt_bench"]
    ours = task.write_row(task.read_row(MT_BENCH), ["Owl", "Tit"], "aft")
    shape = lambda value: json.loads(json.dumps(value), object_hook=lambda o: sorted(o))  # noqa: E731
    assert shape(ours) == shape(row)
    assert {key: type(ours[key]) for key in ours} == {key: type(row[key]) for key in row}
    assert len(ours["answer_id"]) == len(row["answer_id"])


PROPOSING = {
    "strategy": "propose_and_aggregate",
    "width": 5,
    "temperature": 0.7,
    "top_p": 0.95,
    "max_tokens": 4096,
    "final_top_p": 1.0,
}
PRESETS = {
    "alpaca_eval": {"task": "alpaca_eval", "layers": 2, "template": "paper", "final_temperature": 0.9, "final_max_tokens": 4096},
    "mt_bench": {"task": "mt_bench", "layers": 2, "template": "paper", "final_max_tokens": 1024},
    "gsm8k": {"task": "gsm8k", "layers": 1, "template": "paper", "final_temperature": 0.0, "final_max_tokens": 4096},
    "ifeval": {"task": "ifeval", "layers": 1, "template": "paper", "final_temperature": 0.0, "final_max_tokens": 4096},
    "release": {"layers": 2, "template": "release", "proposer_system": "\n", "final_temperature": 0.7, "final_max_tokens": 4096, "seed": 2025},
}  # fmt: skip
FILES = {path.stem: path for path in Path(aft_factory.__file__).with_name("presets").glob("*.yaml")}


def test_every_preset_is_tested():
    assert FILES.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_the_settings_of_its_source(name):
    preset = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))
    assert preset == PROPOSING | PRESETS[name]
    assert preset.get("task", "records") in TASKS
    for prefix in ("", "final_"):
        settings = ("temperature", "top_p", "max_tokens")
        Sampling(**{key: preset[prefix + key] for key in settings if prefix + key in preset})


def test_benchmarks_rows_keep_all_of_their_query():
    """By the reader of all other commands: an input, a system message."""
    row = ALPACA | {"input": "a nest", "system": "Be brief."}
    [query] = TASKS["alpaca_eval"].read_row(row).turns
    said = f"{ALPACA['instruction']}\na nest"
    assert query == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]
    row = {"question": "a", "answer": "#### 1", "system": "Be brief."}
    [query] = TASKS["gsm8k"].read_row(row).turns
    assert [message["content"] for message in query] == ["Be brief.", "a"]


def test_a_row_that_cannot_be_read_is_named_as_an_answered_one_is():
    task = TASKS["alpaca_eval"]
    for row in ({"query": user("Name a bird.")}, {"instruction": "Name", "input": "a bird."}):
        answered = task.write_row(task.read_row(row), ["x"], "aft")
        assert task.write_row(task.unread(row | {"context": "b"}), ["x"], "aft") == answered
    assert task.unread({"query": None}) is None
    assert task.unread({"instruction": "Hi", "input": 5}).turns == [user("Hi")]
    nan = MT_BENCH | {"required_temperature": float("nan")}
    assert TASKS["mt_bench"].read_row(nan).final == {"temperature": 0.1}

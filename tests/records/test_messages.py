"""Layouts of rows: the same conversation everywhere, and nothing of a query lost.

One table, read by every command and by the plugin. Run: pytest tests/records/test_messages.py
"""

import importlib
import json
import math
import random

import pytest
from shared_data import CASES

from aft_factory.convert.__main__ import main as convert
from aft_factory.convert.ultrafeedback import read_ultrafeedback
from aft_factory.errors import RecordError
from aft_factory.inference.tasks import TASKS, detect_task
from aft_factory.plugin.v0 import AggregationConverter
from aft_factory.plugin.v1 import convert_row
from aft_factory.prompts.selection import conversation
from aft_factory.records.columns import Columns
from aft_factory.records.fields import leaves
from aft_factory.records.leftovers import may_belong
from aft_factory.records.record import record_from_row
from aft_factory.records.tables import read_rows


def command(name, *arguments):
    return importlib.import_module(f"aft_factory.{name}.__main__").main(
        [*map(str, arguments), "--quiet"]
    )


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(*texts, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


PART = {"type": "text", "text": "How many?"}
CHAT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
ASK = {"from": "human", "value": "How many?"}
LAYOUTS = {
    "Alpaca": ({"instruction": "How many?", "input": "6 pails", "output": "Six."}, said("How many?\n6 pails"), "Six."),
    "Alpaca without input": ({"instruction": "How many?", "input": "", "output": "Six."}, said("How many?"), "Six."),
    "Alpaca without instruction": ({"instruction": "", "input": "How many?", "output": "Six."}, said("How many?"), "Six."),
    "Alpaca with all": (
        {"instruction": "How many?", "input": "6 pails", "system": "Be brief.", "history": [["Hi", "Hello."]], "output": "Six."},
        said("Hi", "Hello.", "How many?\n6 pails", system="Be brief."), "Six.",
    ),
    "history as messages": ({"query": "How many?", "history": said("Hi", "Hello.")}, said("Hi", "Hello.", "How many?"), None),
    "a system column": ({"prompt": "How many?", "system_prompt": "Be brief."}, said("How many?", system="Be brief."), None),
    "a question": ({"question": "How many?"}, said("How many?"), None),
    "ShareGPT": ({"conversations": [*CHAT, ASK]}, said("Hi", "Hello.", "How many?"), None),
    "ShareGPT with an answer": ({"conversations": [ASK, {"from": "gpt", "value": "Six."}], "system": "Be brief."}, said("How many?", system="Be brief."), "Six."),
    "OpenAI with an answer": ({"messages": said("How many?", "Six.", system="Be brief.")}, said("How many?", system="Be brief."), "Six."),
    "a developer's message": ({"messages": [{"role": "developer", "content": "Be brief."}, *said("How many?")]}, said("How many?", system="Be brief."), None),
    "content as parts": ({"messages": [{"role": "user", "content": [PART, {"type": "text", "text": "Six?"}]}]}, said("How many?\nSix?"), None),
    "a query as parts": ({"query": [PART]}, said("How many?"), None),
    "messages as an object of lists": ({"messages": {"role": ["user"], "content": ["How many?"]}}, said("How many?"), None),
    "an empty system message": ({"messages": [{"role": "system", "content": " "}, *said("How many?")]}, said("How many?"), None),
    "a prompt that says what the messages say": ({"prompt": "How many?", "messages": said("How many?", "Six.")}, said("How many?"), "Six."),
    "one turn": ({"turns": ["How many?"]}, said("How many?"), None),
    "one turn as an object": ({"turns": [{"content": "How many?"}]}, said("How many?"), None),
    "messages as JSON text": ({"messages": json.dumps(said("Hi", "Hello.", "How many?", "Six."))}, said("Hi", "Hello.", "How many?"), "Six."),
    "ShareGPT as JSON text": ({"conversations": json.dumps([*CHAT, ASK])}, said("Hi", "Hello.", "How many?"), None),
    "history as JSON text": ({"query": "How many?", "history": json.dumps([["Hi", "Hello."]])}, said("Hi", "Hello.", "How many?"), None),
    "a query that is a conversation's JSON": ({"query": json.dumps(said("Hi"))}, said(json.dumps(said("Hi"))), None),
    **{f"a text in {name} that is JSON": ({name: json.dumps(said("Hi"))}, said(json.dumps(said("Hi"))), None) for name in ("instruction", "prompt", "question")},
    "parts whose kind is missing as NaN": ({"query": [{"type": math.nan, "text": "How many?"}]}, said("How many?"), None),
    "messages with the keys of both layouts": (
        {"messages": [{"from": None, "value": None, "role": "user", "content": "How many?", "name": "x", "tool_calls": None}]}, said("How many?"), None,
    ),
    "parts with the keys of all kinds": (
        {"query": [{"type": "text", "text": "How many?", "image_url": None, "value": None}, {"type": None, "text": None, "value": "Six?"}]}, said("How many?\nSix?"), None,
    ),
    "messages as JSON text of an object of lists": ({"messages": json.dumps({"role": ["user"], "content": ["How many?"]})}, said("How many?"), None),
    "a text that is a list in JSON": ({"instruction": "", "input": "[3, 1, 2]"}, said("[3, 1, 2]"), None),
    "a text that begins as JSON": ({"input": '[{"a": 1}] what is this?'}, said('[{"a": 1}] what is this?'), None),
    "a text of objects that are no messages": ({"input": '[{"role": "admin"}]'}, said('[{"role": "admin"}]'), None),
    "parts as JSON text": ({"messages": json.dumps([PART])}, said("How many?"), None),
    "turns as JSON text": ({"turns": '[{"role": "user", "content": "How many?"}]'}, said("How many?"), None),
    "a prompt as messages that says what the messages say": ({"prompt": [{"role": "user", "content": " How many?", "name": None}], "messages": said("How many?", "Six.")}, said("How many?"), "Six."),
    "an answer beside messages that end with it": ({"prompt": ["How many?", "Six."], "messages": said("How many?", "Six.")}, said("How many?"), "Six."),
    "an empty part": ({"query": [PART, {"type": "text", "text": ""}]}, said("How many?\n"), None),
    "numbers and names of things": (
        {"query": "How many?", "num_turns": 3, "turn": 2, "prompt_id": "p1", "has_image": False, "custom_instruction": False, "input_tokens": 3, "question_type": "sum", "images": [], "context": math.nan},
        said("How many?"), None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return [
        {"id": str(i), "proposals": ["p1", "p2"], "aggregation": "a", **row}
        for i, (row, *_) in enumerate(LAYOUTS.values())
    ]


EXPECTED = [conversation for _, conversation, _ in LAYOUTS.values()]


@pytest.mark.parametrize(("row", "messages", "answer"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_row_of_any_layout_is_a_record(row, messages, answer):
    record = record_from_row(row)
    assert (record.messages, record.reference) == (messages, answer)


def test_rows_that_differ_in_their_input_only_are_two():
    rows = [{"instruction": "Translate.", "input": text} for text in ("One.", "Two.")]
    assert len({record_from_row(row).id for row in rows}) == 2


@pytest.mark.parametrize("name", ["sample", "aggregate", "run"])
def test_every_command_asks_the_same(name, rows, tmp_path, monkeypatch):
    """What was sent, not only what came back."""
    from aft_factory.engines.scripted import ScriptedEngine

    asked = []

    async def sample(self, request):
        asked.append(request.prompt)
        return await original(self, request)

    original = ScriptedEngine.sample
    monkeypatch.setattr(ScriptedEngine, "sample", sample)
    flags = {"sample": ["--chat", "--samples", 1], "run": ["--layers", 0, "--task", "records"]}
    more = flags.get(name, ["--pseudo"])
    source = write_lines(tmp_path / "in.jsonl", rows)
    code = command(
        name, source, "--output", tmp_path / "out.jsonl", "--scripted", "--in-flight", 1, *more
    )
    assert code == 0
    by_text = {json.dumps(messages) for messages in asked}
    assert by_text == {json.dumps(messages) for messages in EXPECTED}
    if name != "run":
        written = [row["messages"] for row in read_lines(tmp_path / "out.jsonl")]
        assert written == EXPECTED


@pytest.mark.parametrize("name", ["sample", "aggregate", "rank", "run"])
def test_columns_are_named_alike_in_every_command(name, tmp_path):
    row = {"id": "1", "ask": "How many?", "context": "6 pails", "drafts": ["a", "b"]}
    source = write_lines(tmp_path / "in.jsonl", [row])
    output = tmp_path / "out.jsonl"
    flags = [
        "--output",
        output,
        "--scripted",
        "--column",
        "messages=ask",
        "--column",
        "ignore=context",
    ]
    if name in ("aggregate", "rank"):
        flags += ["--column", "proposals=drafts"]
    assert command(name, source, *flags) == 0
    [written] = read_lines(output)
    assert (
        written["context"] if name == "run" else json.loads(written["meta"])["context"]
    ) == "6 pails"
    assert name == "run" or written["messages"] == said("How many?")
    assert (
        command(
            name, source, "--output", tmp_path / "o.jsonl", "--scripted", "--column", "mesages=ask"
        )
        == 2
    )


def test_rank_keeps_the_same(rows, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert command("rank", source, "--output", tmp_path / "out.jsonl", "--scripted") == 0
    assert [row["messages"] for row in read_lines(tmp_path / "out.jsonl")] == EXPECTED


@pytest.mark.parametrize("target", ["aggregation", "sharegpt"])
def test_convert_writes_the_same(target, rows, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", rows)
    flags = ["--target", target, "--without-proposals", "--quiet"]
    assert convert(["proposals", str(source), "--output", str(tmp_path / "o.jsonl"), *flags]) == 0
    written = read_lines(tmp_path / "o.jsonl")
    if target == "aggregation":
        assert [row["messages"] for row in written] == EXPECTED
        return
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    assert [
        [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"][:-1]]
        for row in written
    ] == EXPECTED


def test_the_plugin_trains_on_the_same(rows):
    converter = AggregationConverter("drafts", None)
    for row, messages in zip(rows, EXPECTED, strict=True):
        aligned = converter(row)
        system = said(system=aligned["_system"]) if aligned["_system"] else []
        assert [*system, *aligned["_prompt"]] == messages
        assert aligned["_response"] == [{"role": "assistant", "content": "a"}]
        turns = convert_row(row)["messages"]
        expected = [m["content"] for m in conversation(record_from_row(row))]
        assert [turn["content"][0]["value"] for turn in turns[:-1]] == expected


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"completions": [{"response": "a"}], "instruction": "Sum.", "input": "1 2"}, said("Sum.\n1 2")),
        ({"chosen": "a", "rejected": "b", "question": "Q", "system": "S"}, said("Q", system="S")),
        ({"chosen": said("Q", "a"), "rejected": said("Q", "b"), "prompt": "Q", "system": "S"}, said("Q", system="S")),
        ({"chosen": json.dumps(said("Q", "a")), "rejected": json.dumps(said("Q", "b")), "messages": said("Q", "a")}, said("Q")),
        ({"chosen": "[1, 2]", "rejected": "[2, 1]", "prompt": "Sort."}, said("Sort.")),
    ],
)  # fmt: skip
def test_pairs_and_completions_keep_their_query(row, messages):
    from collections import Counter

    assert read_ultrafeedback(row, Columns(), Counter()).messages == messages


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"chosen": str(said("Q", "a")), "rejected": "b", "prompt": "Q"}, "chosen"),
        ({"chosen": said("Q", "a"), "rejected": said("Q", "b"), "prompt": said("Q", system="S")}, "prompt"),
        ({"chosen": [*said("Q"), {"role": "assistant", "content": "a", "value": "all of a"}], "rejected": "b"}, "chosen[1].value"),
    ],
)  # fmt: skip
def test_pairs_lose_nothing_of_their_query_either(row, field):
    from collections import Counter

    with pytest.raises(RecordError) as caught:
        read_ultrafeedback(row, Columns(), Counter())
    assert caught.value.field == field
    if field == "prompt":  # the way out
        ignoring = read_ultrafeedback(row, Columns(ignore="prompt"), Counter())
        assert (ignoring.messages, ignoring.proposals) == (said("Q"), ["a", "b"])


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"chat": said("Q"), "facts": "F"}, said("Q\nF")),
        ({"chat": said("Q", "A"), "facts": "F", "old": [["p", "q"]]}, said("p", "q", "Q\nF")),
        ({"chat": said("Q", system="S"), "old": said("p", "q", system="S")}, said("p", "q", "Q", system="S")),
        ({"chat": said("Q", system="S"), "old": '[["p", "q"]]'}, said("p", "q", "Q", system="S")),
        ({"chat": "Q", "facts": "F", "old": [["p", "q"]]}, said("p", "q", "Q\nF")),
    ],
)  # fmt: skip
def test_a_column_that_is_named_is_read_whatever_form_the_query_has(row, messages):
    names = {"messages": "chat", "input": "facts", "history": "old"}
    columns = Columns.from_mapping({k: name for k, name in names.items() if name in row})
    assert record_from_row(row, columns).messages == messages


@pytest.mark.parametrize("value", [0, False, 5, ["a", "b"]])
def test_a_column_that_is_named_and_holds_no_text_is_refused(value):
    for chat in ("Q", said("Q")):
        with pytest.raises(RecordError) as caught:
            record_from_row({"chat": chat, "facts": value}, Columns(messages="chat", input="facts"))
        assert caught.value.field == "facts"


def test_two_system_messages_in_history_and_query_are_refused():
    row = {"chat": said("Q", system="S"), "old": said("p", "q", system="T")}
    with pytest.raises(RecordError, match="another system message"):
        record_from_row(row, Columns(messages="chat", history="old"))


REFUSED = {
    "a context": ({"question": "How many?", "context": "6 pails"}, "context"),
    "documents": ({"query": "q", "retrievedDocuments": [{"title": "t"}]}, "retrievedDocuments"),
    "two that could be the query": ({"prompt": "How many?", "instruction": "Be brief."}, "prompt"),
    "a query beside messages": ({"messages": said("a"), "query": "b"}, "query"),
    "an input beside a query": ({"query": "How many?", "input": "6 pails"}, "input"),
    "an input that is no text": ({"instruction": "Sum.", "input": {"a": 1}}, "input"),
    "an input that is 0": ({"instruction": "Sum.", "input": 0}, "input"),
    "an input that is false": ({"instruction": "Sum.", "input": False}, "input"),
    "a context that is a number": ({"query": "q", "context": 7}, "context"),
    "a premise that is true": ({"query": "q", "premise": True}, "premise"),
    "a second text in a message": ({"messages": [{"role": "user", "content": "short", "value": "the whole"}]}, "messages[0].value"),
    "a second text in a turn of ShareGPT": ({"conversations": [{"from": "human", "value": "short", "content": "the whole"}]}, "conversations[0].content"),
    "a text beside the content": ({"messages": [{"role": "user", "content": "short", "text": "the whole"}]}, "messages[0].text"),
    "a file beside the content": ({"messages": [{"role": "user", "content": "short", "file": "a.txt"}]}, "messages[0].file"),
    "a second text in a part": ({"query": [{**PART, "value": "the whole"}]}, "query[0].content[0].value"),
    "a part that is no text": ({"query": [{"type": "image", "text": "q"}]}, "query[0].content[0]"),
    "a picture in a turn": ({"turns": [{"content": "What is it?", "image": "x.png"}]}, "turns[0].image"),
    "a list of texts as a text": ({"instruction": "Sum.", "input": ["1", "2"]}, "input"),
    "messages as numpy prints them": ({"conversations": "{'from': array(['human']), 'value': array(['q'])}"}, "conversations"),
    "one message as JSON text": ({"messages": '{"role": "user", "content": "q"}'}, "messages"),
    "a prompt as messages that says more": ({"prompt": said("q", system="S"), "messages": said("q", "a")}, "prompt"),
    "an input that is a number": ({"instruction": "Sum.", "input": 5}, "input"),
    "images": ({"query": "What is it?", "images": ["a.png"]}, "images"),
    "an image as bytes": ({"query": "What is it?", "image": {"bytes": b"x", "path": None}}, "image"),
    "options": ({"question": "Which?", "choices": [1, 2]}, "choices"),
    "options that stand in the question": ({"question": "a or b?", "choices": ["a", "b"]}, "choices"),
    "tools": ({"query": "q", "tools": "[{}]"}, "tools"),
    "tools in a list": ({"query": "q", "tools": [{"name": "f"}]}, "tools"),
    "a picture beside the text of a part": ({"query": [{**PART, "image_url": {"url": "x"}}]}, "query[0].content[0].image_url"),
    "a picture beside the text of a message": ({"messages": [{"role": "user", "content": "q", "image": "x"}]}, "messages[0].image"),
    "messages as Python prints them": ({"messages": str(said("q"))}, "messages"),
    "messages as JSON that is cut off": ({"messages": json.dumps(said("q"))[:-2]}, "messages"),
    "a wrong role in JSON text": ({"messages": '[{"role": "tool", "content": "q"}]'}, "messages[0].role"),
    "evidence": ({"query": "Is it true?", "evidence": "It is."}, "evidence"),
    "endings": ({"query": "How does it go on?", "endings": ["so", "or so"]}, "endings"),
    "a picture in a message": ({"messages": [{"role": "user", "content": [PART, {"type": "image_url", "image_url": "x"}]}]}, "messages[0].content[1]"),
    "calls of tools": ({"messages": [*said("q"), {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, *said("r")]}, "messages[1].tool_calls"),
    "a second system message": ({"messages": said("q", system="Be brief."), "system": "Be long."}, "system"),
    "a history beside messages": ({"messages": said("q"), "history": [["a", "b"]]}, "history"),
    "a history of texts": ({"query": "q", "history": ["a", "b"]}, "history[0]"),
    "a history that is a text": ({"query": "q", "history": "a"}, "history"),
    "a history that ends with a question": ({"query": "q", "history": said("a")}, "history[1].role"),
    "several turns": ({"turns": ["a", "b"]}, "turns"),
    "options with a column each": ({"question": "Which?", "A": 1, "B": 2, "answer": "B"}, "A"),
    "options by letters": ({"question": "Which?", "option_a": "x", "option_b": "y"}, "option_a"),
    "options in short": ({"question": "Which?", "opa": "x", "opb": "y", "cop": 1}, "opa"),
    "a hint": ({"problem": "Solve x + 1 = 2.", "query": "Solve x + 1 = 2.", "hint": "Subtract."}, "hint"),
    "a problem beside an instruction": ({"instruction": "Solve it.", "problem": "x + 1 = 2"}, "problem"),
    "a beginning to go on from": ({"prompt": "Write on.", "prefix": "Once upon a time"}, "prefix"),
    "code": ({"question": "Add two numbers.", "starter_code": "def add(a, b):\n"}, "starter_code"),
    "a description in Chinese": ({"query": "Q", "description": "写一个函数"}, "description"),
    "a user's text beside": ({"system": "S", "query": "q", "user": "Hello"}, "user"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_may_belong_to_the_query_and_is_not_understood_is_refused_by_name(row, field):
    with pytest.raises(RecordError) as caught:
        record_from_row(row)
    assert caught.value.field == field


def test_the_way_out_is_in_the_message():
    row = {"question": "How many?", "context": "6 pails"}
    with pytest.raises(RecordError, match="ignore=context"):
        record_from_row(row)
    record = record_from_row(row, Columns(ignore="context"))
    assert (record.messages, record.meta) == (said("How many?"), {"context": "6 pails"})
    with pytest.raises(RecordError, match=r"ignore=A,B,C\)"):  # of all at once
        record_from_row({"question": "Which?", "A": "x", "B": "y", "C": "z", "answer": "A"})


def test_labels_answers_and_what_the_query_says_already_are_no_part_of_it():
    query = "Complete it:\ndef add(a, b):\n    "
    labels = {
        "language_code": "en",
        "signature": "bm8gcXVlcnk==",
        "code": "C++",
        "status_code": 200,
        "prefix": "def",
        "A": "1",
        "e": "x",
        "text": "Q: A:",
        "tools": "[]",
        "functions": " {} ",
    }
    answers = {
        "solution_code": "return a + b",
        "reference_text": "a + b",
        "answer_description": "A sum.",
    }
    row = {"prompt": query, "starter_code": "def add(a, b):\n", "hint": query} | labels | answers
    assert record_from_row(row).messages == said(query)
    assert (
        record_from_row({"prompt": query, "code": "a + b"}, Columns(reference="code")).reference
        == "a + b"
    )


@pytest.mark.parametrize("name", ["input", "system", "history", "prompt"])
def test_what_is_ignored_is_ignored_wherever_it_would_be_read(name):
    values = {"input": "6 pails", "system": "S", "history": [["a", "b"]], "prompt": "p"}
    row = {"instruction": "How many?", name: values[name]}
    record = record_from_row(row, Columns(ignore=f"note,{name}"))
    assert (record.messages, record.meta) == (said("How many?"), {name: values[name]})


def test_a_column_that_is_named_is_read_though_it_is_another_field_too():
    row = {"question": "How many?", "input": "6 pails"}
    record = record_from_row(row, Columns(id="question", messages="question", input="input"))
    assert (record.id, record.messages) == ("How many?", said("How many?\n6 pails"))


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"question": "2 + 2?", "answer": "#### 4", "prompt": "In German."}, "gsm8k"),
        ({"key": 1, "prompt": "Say hi.", "instruction_id_list": [], "query": "In German."}, "ifeval"),
        ({"question_id": 1, "turns": ["a", "b"], "context": "Of water."}, "mt_bench"),
        ({"instruction": "Hi", "dataset": "x", "document": "Of water."}, "alpaca_eval"),
    ],
)  # fmt: skip
def test_a_benchmarks_row_loses_no_part_of_its_query_either(row, task):
    assert detect_task(row) in (task, "records")
    with pytest.raises(RecordError, match="may belong to the query"):
        TASKS[task].read_row(row)


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        *((name, True) for name in ("context", "claim", "stories", "image", "image_url", "audioPath", "video_bytes", "chatHistory", "source_documents", "PROMPT", "raw_prompt_text", "userInput", "Queries", "hints", "sentence_b")),
        *((name, False) for name in ("note", "document_url", "file", "data", "prompt_id", "num_tokens", "", "text", "dataset", "contextual", "answer", "id", "input_length", "solution_code", "a", "b", "model_a")),
    ],
)  # fmt: skip
def test_a_columns_last_word_tells(name, belongs):
    assert may_belong(name) is belongs


def test_real_rows_are_asked_with_their_input(real):
    rows = real.rows("llamafactory_alpaca_en_demo.jsonl")
    with_input = 0
    for row in rows:
        [message] = record_from_row(row).messages
        assert message["content"] == "\n".join(filter(None, (row["instruction"], row["input"])))
        with_input += bool(row["input"])
    assert (len(rows), with_input) == real.either(sample=(20, 5), whole=(999, 412))


def test_rows_of_other_layouts():
    path = CASES / "rows" / "alpaca_input_system_history.json"
    first, second = [record_from_row(line.value) for line in read_rows(str(path))]
    assert first.messages == said(
        "Hello", "Hi, what shall I translate?", "Translate the sentence into German.\nThe six pails are full.",
        system="You are a translator.",
    )  # fmt: skip
    assert (second.messages, second.reference) == (said("Name a colour."), "Blue.")
    odd = [line.value for line in read_rows(str(CASES / "rows" / "odd_rows.jsonl"))]
    records = [record_from_row(row) for row in odd]
    assert [r.id for r in records[:9]] == [*"abcdefg", "81", "i"]
    assert records[0].proposals == ["Blue.", "", "Red."]
    assert records[8].scores == [0.1, None]
    assert records[10].messages == said("Well \ufffd done")
    assert records[11].meta == {"big": 123456789012345678901234567890}
    assert json.loads(records[11].to_row()["meta"]) == records[11].meta
    arena = [line.value for line in read_rows(str(CASES / "rows" / "arena_hard_turns.jsonl"))]
    assert [record_from_row(row).messages for row in arena] == [
        said("Write a tune in ABC notation.")
    ] * 2
    assert [detect_task(row) for row in arena] == ["records", "records"]


WORDS = ["", " ", "alpha", "beta gamma", "<|eot_id|>", "delta\n", "0", "é"]


def random_row(draw):
    """A row whose columns are drawn from all layouts, right and wrong."""
    text = lambda: draw.choice(WORDS) + draw.choice(WORDS) + str(draw.randint(0, 99))  # noqa: E731
    chat = lambda tags: [  # noqa: E731
        {tags[0]: tags[1][i % 2], tags[2]: draw.choice([text(), text(), None, [PART]])}
        for i in range(draw.randint(0, 4))
    ]
    makers = {
        **dict.fromkeys(("instruction", "input", "query", "prompt", "question", "system", "output", "context", "note"), text),
        "messages": lambda: chat(("role", ("user", "assistant"), "content")),
        "conversations": lambda: chat(("from", ("human", "gpt"), "value")),
        "history": lambda: [[text(), text()] for _ in range(draw.randint(0, 2))],
        "turns": lambda: [text() for _ in range(draw.randint(0, 2))],
        "proposals": lambda: [draw.choice([text(), None, math.nan]) for _ in range(draw.randint(0, 3))],
        "scores": lambda: draw.choice([None, math.nan, [1.0, math.nan], 3]),
        "id": lambda: draw.choice([1.0, "x", None, math.nan]),
        "images": lambda: draw.choice([[], None, ["a.png"]]),
        "meta": lambda: draw.choice([{}, "{}", "web", 3, {"a": math.inf}]),
    }  # fmt: skip
    names = draw.sample(sorted(makers), draw.randint(1, 6))
    return {name: makers[name]() for name in names}


QUERY_COLUMNS = ("instruction", "input", "query", "prompt", "question", "system", "context", "history", "turns")  # fmt: skip


def test_of_ten_thousand_rows_no_text_of_a_query_is_lost(tmp_path):
    draw = random.Random(7)
    rows = [random_row(draw) for _ in range(10_000)]
    usable = 0
    for row in rows:
        try:
            record = record_from_row(row)
        except RecordError:
            continue
        usable += 1
        asked = [message["content"] for message in record.messages]
        for name in QUERY_COLUMNS:
            for text in leaves(row.get(name)):
                if isinstance(text, str) and text.strip():
                    assert any(text.strip() in content for content in asked), (name, row)
        for name in ("messages", "conversations"):
            if name in record.meta:  # of the two, the other one had the query, and this nothing
                continue
            for message in row.get(name) or []:
                for text in leaves(message.get("content", message.get("value"))):
                    whole = [
                        *asked,
                        record.reference or "",
                        record.meta.get("answer") or "",
                        "text",
                    ]
                    assert not isinstance(text, str) or not text.strip() or any(
                        text.strip() in content for content in whole
                    ), (name, row)  # fmt: skip
    assert 2000 < usable < 9000  # both ends of the table are met
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out.jsonl"
    assert (
        convert(["proposals", str(tmp_path / "in.jsonl"), "--output", str(output), "--quiet"]) == 0
    )
    written, rejected = read_lines(output), read_lines(tmp_path / "out.rejects.jsonl")
    assert len(written) == usable
    assert len(written) + len(rejected) == len(rows)
    assert all(reject["reason"] and reject["field"] for reject in rejected)

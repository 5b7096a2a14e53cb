"""Records: accepted layouts, errors that name the field, stable ids. Run: pytest tests/records/test_records.py"""

import copy
import math
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.errors import RecordError, UsageError
from aft_factory.records.columns import Columns
from aft_factory.records.record import Record, content_id, record_from_row

USER = {"role": "user", "content": "How many pails?"}
ASSISTANT = {"role": "assistant", "content": "Six."}
SYSTEM = {"role": "system", "content": "Be brief."}
ID = "7594d7e8ba9e6842"  # of USER with the proposals "5" and "6"


def record(**fields):
    return Record(**{"id": ID, "messages": [USER], "proposals": ["5", "6"]} | fields)


ACCEPTED = {
    "query": ({"query": "How many pails?", "proposals": ["5", "6"]}, {}),
    "instruction": ({"instruction": "How many pails?", "proposals": ["5", "6"]}, {}),
    "prompt": ({"prompt": "How many pails?", "proposals": ["5", "6"]}, {}),
    "messages": ({"messages": [USER], "proposals": ["5", "6"]}, {}),
    "query as a list": ({"query": [USER], "proposals": ["5", "6"]}, {}),
    "messages as a text": ({"messages": "How many pails?", "proposals": ["5", "6"]}, {}),
    "the first name that is not null": (
        {"messages": None, "query": "How many pails?", "proposals": None, "responses": ["5", "6"]},
        {"meta": {"messages": None, "proposals": None}},
    ),
    "system and earlier turns": (
        {"messages": [SYSTEM, USER, ASSISTANT, USER], "proposals": ["5", "6"]},
        {"id": "ff6540fa53f80ccb", "messages": [SYSTEM, USER, ASSISTANT, USER]},
    ),
    "responses as objects": (
        {"query": "How many pails?", "responses": [{"response": "5", "model": "a"}, {"text": "6", "score": 2}]},
        {"proposal_models": ["a", None], "scores": [None, 2.0]},
    ),
    "scores and models beside": (
        {"query": "How many pails?", "proposals": ["5", "6"], "scores": [1, 0.5], "proposal_models": ["a", None]},
        {"scores": [1.0, 0.5], "proposal_models": ["a", None]},
    ),
    "no proposals": ({"query": "How many pails?"}, {"id": "6c30a7730bff0c15", "proposals": []}),
    "empty proposals stay": (
        {"query": "How many pails?", "proposals": ["", "5", "5"]},
        {"id": "f9b12e935fa15953", "proposals": ["", "5", "5"]},
    ),
    "id as a text": ({"id": "7", "query": "How many pails?", "proposals": ["5", "6"]}, {"id": "7"}),
    "id as a number": ({"id": 7, "query": "How many pails?", "proposals": ["5", "6"]}, {"id": "7"}),
    "id null or empty is none": ({"id": "", "query": "How many pails?", "proposals": ["5", "6"]}, {}),
    "targets and source": (
        {"query": "How many pails?", "proposals": ["5", "6"], "aggregation": "Six.", "reference": "6", "source": "gsm8k"},
        {"aggregation": "Six.", "reference": "6", "source": "gsm8k"},
    ),
    "other columns go to meta": (
        {"query": "How many pails?", "proposals": ["5", "6"], "dataset": "x", "row": {"n": [1]}, "meta": {"a": 1}},
        {"meta": {"a": 1, "dataset": "x", "row": {"n": [1]}}},
    ),
    "missing drafts are blank": (
        {"query": "How many pails?", "proposals": ["5", None, math.nan, {"response": None, "model": "a"}]},
        {"id": "4f62f83d57f8727d", "proposals": ["5", "", "", ""], "proposal_models": [None, None, None, "a"]},
    ),
    "drafts as an object of lists": (
        {"query": "How many pails?", "proposals": {"response": ["5", "6"], "score": [1, None]}},
        {"scores": [1.0, None]},
    ),
    "a draft as a list of parts": (
        {"query": "How many pails?", "proposals": [[{"type": "text", "text": "5"}], "6"]}, {},
    ),
    "scores that are no numbers are unknown": (
        {"query": "How many pails?", "proposals": ["5", "6"], "scores": [math.nan, math.inf]},
        {"scores": [None, None]},
    ),
    "scores are put together": (
        {"query": "How many pails?", "proposals": [{"text": "5", "score": 1, "model": "a"}, {"text": "6", "score": 2}], "scores": [None, 3], "proposal_models": [None, "b"]},
        {"scores": [1.0, 3.0], "proposal_models": ["a", "b"], },
    ),
    "what else drafts hold": (
        {"query": "How many pails?", "responses": [{"text": "5", "rating": 4, "note": ""}, {"text": "6"}]},
        {"meta": {"of_proposals": [{"rating": 4}, {}]}},
    ),
    "an empty list as JSON text, a blank reference": (
        {"query": "How many pails?", "proposals": "[]", "responses": ["5", "6"], "reference": "  ", "output": "6"},
        {"reference": "6", "meta": {"proposals": "[]"}},
    ),
    "a reference that is a list as text": (
        {"query": "How many pails?", "proposals": ["5", "6"], "reference": "[]", "output": "6"},
        {"reference": "[]", "meta": {"output": "6"}},
    ),
    "an answer, a column of that name, and a reference": (
        {"messages": [USER, ASSISTANT], "proposals": ["5", "6"], "reference": "6", "answer": "mine"},
        {"reference": "6", "meta": {"answer": "mine", "conversation_answer": "Six."}},
    ),
    "an answer, and a reference": (
        {"messages": [USER, ASSISTANT], "proposals": ["5", "6"], "reference": "6"},
        {"reference": "6", "meta": {"answer": "Six."}},
    ),
    "a column of a name that meta has": (
        {"query": "How many pails?", "proposals": ["5", "6"], "meta": {"a": 1, "b": 2}, "a": 3, "b": 2},
        {"meta": {"a": 1, "b": 2, "input_a": 3}},
    ),
    "NaN in a draft's score is unknown": (
        {"query": "How many pails?", "responses": [{"text": "5", "score": math.nan}, {"text": "6", "score": 2}]},
        {"scores": [None, 2.0]},
    ),
    "an id that pandas made a fraction of": ({"id": 81.0, "query": "How many pails?", "proposals": ["5", "6"]}, {"id": "81"}),
    "an id that is missing as NaN": ({"id": math.nan, "query": "How many pails?", "proposals": ["5", "6"]}, {}),
    "columns of the user's own with our names": (
        {"query": "How many pails?", "proposals": ["5", "6"], "meta": "from the web", "reference": ["5", "6"], "source": 7, "scores": 3, "proposal_models": "m", "aggregation_thought": 8},
        {"meta": {"meta": "from the web", "reference": ["5", "6"], "source": 7, "scores": 3, "proposal_models": "m", "aggregation_thought": 8}},
    ),
    "a meta that is no object": ({"query": "How many pails?", "proposals": ["5", "6"], "meta": [1]}, {"meta": {"meta": [1]}}),
    "the first name that is not empty": (
        {"query": "How many pails?", "proposals": [], "responses": ["5", "6"], "reference": "", "output": "6"},
        {"reference": "6", "meta": {"proposals": []}},
    ),
    "an empty reference before an answer": ({"messages": [USER, ASSISTANT], "proposals": ["5", "6"], "reference": ""}, {"reference": "Six."}),
    "an empty reference stays": ({"query": "How many pails?", "proposals": ["5", "6"], "reference": ""}, {"reference": ""}),
    "drafts with the keys of all": (
        {"query": "How many pails?", "proposals": [{"response": None, "text": "5", "score": 1.0}, {"response": "6", "text": "", "score": None}]},
        {"scores": [1.0, None]},
    ),
    "drafts with one text twice": ({"query": "How many pails?", "proposals": [{"text": "5", "content": "5"}, "6"]}, {}),
    "a draft without any text": (
        {"query": "How many pails?", "proposals": [{"response": None, "text": ""}, "6"]}, {"id": "f56d1919c75d4013", "proposals": ["", "6"]},
    ),
    "lists as JSON text": (
        {"query": "How many pails?", "proposals": '["5", "6"]', "scores": "[1, null]", "proposal_models": '["a", "b"]'},
        {"scores": [1.0, None], "proposal_models": ["a", "b"]},
    ),
    "texts that are missing as NaN": (
        {"query": "How many pails?", "proposals": ["5", "6"], "aggregation": math.nan, "reference": math.nan, "source": math.nan}, {},
    ),
    "Alpaca's output is the reference": ({"query": "How many pails?", "proposals": ["5", "6"], "output": "Six."}, {"reference": "Six."}),
    "a reference of its own goes before it": (
        {"query": "How many pails?", "proposals": ["5", "6"], "output": "Six.", "reference": "6"},
        {"reference": "6", "meta": {"output": "Six."}},
    ),
    "an answer at the end is the reference": ({"messages": [USER, ASSISTANT], "proposals": ["5", "6"]}, {"reference": "Six."}),
    "meta as JSON text": ({"query": "How many pails?", "proposals": ["5", "6"], "meta": '{"a": [1]}'}, {"meta": {"a": [1]}}),
}  # fmt: skip


@pytest.mark.parametrize(("row", "fields"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_layouts(row, fields):
    before = copy.deepcopy(row)
    assert record_from_row(row) == record(**fields)
    assert row == before  # never changed


COLUMNS = {
    "named columns": (
        {"q": "How many pails?", "drafts": ["5", "6"], "best": "Six.", "gold": "6", "set": "x", "key": 7},
        {"messages": "q", "proposals": "drafts", "aggregation": "best", "reference": "gold", "source": "set", "id": "key"},
        {"id": "7", "aggregation": "Six.", "reference": "6", "source": "x"},
    ),
    "system from a column": (
        {"query": "How many pails?", "proposals": ["5", "6"], "rules": "Be brief."},
        {"system": "rules"},
        {"id": "81f3db261a69d716", "messages": [SYSTEM, USER]},
    ),
    "an empty system column is none": (
        {"query": "How many pails?", "proposals": ["5", "6"], "rules": ""},
        {"system": "rules"},
        {},
    ),
    "input and history from columns": (
        {"ask": "How many", "more": "pails?", "old": [["How many pails?", "Six."]], "proposals": ["5", "6"]},
        {"messages": "ask", "input": "more", "history": "old"},
        {"id": "0c9f5a297f75f0a4", "messages": [USER, ASSISTANT, {"role": "user", "content": "How many\npails?"}]},
    ),
    "a column that is not to be asked": (
        {"query": "How many pails?", "context": "Of water.", "image": "a.png", "proposals": ["5", "6"]},
        {"ignore": "context,image"},
        {"meta": {"context": "Of water.", "image": "a.png"}},
    ),
    "Alpaca's output as the aggregation": (
        {"instruction": "How many pails?", "proposals": ["5", "6"], "output": "Six."},
        {"aggregation": "output"},
        {"aggregation": "Six."},
    ),
    "query is another word for messages": (
        {"ask": "How many pails?", "proposals": ["5", "6"]},
        {"query": "ask"},
        {},
    ),
    "a usual name that is not asked for goes to meta": (
        {"prompt": "How many pails?", "query": "?", "proposals": ["5", "6"]},
        {"messages": "prompt"},
        {"meta": {"query": "?"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "names", "fields"), COLUMNS.values(), ids=COLUMNS.keys())
def test_columns_of_other_names(row, names, fields):
    before = copy.deepcopy(row)
    assert record_from_row(row, Columns.from_mapping(names)) == record(**fields)
    assert row == before


def messages(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


REFUSED = {
    "no object": ([1], "row: expected an object, got list [1]"),
    "null": (None, "row: expected an object, got nothing"),
    "no query": ({"proposals": ["a"]}, "messages: missing; expected one of messages, conversations, conversation, query, instruction, prompt, question, turns, input; the row has: proposals; name another: --column query=NAME"),
    "query a number": ({"query": 3}, "query: expected a text or a list of messages, got int 3"),
    "query an object": ({"query": USER}, "query: expected a text or a list of messages, got dict {'content': 'How many pails?', 'role': 'user'}"),
    "no messages": ({"messages": []}, "messages: expected a text or a list of messages, got list []"),
    "blank query": ({"query": " \n"}, "query: the query is empty"),
    "blank last turn": ({"messages": messages("q", "a", "")}, "messages: the query is empty"),
    "message a text": ({"messages": ["q"]}, "messages[0]: expected an object with role and content, got str 'q'"),
    "content null": ({"messages": [{"role": "user"}]}, "messages[0].content: expected a text, got nothing"),
    "content parts": ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]: only text can be asked, got int 1"),
    "unknown role": ({"messages": [{"role": "tool", "content": "q"}]}, "messages[0].role: expected 'user', got 'tool'"),
    "role an object": ({"messages": [{"role": {}, "content": "q"}]}, "messages[0].role: expected 'user', got {}"),
    "system later": ({"messages": [USER, SYSTEM]}, "messages[1].role: expected 'assistant', got 'system'"),
    "two queries": ({"messages": [USER, USER]}, "messages[1].role: expected 'assistant', got 'user'"),
    "answer first": ({"messages": [SYSTEM, ASSISTANT]}, "messages[1].role: expected 'user', got 'assistant'"),
    "system only": ({"messages": [SYSTEM]}, "messages: the last message must be the user's, got 'system'"),
    "proposals a text": ({"query": "q", "proposals": "a"}, "proposals: expected a list, got str 'a'"),
    "proposal without text": ({"query": "q", "responses": [{"model": "m"}]}, "responses[0]: expected a text, or an object with response or text or content or output, got dict {'model': 'm'}"),
    "score a text": ({"query": "q", "responses": [{"text": "a", "score": "high"}]}, "responses[0].score: expected a number, got str 'high'"),
    "score true": ({"query": "q", "responses": [{"text": "a", "score": True}]}, "responses[0].score: expected a number, got bool True"),
    "model a number": ({"query": "q", "responses": [{"text": "a", "model": 1}]}, "responses[0].model: expected a text, got int 1"),
    "drafts as lists of texts": ({"query": "q", "proposals": [["a", "b"]]}, "proposals[0]: expected a text or a list of parts, got list ['a', 'b']"),
    "too few scores": ({"query": "q", "proposals": ["a", "b"], "scores": [1]}, "scores: expected 2 entries, one per proposal, got 1"),
    "scores of texts": ({"query": "q", "proposals": ["a"], "scores": ["A"]}, "scores[0]: expected int or float, got str 'A'"),
    "models of numbers": ({"query": "q", "proposals": ["a"], "proposal_models": [1]}, "proposal_models[0]: expected str, got int 1"),
    "id a fraction": ({"id": 1.5, "query": "q"}, "id: expected a text or a whole number, got float 1.5"),
    "id true": ({"id": True, "query": "q"}, "id: expected a text or a whole number, got bool True"),
    "aggregation a list": ({"query": "q", "aggregation": ["a"]}, "aggregation: expected a text, got list ['a']"),
}  # fmt: skip


@pytest.mark.parametrize("score", [0.5, "0.5", " 5e-1", Decimal("0.5")])
def test_a_score_is_a_number_in_whatever_a_data_frame_has_it(score):
    for row in ({"proposals": ["a", "b"], "scores": [score, "nan"]},
                {"responses": [{"text": "a", "score": score}, {"text": "b", "score": "nan"}]}):  # fmt: skip
        assert record_from_row({"query": "q", **row}).scores == [0.5, None]


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_error_names_the_field_and_what_was_got(row, message):
    before = copy.deepcopy(row)
    with pytest.raises(RecordError) as caught:
        record_from_row(row)
    assert str(caught.value) == message
    assert row == before


def test_a_missing_column_shows_what_the_row_has():
    row = {"query": "q", **{f"c{i}": i for i in range(20)}}
    with pytest.raises(RecordError) as caught:
        record_from_row(row, Columns(proposals="drafts"))
    shown = ", ".join(list(row)[:12])
    assert str(caught.value) == f"drafts: no such column; the row has: {shown}, ..."


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x" * 10**6], {"k" * 10**6: 1}, list(range(10**5)), deep(900)]
)
def test_a_message_stays_short_whatever_the_value(value):
    with pytest.raises(RecordError) as caught:
        record_from_row({"query": {"is": value}})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"proposal": "x"}, "columns: unknown field 'proposal'; did you mean 'proposals'?"),
        ({"qery": "x"}, "columns: unknown field 'qery'; did you mean 'query'?"),
        (
            {"query": "a", "messages": "b"},
            "columns: query and messages are one field; give one of them",
        ),
        ({"proposals": 3}, "columns.proposals: expected a column name, got 3"),
        ({"proposals": ""}, "columns.proposals: expected a column name, got ''"),
    ],
)
def test_unknown_columns_are_refused(names, message):
    with pytest.raises(UsageError) as caught:
        Columns.from_mapping(names)
    assert str(caught.value) == message


def test_whatever_python_has_for_a_list_is_one():
    parts = [{"type": "text", "text": "How many?"}]
    row = {"messages": [USER | {"content": parts}], "proposals": ["5", "6"], "scores": [1, 2]}
    as_tuples = {"messages": (USER | {"content": (*parts,)},), "proposals": ("5", "6")}
    assert record_from_row(as_tuples | {"scores": (1, 2)}) == record_from_row(row)


TURNS = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
WITH_THOUGHT = [TURNS[0], TURNS[1] | {"reasoning": "2 + 3"}]
LEFT = {
    "an answer with its thought": ({"messages": WITH_THOUGHT}, 1),
    "as JSON text": ({"messages": str(WITH_THOUGHT).replace("'", '"')}, 1),
    "as a list of each key": (
        {
            "messages": {
                "role": ["user", "assistant"],
                "content": ["q", "5"],
                "reasoning": ["", "2"],
            }
        },
        1,
    ),
    "a blank thought": ({"messages": [TURNS[0], TURNS[1] | {"reasoning": " "}]}, 0),
    "an earlier answer's": ({"messages": [*WITH_THOUGHT, TURNS[0]]}, 0),
    "the query's": ({"messages": [TURNS[0] | {"reasoning": "2 + 3"}, TURNS[1]]}, 0),
    "a column that is not read": ({"query": "q", "reasoning": "2", "other": WITH_THOUGHT}, 0),
    "drafts with theirs": ({"query": "q", "proposals": ["4", *2 * WITH_THOUGHT[1:]]}, 2),
}


@pytest.mark.parametrize(("row", "count"), LEFT.values(), ids=LEFT)
def test_an_answer_that_is_taken_without_its_thought_is_noted(row, count):
    notes = Counter()
    assert record_from_row(row, notes=notes) == record_from_row(row)
    assert notes == ({"answers taken without their reasoning": count} if count else {})


def test_ids_never_change():
    # Files already written hold these ids: a change here breaks resuming and joins.
    assert content_id([USER], ["5", "6"]) == ID
    assert content_id([USER], ["6", "5"]) == "768ee907ae51bff4"
    assert content_id([SYSTEM, {"role": "user", "content": "六个 😀"}], []) == "6a4db0d404452ae6"
    assert record_from_row({"query": "How many pails?", "proposals": ["5", "6"], "x": 1}).id == ID


def test_a_record_writes_every_key_in_order():
    assert list(record(meta={"a": {"é": [None]}}).to_row().items()) == [
        ("id", ID),
        ("messages", [USER]),
        ("proposals", ["5", "6"]),
        ("aggregation", None),
        ("reference", None),
        ("source", ""),
        ("scores", None),
        ("proposal_models", None),
        ("aggregation_thought", None),
        ("meta", '{"a":{"é":[null]}}'),
    ]


text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=8,
)  # fmt: skip


@st.composite
def records(draw):
    turns = draw(
        st.lists(text, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1 and t[-1].strip())
    )
    proposals = draw(st.lists(text, max_size=4))
    count = len(proposals)
    optional = st.none() | text
    return Record(
        id=draw(text),
        messages=[SYSTEM, *messages(*turns)] if draw(st.booleans()) else messages(*turns),
        proposals=proposals,
        aggregation=draw(optional),
        reference=draw(optional),
        source=draw(text),
        scores=draw(
            st.none()
            | st.lists(
                st.none() | st.floats(allow_nan=False, allow_infinity=False),
                min_size=count,
                max_size=count,
            )
        ),
        proposal_models=draw(st.none() | st.lists(optional, min_size=count, max_size=count)),
        meta=draw(st.dictionaries(text, json_values, max_size=3)),
    )


@given(records())
def test_record_to_row_to_record(record):
    again = record_from_row(record.to_row())
    # Without proposals, an empty list and none say the same.
    same = {field: getattr(record, field) or None for field in ("scores", "proposal_models")}
    assert {field: getattr(again, field) or None for field in same} == same
    for field in ("id", "messages", "proposals", "aggregation", "reference", "source", "meta"):
        assert getattr(again, field) == getattr(record, field)

"""UltraFeedback in every layout and with every quirk it is published with.

Run: pytest tests/convert/test_convert_ultrafeedback.py
"""

import copy
from collections import Counter

import pytest

from aft_factory.convert.ultrafeedback import is_truthful_qa, read_ultrafeedback
from aft_factory.errors import RecordError
from aft_factory.records.columns import Columns
from aft_factory.records.record import Record

USER = {"role": "user", "content": "q"}


def read(row):
    """Return the record and what was noted, after checking that the row is as before."""
    before, notes = copy.deepcopy(row), Counter()
    record = read_ultrafeedback(row, Columns(), notes)
    assert row == before
    return record, dict(notes)


def completions(*responses, **fields):
    return {
        "instruction": "q",
        "completions": [{"response": r} if isinstance(r, str) else r for r in responses],
    } | fields


def expected(proposals, reference=None, scores=None, **fields):
    defaults = {
        "id": "",
        "messages": [USER],
        "proposals": proposals,
        "reference": reference,
        "scores": scores,
    }
    return Record(**defaults | fields)


def rated(response, **ratings):
    annotations = {
        aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in ratings.items()
    }
    return {"response": response, "annotations": annotations}


SCORES = {
    "overall_score": ({"overall_score": 8.5, "fine-grained_score": 2.0}, 8.5, {}),
    "overall_score as a text": ({"overall_score": "7.5"}, 7.5, {}),
    "overall_score cut at the dot": ({"overall_score": "7"}, 7.0, {}),
    "overall_score out of ten": ({"overall_score": " 8/10 "}, 8.0, {}),
    "overall_score N/A": ({"overall_score": "N/A", "fine-grained_score": 3.5}, 7.0, {}),
    "overall_score null": ({"overall_score": None, "fine-grained_score": "3.5"}, 7.0, {}),
    "overall_score true is no number": ({"overall_score": True}, None, {}),
    "overall_score NaN": ({"overall_score": float("nan"), "fine-grained_score": 1}, 2.0, {}),
    "overall_score infinite": ({"overall_score": float("inf"), "fine-grained_score": 1}, 2.0, {}),
    "overall_score infinite below": ({"overall_score": float("-inf")}, None, {}),
    "overall_score nan as a text": ({"overall_score": "nan"}, None, {}),
    "overall_score inf as a text": ({"overall_score": "inf"}, None, {}),
    "overall_score too large as a text": ({"overall_score": "9" * 400}, None, {}),
    "overall_score too large": ({"overall_score": 10**400}, None, {}),
    "fine-grained_score NaN": ({"fine-grained_score": float("nan"), **rated("a", honesty="3")}, 6.0, {}),
    "a rating that is infinite": (rated("a", helpfulness=float("inf"), honesty="3"), 6.0, {}),
    "fine-grained_score null: the ratings": (
        {"fine-grained_score": None, **rated("a", helpfulness="4", honesty="3")}, 7.0, {},
    ),
    "10 for 1": ({"overall_score": 10, "fine-grained_score": 2.0}, 1.0, {"overall_score 10 for 1 mended": 1}),
    "10 for 1 by its ratings": (
        {"overall_score": "10", **rated("a", helpfulness="1", honesty="N/A")}, 1.0, {"overall_score 10 for 1 mended": 1},
    ),
    "10 in doubt": (
        {"overall_score": 10.0, "fine-grained_score": 3.25}, 6.5, {"overall_score 10 in doubt, twice the mean rating taken": 1},
    ),
    "10 in doubt up to 4": (
        {"overall_score": 10, "fine-grained_score": 4}, 8.0, {"overall_score 10 in doubt, twice the mean rating taken": 1},
    ),
    "10 that is a 10": ({"overall_score": 10, "fine-grained_score": 4.25}, 10.0, {}),
    "10 and no rating": ({"overall_score": 10, "fine-grained_score": None}, 10.0, {}),
    "ratings as an object": (rated("a", instruction_following="5", honesty="4", truthfulness="4", helpfulness="4"), 8.5, {}),
    "ratings in a list of one": (
        {"annotations": {"helpfulness": [{"Rating": "4"}], "honesty": [{"Rating": "2"}]}}, 6.0, {},
    ),
    "ratings as numbers": (rated("a", helpfulness=4, honesty=5.0), 9.0, {}),
    "ratings N/A and null are left out of the mean": (
        rated("a", helpfulness="4", honesty="N/A", truthfulness=None, instruction_following="3"), 7.0, {},
    ),
    "only N/A": (rated("a", helpfulness="N/A"), None, {}),
    "no annotations": ({"annotations": {}}, None, {}),
    "annotations null": ({"annotations": None}, None, {}),
    "annotations a list": ({"annotations": [{"Rating": "4"}]}, None, {}),
    "annotations of other kinds": ({"annotations": {"helpfulness": None, "honesty": [], "truthfulness": "5"}}, None, {}),
    "nothing": ({}, None, {}),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "score", "notes"), SCORES.values(), ids=SCORES.keys())
def test_score_of_a_completion(fields, score, notes):
    record, noted = read(completions({"response": "a"} | fields))
    assert record == expected(
        ["a"], None if score is None else "a", None if score is None else [score]
    )
    assert noted == notes


def scored(response, score, model=None):
    return {"response": response, "overall_score": score, "model": model}


COMPLETIONS = {
    "the highest score is the reference": (
        completions(scored("a", 3, "m1"), scored("b", 9, "m2"), scored("c", 8, "m3")),
        expected(["a", "b", "c"], "b", [3.0, 9.0, 8.0], proposal_models=["m1", "m2", "m3"]),
        {},
    ),
    "of equals the first": (
        completions(scored("a", 3), scored("b", 9), scored("c", 9)),
        expected(["a", "b", "c"], "b", [3.0, 9.0, 9.0]),
        {},
    ),
    "no score, no reference": (completions("a", "b"), expected(["a", "b"]), {}),
    "any score beats none": (
        completions("a", scored("b", -3)),
        expected(["a", "b"], "b", [None, -3.0]),
        {},
    ),
    "empty and null responses": (
        completions("", {"response": None}, {}, " \n", "a"),
        expected(["a"]),
        {"empty responses left out": 4},
    ),
    "placeholders": (
        completions("N/A", "None", "a", "N/A."),
        expected(["a", "N/A."]),
        {"placeholder responses left out": 2},
    ),
    "a placeholder is no reference": (
        completions(scored("N/A", 9), scored("a", 2)),
        expected(["a"], "a", [2.0]),
        {"placeholder responses left out": 1},
    ),
    "duplicates keep the first place and the best score": (
        completions(scored("a", 3, "m1"), scored("b", 4, "m2"), scored("a", 5, "m3")),
        expected(["a", "b"], "a", [5.0, 4.0], proposal_models=["m3", "m2"]),
        {"duplicate responses left out": 1},
    ),
    "a duplicate of equal score changes nothing": (
        completions(scored("a", 3, "m1"), scored("a", 3, "m2")),
        expected(["a"], "a", [3.0], proposal_models=["m1"]),
        {"duplicate responses left out": 1},
    ),
    "a duplicate without score changes nothing": (
        completions(scored("a", -3, "m1"), scored("a", None, "m2")),
        expected(["a"], "a", [-3.0], proposal_models=["m1"]),
        {"duplicate responses left out": 1},
    ),
    "responses that differ in white space are two": (completions("a", "a "), expected(["a", "a "]), {}),
    "one completion": (completions("a"), expected(["a"]), {}),
    "a model that is no text": (completions({"response": "a", "model": 7}), expected(["a"]), {}),
    "id, source and an aggregation that is there": (
        completions("a", id=7, source="flan_v2_niv2", aggregation="A."),
        expected(["a"], id="7", source="flan_v2_niv2", aggregation="A."),
        {},
    ),
    "a source that is no text": (completions("a", source=["x"]), expected(["a"]), {}),
    "no completions but a pair": (
        {"completions": None, "prompt": "q", "chosen": "a", "rejected": "b"},
        expected(["a", "b"], "a"),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "record", "notes"), COMPLETIONS.values(), ids=COMPLETIONS.keys())
def test_completions(row, record, notes):
    assert read(row) == (record, notes)


def chat(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


SYSTEM = {"role": "system", "content": "Be brief."}
PAIRS = {
    "texts": ({"prompt": "q", "chosen": "a", "rejected": "b"}, expected(["a", "b"], "a"), {}),
    "texts with scores in metadata": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "metadata": {"score_chosen": 8.0, "score_rejected": 1.0}},
        expected(["a", "b"], "a", [8.0, 1.0]),
        {},
    ),
    "HuggingFaceH4: message lists": (
        {"prompt": "q", "prompt_id": "f0e1", "chosen": chat("q", "a"), "rejected": chat("q", "b"),
         "messages": chat("q", "a"), "score_chosen": 8.5, "score_rejected": 4.0},
        expected(["a", "b"], "a", [8.5, 4.0], id="f0e1"),
        {},
    ),
    "HuggingFaceH4: no second response": (
        {"prompt": "q", "chosen": chat("q", "a"), "rejected": chat("q", "N/A"), "score_chosen": 8.5, "score_rejected": 0.0},
        expected(["a"], "a", [8.5]),
        {"placeholder responses left out": 1},
    ),
    "trl-lib: no prompt column": (
        {"chosen": chat("q", "a"), "rejected": chat("q", "b"), "score_chosen": 8.5, "score_rejected": 8.5},
        expected(["a", "b"], "a", [8.5, 8.5]),
        {},
    ),
    "argilla: hyphens": (
        {"instruction": "q", "chosen": chat("q", "a"), "rejected": chat("q", "b"), "chosen-rating": 4.75,
         "rejected-rating": 2, "chosen-model": "gpt-4", "rejected-model": "alpaca-7b", "source": "evol_instruct"},
        expected(["a", "b"], "a", [4.75, 2.0], proposal_models=["gpt-4", "alpaca-7b"], source="evol_instruct"),
        {},
    ),
    "other score names": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": "3", "rejected_rating": 2},
        expected(["a", "b"], "a", [3.0, 2.0]),
        {},
    ),
    "a system message": (
        {"prompt": "q", "chosen": [SYSTEM, *chat("q", "a")], "rejected": [SYSTEM, *chat("q", "b")]},
        expected(["a", "b"], "a", messages=[SYSTEM, USER]),
        {},
    ),
    "several turns, the prompt is the last": (
        {"prompt": "q", "chosen": chat("p", "o", "q", "a"), "rejected": chat("p", "o", "q", "b")},
        expected(["a", "b"], "a", messages=chat("p", "o", "q")),
        {},
    ),
    "several turns, the prompt is the first": (
        {"prompt": "p", "chosen": chat("p", "o", "q", "a"), "rejected": chat("p", "o", "q", "b")},
        expected(["a", "b"], "a", messages=chat("p", "o", "q")),
        {},
    ),
    "answers as messages, prompt as messages": (
        {"prompt": [SYSTEM, USER], "chosen": chat("a", first="assistant"), "rejected": chat("b", first="assistant")},
        expected(["a", "b"], "a", messages=[SYSTEM, USER]),
        {},
    ),
    "equal scores: the chosen one": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7, "score_rejected": 7},
        expected(["a", "b"], "a", [7.0, 7.0]),
        {},
    ),
    "chosen, even with the lower score": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 7},
        expected(["a", "b"], "a", [1.0, 7.0]),
        {},
    ),
    "negative scores": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": -0.754, "score_rejected": -2},
        expected(["a", "b"], "a", [-0.754, -2.0]),
        {},
    ),
    "chosen and rejected the same": (
        {"prompt": "q", "chosen": "a", "rejected": "a", "score_chosen": 7, "score_rejected": 7},
        expected(["a"], "a", [7.0]),
        {"duplicate responses left out": 1},
    ),
    "an empty rejected": (
        {"prompt": "q", "chosen": "a", "rejected": "", "score_chosen": 7, "score_rejected": 1},
        expected(["a"], "a", [7.0]),
        {"empty responses left out": 1},
    ),
    "no rejected": ({"prompt": "q", "chosen": "a"}, expected(["a"], "a"), {"empty responses left out": 1}),
    "an empty chosen is no reference": (
        {"prompt": "q", "chosen": "", "rejected": "b", "score_chosen": 7, "score_rejected": 1},
        expected(["b"], None, [1.0]),
        {"empty responses left out": 1},
    ),
    "white space of the prompt stays": (
        {"prompt": " q\n", "chosen": "a", "rejected": "b"},
        expected(["a", "b"], "a", messages=[{"role": "user", "content": " q\n"}]),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "record", "notes"), PAIRS.values(), ids=PAIRS.keys())
def test_pairs(row, record, notes):
    assert read(row) == (record, notes)


REFUSED = {
    "no object": (["x"], "row: expected an object, got list ['x']"),
    "nothing known": ({"a": 1}, "completions: missing, and no 'chosen' either; the row has: a"),
    "gen split: messages alone": ({"prompt": "q", "messages": [USER]}, "completions: missing, and no 'chosen' either; the row has: prompt, messages"),
    "prompts stage: no completions yet": (completions(), "completions: expected a list with at least one completion"),
    "completions a text": ({"instruction": "q", "completions": "a"}, "completions: expected a list with at least one completion"),
    "completion a text": ({"instruction": "q", "completions": ["a"]}, "completions[0]: expected an object, got str 'a'"),
    "response a list": (completions({"response": ["a"]}), "completions[0].response: expected a text, got list ['a']"),
    "no instruction": ({"completions": [{"response": "a"}]}, "messages: missing; expected one of messages, conversations, conversation, query, instruction, prompt, question, turns, input; the row has: completions; name another: --column query=NAME"),
    "blank instruction": (completions("a", instruction=" "), "instruction: the query is empty"),
    "no usable completion": (completions("", "N/A"), "completions: no usable response"),
    "no usable answer": ({"prompt": "q", "chosen": "N/A", "rejected": ""}, "chosen: no usable response"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "messages: missing; expected one of messages, conversations, conversation, query, instruction, prompt, question, turns, input; the row has: chosen, rejected; name another: --column query=NAME"),
    "answer without question": ({"chosen": chat("a", first="assistant"), "rejected": "b"}, "messages: missing; expected one of messages, conversations, conversation, query, instruction, prompt, question, turns, input; the row has: chosen, rejected; name another: --column query=NAME"),
    "chosen ends with the user": ({"chosen": [USER], "rejected": "b"}, "chosen[0]: expected the assistant's message with a text"),
    "chosen of texts": ({"prompt": "q", "chosen": ["q", {"role": "assistant", "content": "a"}]}, "chosen[0]: expected an object with role and content, got str 'q'"),
    "chosen a number": ({"prompt": "q", "chosen": 3}, "chosen: expected a text or a list of messages, got int 3"),
    "rejected an empty list": ({"prompt": "q", "chosen": "a", "rejected": []}, "rejected: expected a text or a list of messages, got list []"),
    "id an object": (completions("a", id={"x": 1}), "id: expected a text or a whole number, got dict {'x': 1}"),
    "prompt_id true": (completions("a", prompt_id=True), "prompt_id: expected a text or a whole number, got bool True"),
    "aggregation a list": (completions("a", aggregation=["A"]), "aggregation: expected a text, got list ['A']"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_error_names_the_field(row, message):
    with pytest.raises(RecordError) as caught:
        read(row)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"source": "truthful_qa"}, True),
        ({"source": "flan", "correct_answers": ["Nothing happens"]}, True),
        ({"source": "flan", "correct_answers": ["None"]}, False),
        ({"source": "flan", "correct_answers": []}, False),
        ({"source": "flan", "correct_answers": "None"}, False),
        ({"source": "flan", "correct_answers": None}, False),
        ({}, False),
        ([], False),
    ],
)
def test_rows_from_truthful_qa_are_known_by_source_or_answers(row, answer):
    assert is_truthful_qa(row) is answer


# From here on: real rows, as published.


def test_readme_rows_in_three_layouts(real):
    final, older, oldest = real.rows("ultrafeedback_readme_rows.jsonl")
    record, notes = read(final)
    responses = [completion["response"] for completion in final["completions"]]
    assert record == Record(
        id=record.id,
        messages=[{"role": "user", "content": final["instruction"]}],
        proposals=responses,
        reference=responses[0],  # the only one with ratings: 2, 4 (or N/A), ...
        source="sharegpt",
        scores=[record.scores[0], None, None, None],
        proposal_models=["falcon-40b-instruct", "gpt-4", "starchat", "wizardlm-7b"],
    )
    ratings = [
        int(a["Rating"])
        for a in final["completions"][0]["annotations"].values()
        if a["Rating"] != "N/A"
    ]
    assert record.scores[0] == 2 * sum(ratings) / len(ratings)
    assert notes == {}

    again, _ = read(older)  # the same row, annotations as lists, and with an id
    assert older["id"] == again.id == "D2TC9GP_0"
    assert (again.messages, again.proposals, again.reference) == (
        record.messages,
        responses,
        record.reference,
    )

    record, _ = read(oldest)
    assert record.source == "flan_v2_niv2"
    assert record.proposals == [oldest["completions"][0]["response"]]
    assert record.reference == record.proposals[0]
    assert 2 <= record.scores[0] <= 10


def test_binarized_pairs(real):
    rows = real.rows("ultrafeedback_binarized_pairs.jsonl")
    notes: Counter[str] = Counter()
    records = [read_ultrafeedback(row, Columns(), notes) for row in rows]
    assert len(records) == real.either(sample=20, whole=1000)
    assert notes == {"duplicate responses left out": 4, "empty responses left out": 2}
    for row, record in zip(rows, records, strict=True):
        assert record.messages == [{"role": "user", "content": row["prompt"]}]
        assert record.reference == (row["chosen"] or None)
        both = [row["chosen"], row["rejected"]]
        assert record.proposals == [text for text in dict.fromkeys(both) if text]
        if len(record.proposals) == 2:
            assert record.scores == [
                row["metadata"]["score_chosen"],
                row["metadata"]["score_rejected"],
            ]
    assert len({record.id for record in records}) == len(records)


def test_active_pairs_with_negative_scores(real):
    row = real.rows("ultrafeedback_active_pairs.jsonl")[0]
    assert read(row) == (
        Record(
            id="prompt_0",
            messages=[{"role": "user", "content": row["prompt"]}],
            proposals=[row["chosen"], row["rejected"]],
            reference=row["chosen"],
            source="---",
            scores=[0.809, -0.754],
        ),
        {},
    )


def test_unannotated_completions_give_no_reference(real):
    for row in real.rows("ultrafeedback_unannotated_completions.jsonl"):
        record, _ = read(row)
        assert record.proposals == list(
            dict.fromkeys(c["response"] for c in row["completions"] if c["response"].strip())
        )
        assert (record.reference, record.scores) == (None, None)
        assert set(record.proposal_models) <= set(row["models"])


def test_prompts_without_completions_are_refused_and_known_as_truthful_qa(real):
    rows = real.rows("ultrafeedback_truthful_qa_inputs.jsonl")
    assert all(is_truthful_qa(row) for row in rows)
    for row in rows:
        with pytest.raises(
            RecordError, match="completions: expected a list with at least one completion"
        ):
            read(row)


def test_readme_rows_are_not_from_truthful_qa(real):
    assert not any(map(is_truthful_qa, real.rows("ultrafeedback_readme_rows.jsonl")))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_an_answer_that_is_taken_without_its_thought_is_noted(name):
    def answer(text, thought):
        return [USER, {"role": "assistant", "content": text, name: thought}]

    row = {"prompt": "q", "chosen": answer("a", "why a"), "rejected": answer("b", "why b")}
    assert read(row)[1] == {f"answers taken without their {name}": 2}
    assert read(row | {"rejected": answer("b", " ")})[1] == {
        f"answers taken without their {name}": 1
    }
    assert read(row | {"chosen": "a", "rejected": "b", name: "why"})[1] == {}


def test_a_response_that_is_missing_as_nan_is_blank_and_other_columns_are_kept():
    row = {"instruction": "Q", "completions": [{"response": float("nan")}, {"response": "a"}], "facts": "F"}  # fmt: skip
    notes = Counter()
    record = read_ultrafeedback(row, Columns(), notes)
    assert (record.proposals, record.meta) == (["a"], {"facts": "F"})
    assert notes == {"empty responses left out": 1}

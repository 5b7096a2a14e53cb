"""Quality gates of aggregations. Run: pytest tests/aggregate/test_gates.py"""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.aggregate.gates import GATES, check, overlap

QUERY = "How many pails does the farmer fill?"
GOOD = "There are six pails: five in the morning and one more in the evening."
LONG = " ".join(f"word{i}" for i in range(100))


def gates(aggregation, proposals=(), finish_reason="stop", query=QUERY, **options):
    return check(aggregation, proposals, finish_reason, query=query, **options)


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_no_text_is_empty(text):
    assert gates(text, ["five", "six"]) == ["empty"]


@pytest.mark.parametrize(
    ("finish_reason", "expected"),
    [
        ("stop", []),
        (None, []),
        ("eos_token", []),
        ("eos", []),
        ("end_turn", []),
        ("length", ["truncated"]),
        ("max_tokens", ["truncated"]),
        ("MAX_TOKENS", ["truncated"]),
        ("content_filter", ["truncated"]),
    ],
)
def test_what_was_cut_off_is_truncated(finish_reason, expected):
    assert gates(GOOD, finish_reason=finish_reason) == expected


def test_all_failures_are_named_in_the_order_of_gates():
    text = "I cannot assist with the provided responses. " + LONG
    assert gates(text, [text, "five", "six"], "length") == list(GATES[1:])


# --- refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with these.",
        "I’m sorry, but I can’t write them.",
        "As an AI language model, I cannot help you with this.",
        "I'm sorry, but as an AI assistant, I am unable to generate such a text.",
        "I apologize, but I cannot fulfill your request.",
        "I cannot fulfill your request. I'm just an AI.",
        "I can't provide information on how to do that.",
        "Unfortunately, I do not feel comfortable with it.",
        "I can't write that, so I must decline.",
        "  **I'm sorry, but I can't assist with that request.**",
    ],
)
def test_a_text_that_opens_with_a_refusal_is_one(text):
    assert gates(text) == ["refusal"]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "I'm sorry to hear about your friend's loss. I can't provide what you lost, but listen.",
        "As an AI, I don't have personal experiences. Still, here is one way to see it.",
        "I cannot predict the future, but the signs are good.",
        "I'm unable to create a table directly here, but I can list the numbers.",
        "I can't help the way I feel about the farmer",
        "I can't write that many words in one message, so here's part one: Once upon a time",
        "I cannot write all of it at once; here is the first part.",
        "The clerk said: I'm sorry, but I can't assist with that.",
        "Unfortunately, many pails leak.",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(text):
    assert gates(text) == []


def test_a_refusal_is_an_answer_where_half_of_the_proposals_refuse():
    no = "I'm sorry, but I can't assist with that request."
    assert gates(no, [no, "Sure: six", "I cannot condone this.", "Six"]) == []
    assert gates(no, [no, "Sure: six", "Six"]) == ["refusal"]
    assert gates(no, []) == ["refusal"]


# --- copy


def test_copy_is_the_share_of_five_grams_in_one_proposal():
    words = LONG.split()
    assert overlap(LONG, ["", LONG]) == 1.0
    assert overlap(LONG, [" ".join(words[:52])]) == 48 / 96
    assert overlap(LONG, [" ".join(words[:52]), " ".join(words[48:])]) == 48 / 96  # not together
    assert overlap(LONG, [" ".join(reversed(words))]) == 0.0
    assert overlap(LONG, []) == 0.0
    assert overlap("; ".join(words).upper(), [LONG]) == 1.0


def test_a_copy_reaches_the_threshold():
    words = LONG.split()
    mostly = " ".join(words[:90])
    assert gates(LONG, ["other", mostly], copy_threshold=86 / 96) == ["copy"]
    assert gates(LONG, ["other", mostly], copy_threshold=87 / 96) == []
    assert gates(LONG, ["other", LONG]) == ["copy"]


def test_a_shortened_proposal_is_a_copy_and_a_lengthened_one_is_not():
    more = " ".join(f"new{i}" for i in range(100))
    assert gates(LONG, [LONG + " " + more]) == ["copy"]
    assert gates(LONG + " " + more, [LONG]) == []


def test_short_texts_may_be_equal_to_a_proposal():
    words = LONG.split()
    assert gates(" ".join(words[:49]), [LONG]) == []
    assert gates(" ".join(words[:50]), [LONG]) == ["copy"]


def test_chinese_is_counted_by_characters():
    text = "".join(chr(0x4E00 + i) for i in range(60))
    assert gates(text, [text]) == ["copy"]
    assert gates(text, [text[::-1]]) == []


def test_time_grows_with_the_length_and_not_faster():
    texts = [" ".join(f"w{i * k % 19991}" for i in range(40_000)) for k in range(1, 7)]
    start = time.process_time()
    assert gates(texts[0], texts[1:]) == []
    for part in ("the all your ", "responses of the other ", "after the responses, ", "i'm sorry "):
        gates(part * 10_000, [])
    # 0.3 s; with a quadratic step it would be minutes.
    assert time.process_time() - start < 20


# --- mentions_responses


@pytest.mark.parametrize(
    "text",
    [
        "Based on the provided responses, there are six pails.",
        "After reviewing the responses, it is evident that there are six.",
        "Considering the responses and synthesizing them, six.",
        "**Based on a comprehensive synthesis of the proposals**: six",
        "There are six pails. Aggregating the drafts, it is six.",
        "Six.\n\nThese provided model answers are wrong.",
    ],
)
def test_a_text_that_speaks_of_the_responses_it_was_given(text):
    assert gates(text) == ["mentions_responses"]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Actively listen to the responses and take notes.",
        "The responses given by patients to the drug vary.",
        "The server sends response 200 and then response 4.2.",
        "4. incident response 5. security audits",
        "As an AI, my responses are based on patterns in data.",
        "Central banks and the regulatory responses to such crises.",
        "Write two drafts. The second draft is shorter.",
        "The tenders: proposals of three firms.",
        "Some of the proposals would raise taxes.",
        "All of the responses to the survey were positive.",
        "Each of the proposals received votes.",
    ],
)
def test_other_responses_are_not_meant(text):
    assert gates(text) == []


def test_a_query_about_responses_is_answered_with_them():
    text = "Of the provided responses, the second is better."
    assert gates(text) == ["mentions_responses"]
    assert gates(text, query="Which of the provided responses is better, five or six?") == []


@given(st.text(), st.lists(st.text()), st.sampled_from(["stop", "length", None]), st.text())
def test_any_text_can_be_checked(text, proposals, finish_reason, query):
    failed = check(text, proposals, finish_reason, query=query)
    assert failed == [gate for gate in GATES if gate in failed]
    assert ("truncated" in failed) == (finish_reason == "length")


# --- real answers


def test_real_answers_pass_and_aggregations_that_show_their_work_do_not(real):
    """No answer that saw no others speaks of them; of Together-MoA's aggregations, 5 of 605 do."""
    failed, total = Counter(), Counter()
    for row in real.rows("alpaca_eval_proposals.jsonl"):
        for answer in row["responses"]:
            total[answer["model"]] += 1
            for gate in gates(answer["response"], query=row["instruction"]):
                failed[answer["model"], gate] += 1
    mentions = {model: n for (model, gate), n in failed.items() if gate == "mentions_responses"}
    assert mentions == real.either(sample={}, whole={"Together-MoA": 5})
    # Nearly all of them are refusals of odd queries, most by two cautious models.
    refusals = {model: n for (model, gate), n in failed.items() if gate == "refusal"}
    cautious = sum(refusals.pop(model, 0) for model in ("claude-2", "llama-2-7b-chat-hf"))
    assert cautious + sum(refusals.values()) == real.either(sample=0, whole=34)
    assert max(refusals.values(), default=0) == real.either(sample=0, whole=3)
    empty = {key: n for key, n in failed.items() if key[1] == "empty"}
    assert empty == real.either(sample={}, whole={("text_davinci_003", "empty"): 2})
    assert sum(total.values()) == real.either(sample=80, whole=9073)


def test_real_answers_of_different_models_are_no_copies(real):
    copies = []
    for row in real.rows("alpaca_eval_proposals.jsonl")[::5]:
        *others, last = [r["response"] for r in row["responses"]]  # Together-MoA's is the last
        if "copy" in gates(last, others, query=row["instruction"]):
            copies.append(row["row"])
    assert copies == []


def test_other_real_answers_do_not_mention_responses(real):
    caught = [
        row[side][:200]
        for row in real.rows("ultrafeedback_binarized_pairs.jsonl")
        for side in ("chosen", "rejected")
        if "mentions_responses" in gates(row[side], query=row["prompt"])
    ]
    assert caught == []

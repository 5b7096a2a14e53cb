"""Final answers: where they are found, one text per value, votes. Run: pytest tests/test_answers.py"""

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shared_data import shared_rows

from aft_factory.answers import extract_number, is_correct, majority

FOUND = {
    "after the last mark": ("#### 5\nNo.\n#### 72\nThat is 3 more.", "72"),
    "after the mark, not in the box": (r"#### 72 and \boxed{5}", "72"),
    "after the mark, a fraction": ("#### 1/2 of 144", "0.5"),
    "after a mark in bold": ("#### **72**", "72"),
    "not in a numbered heading": ("#### 2. Add them\nThe total is 72", "72"),
    "not in a heading of words": ("#### Step 2\nThe total is 72\n\n", "72"),
    "in the last box": (r"\boxed{5}, no: \boxed{72}. Checked 3 times.", "72"),
    "in a box with nested braces": (r"\boxed{\text{so } x = 72 \text{ m}^{2}} 3", "72"),
    "in a box, not in the sentence": (r"The answer is 5, I mean \boxed{72}", "72"),
    "elsewhere, where the box has none": (r"It is 72, case \boxed{A}", "72"),
    "in a box that was cut off": (r"It is 5 \boxed{72", "72"),
    "nowhere in an empty box that was cut off": (r"So \boxed{", None),
    "after `answer is`": ("The answer is 72. I used 3 steps.", "72"),
    "after the last `answer is`": ("The answer is 5? No, the final answer is 72 in 3 steps.", "72"),
    "after `answer:` in bold": ("**Answer:** 72 apples, see page 3\nBye 4", "72"),
    "on the line after `answer:`": ("Answer:\n\n72 apples\n3", "72"),
    "behind the sum": ("So the answer is 8*9 = 72 apples, in 3 steps.", "72"),
    "in an earlier statement": ("The answer is 72.\nI hope the answer is clear. 3", "72"),
    "at the end": ("She has 5 + 67 = <<5+67=72>>72 apples.", "72"),
    "nowhere": ("I do not know.", None),
    "nowhere in nothing": ("", None),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_final_answer_is_found(name):
    text, answer = FOUND[name]
    assert extract_number(text) == answer


CANONICAL = {
    "1,234.50": "1234.5",
    "1,000,000": "1000000",
    "$72": "72",
    "-$3.50": "-3.5",
    "$-3": "-3",
    "72.": "72",
    "-3": "-3",
    "−3": "-3",
    "-0.0": "0",
    "007": "7",
    ".5": "0.5",
    "50%": "50",
    "1/2": "0.5",
    "-7/14": "-0.5",
    "2/6": "1/3",
    "72/1": "72",
    "2 1/2": "2.5",
    "1/0": "0",
    "10-3": "3",
    "pages 5-8": "8",
    "1, 2, 3": "3",
    r"\$1{,}234": "1234",
    r"\frac{1}{2}": "0.5",
    r"-2\dfrac{1}{3}": "-7/3",
    "٣": None,  # digits of other scripts are not read
}


@pytest.mark.parametrize("text", CANONICAL)
def test_equal_values_are_equal_texts(text):
    assert extract_number(text) == CANONICAL[text]


DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=3)


@given(st.integers() | DECIMALS, st.text())
def test_a_number_after_the_mark_is_read_whatever_stands_before(number, text):
    answer = extract_number(f"{text}\n#### {number:,}")
    assert Decimal(answer) == number
    assert answer == extract_number(f"{number:,}".replace(",", ""))


@given(st.text() | st.text("0123456789,./-$ =#{}\\\n") | st.from_regex(r"[0-9 ]+/[0-9]+"))
@example("9" * 5000 + "/3")
@example("1/" + "3" * 5000)
@example("1/" + "3" * 97)
@example("9" * 90 + " 1/3000000")
@example("0." + "1" * 90 + "/7")
def test_a_canonical_answer_reads_as_itself(text):
    answer = extract_number(text)
    assert answer is None or extract_number(answer) == answer


@pytest.mark.parametrize(
    "text", [r"\boxed{", "#### ", "answer: ", "1,", "1 1/", "9", "0", "-", "$"]
)
def test_text_that_goes_round_in_circles_is_read_in_linear_time(text):
    extract_number(text * 50_000)  # quadratic time would be minutes


def test_the_reference_of_gsm8k_is_what_follows_the_mark():
    rows = shared_rows("gsm8k_train500.jsonl.gz")
    given_answers = [row["answer"].split("#### ")[1].replace(",", "") for row in rows]
    assert [extract_number(row["answer"]) for row in rows] == given_answers


def test_verdicts_are_those_of_openai_on_its_model_solutions():
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    verdicts = [
        (is_correct(row[model]["solution"], row["ground_truth"]), row[model]["is_correct"])
        for row in shared_rows("gsm8k_model_solutions.jsonl.gz")
        for model in models
    ]
    assert len(verdicts) == 4476
    assert [ours for ours, _ in verdicts] == [theirs for _, theirs in verdicts]


def test_nothing_is_correct_without_an_answer():
    assert not is_correct("I do not know.", "72")
    assert not is_correct("I do not know.", "Nor do I.")
    assert is_correct("It is $72.00.", "#### 72")


VOTES = {
    "most common": (["5", "72", "72"], 1),
    "a tie goes to the one seen first": (["7", "5", "72", "72", "5"], 1),
    "no answer, no vote": ([None, None, None, "72", "72", "5"], 3),
    "nobody votes": ([None, None], None),
    "nobody is there": ([], None),
}


@pytest.mark.parametrize("name", VOTES)
def test_majority(name):
    answers, index = VOTES[name]
    assert majority(answers) == index

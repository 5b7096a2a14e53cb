"""Final answers: where they are found, one text per value, votes. Run: pytest tests/inference/test_answers.py"""

import time
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aft_factory.inference.answers import extract_number, is_correct, majority

FOUND = {
    "after the last mark": ("#### 5\nNo.\n#### 72\nThat is 3 more.", "72"),
    "after the mark, not in the box": (r"#### 72 and \boxed{5}", "72"),
    "after the mark, a fraction": ("#### 1/2 of 144", "0.5"),
    "after the mark, the result": ("#### 2 + 16 = 18", "18"),
    "after the mark, the result of several sums": ("#### 2 + 16 = 9 * 2 = 18", "18"),
    "after the mark, the result with brackets": ("#### (2 + 7) * 2 = 18", "18"),
    "after the mark, the result with units": ("#### 2 apples + 16 pears = 18 fruits", "18"),
    "after the mark, the result in LaTeX": (r"#### 20\% \times 90 = 18", "18"),
    "after the mark, the result of words": ("#### 20% of 90 = 18", "18"),
    "before its sum": ("#### 18 = 2 + 16", "18"),
    "after a mark in bold": ("#### **72**", "72"),
    "not in a numbered heading": ("#### 2. Add them\nThe total is 72", "72"),
    "not in a heading with a bracket": ("#### 2) Add them\nThe total is 72", "72"),
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
    "on the line after `answer is:`, in a formula": (
        "The answer is:\n\n$$18$$\n\nShe sells 9.",
        "18",
    ),
    "on the line after `answer is:`, in bold": ("The answer is:\n\n**18**\n\nShe eats 3.", "18"),
    "on a line between brackets": ("The answer is:\n\\[\n18\n\\]\nShe eats 3.", "18"),
    "on the line after `Answer:` in bold": ("**Answer:**\n\n18 eggs.\n\nShe eats 3.", "18"),
    "on the line after `Answer:`, behind a name": ("Answer:\nv = 18\n\nConfidence: 95%", "18"),
    "below a heading, at the end": ("**Answer:**\n\nShe has 3.\nShe buys 15: so 18", "18"),
    "below a heading, not in its list": ("**Answer:**\n\n1. Add 3 and 15.\n2. It is 18", "18"),
    "at the end of a solution that is announced": (
        "Answer: There are 3 boxes. Each has 4. So the total is 12.",
        "12",
    ),
    "at the end of its lines": ("Answer: She sells 5 + 4 = 9 eggs.\nThat is 9 * 2 = $18.", "18"),
    "behind `so`": ("Answer: There are 3 boxes of 6, so 18 pens.", "18"),
    "in the first sentence alone": ("Answer: She sells 18 eggs.\n\nSource: page 3", "18"),
    "not in how many steps": ("The answer is obtained after 2 steps: it is 18", "18"),
    "not in what is written on behind a solution": (
        "Answer: Tom has 9. He doubles them: 18.\nQuestion: 3 + 4?\nWe add: 7",
        "18",
    ),
    "not in what is written on with its answer": (
        "Answer: Tom has 9. He doubles them: 18.\nQuestion: 3 + 4?\nAnswer: 7",
        "18",
    ),
    "not in what is written on behind a sentence": (
        "Answer: Tom has 18.\nQuestion: 3 + 4?\nAnswer: 7",
        "18",
    ),
    "not in what it is not": ("The answer is not 9 but 18.", "18"),
    "not in how it is found": ("The answer is found in 2 parts: 9 and 9. So it is 18", "18"),
    "not in how it is given": ("The answer is given by 2 sums.\nThe answer is 18. See 3.", "18"),
    "behind a few words": ("The answer is then, in dollars, 18. She eats 3.", "18"),
    "before `in`": ("The answer is 18 in all. She eats 3.", "18"),
    "behind `in`": ("The answer is in 18 days. She eats 3.", "18"),
    "after the mark, in parts": ("The answer is found in 2 parts.\nQuestion 1: 9\n#### 18", "18"),
    "behind a sum in words": ("The answer is 7 + 11, which equals 18.", "18"),
    "behind a sum in more words": ("The answer is 7 + 11, which is equal to 18.", "18"),
    "before a reason that subtracts": ("The answer is 18 as x - 2 = 16.", "18"),
    "behind the sum": ("So the answer is 8*9 = 72 apples, in 3 steps.", "72"),
    "before its reason": ("The answer is 15, because x = 3.", "15"),
    "before its reason without a comma": ("The answer is 15 because x = 3.", "15"),
    "before its reason in brackets": ("The answer is 15 (x = 3).", "15"),
    "before its reason behind a dash": ("The answer is 15 - because x = 3.", "15"),
    "before its reason in the box": (r"\boxed{15 \text{ because } x = 3}", "15"),
    "before its reason after the mark": ("#### 15 as x = 3", "15"),
    "before a sum of its own": ("The answer is 15 since 3 * 4 = 12.", "15"),
    "before an arrow": ("#### 5 * 3 => 3", "5"),
    "behind a name": ("The answer is x = 15, y = 3.", "15"),
    "in an earlier statement": ("The answer is 72.\nI hope the answer is clear. 3", "72"),
    "at the end": ("She has 5 + 67 = <<5+67=72>>72 apples.", "72"),
    "in the words of a box that has nothing else": (r"\boxed{\text{15 apples}} of 20", "15"),
    "in a framed box": (r"\fbox{15} of 20", "15"),
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
    "#### - 3": "-3",
    "#### 5 - 8 = - 3": "-3",
    r"\boxed{- $3}": "-3",
    "The answer is - 3.": "-3",
    "The answer is: **- 3**": "-3",
    "Answer: - 3": "-3",
    "- 3": "3",  # of a list
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
    r"\boxed{10\,000}": "10000",
    r"\boxed{10\;000}": "10000",
    r"\boxed{10\ 000}": "10000",
    r"\boxed{10{\,}000}": "10000",
    r"\boxed{10\text{,}000}": "10000",
    r"10\!000": "10000",
    "10~000": "10000",
    r"3\,4": "4",
    r"\frac{1}{2.5}": "0.4",
    r"-\frac{1.5}{0.5}": "-3",
    "1/2.5": "0.4",
    "1/0.0": "0",
    r"\frac12": "0.5",
    r"\dfrac{1}2": "0.5",
    r"\tfrac1{16}": "0.0625",
    r"\frac 34": "0.75",
    r"2\frac12": "2.5",
    r"\frac{10\,000}{3}": "10000/3",
    r"\frac{-3}{2}": "-1.5",
    r"\frac{3}{-2}": "-1.5",
    r"\frac{-3}{-2}": "1.5",
    "10\u202f000": "10000",  # narrow no-break space
    "10\u00a0000,5": "10000.5",
    "10 000": "10000",
    "#### 12 345": "12345",
    "12 345": "345",  # two numbers, perhaps
    "1,200 3,400": "3400",
    "10'000": "10000",
    "10’000": "10000",
    "10_000": "10000",
    "1.234.567": "1234567",
    "1.234,56": "1234.56",
    "1.234": "1.234",
    "12,34,567": "1234567",
    "3,5": "5",
    "0,234": "234",
    "1,234,5": "5",
    "٣": "3",
    "१२३": "123",
    "１２．５": "12.5",
    "١٬٢٣٤٫٥": "1234.5",
    "x²": None,
    "m³ 5": "5",
    "½": "0.5",
    "-2½": "-2.5",
    "1⁄2": "0.5",
    **{f"{minus}3": "-3" for minus in "-−–‐‑﹣－"},
    "5–8": "8",
    "—3": "3",
    "\u200f3\u200b0": "30",
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


CIRCLES = [
    *(r"\boxed{", "#### ", "#### 1 ", "#### x=", "answer: ", "answer is:\n**", "answer: 5+3=", "= - ", "#### $", "equals ", "5 + 3 = ", "The answer is 5\nQ"),
    *("1,", "1.", "1_", "1 000 ", "1 1/", "9", "0", "-", "$", "1,234", "½", "٣", "\u200b", "\u00a0", "~"),
    *(r"\text{", r"\frac1", r"\frac{1}", "{", "}", "{,}", "<think>", "</think>", "[/", "<|user|>"),
    *("\n", " ", "?\n", "user\n", " user", "Question:\n", "No.", "wait\n", "#### 1? no, ", "a? "),
]  # fmt: skip


@pytest.mark.parametrize("text", CIRCLES)
def test_text_that_goes_round_in_circles_is_read_in_linear_time(text):
    start = time.process_time()
    extract_number(text * 50_000)
    extract_number("#### 1\n" + text * 50_000)
    assert time.process_time() - start < 10  # quadratic time would be minutes


def test_the_reference_of_gsm8k_is_what_follows_the_mark(real):
    rows = real.rows("gsm8k_train500.jsonl")
    given_answers = [row["answer"].split("#### ")[1].replace(",", "") for row in rows]
    assert [extract_number(row["answer"]) for row in rows] == given_answers


def test_verdicts_are_those_of_openai_on_its_model_solutions(real):
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    verdicts = [
        (is_correct(row[model]["solution"], row["ground_truth"]), row[model]["is_correct"])
        for row in real.rows("gsm8k_model_solutions.jsonl")
        for model in models
    ]
    assert len(verdicts) == 4 * real.either(sample=20, whole=1119)
    assert [ours for ours, _ in verdicts] == [theirs for _, theirs in verdicts]


def test_nothing_is_correct_without_an_answer():
    assert not is_correct("I do not know.", "72")
    assert not is_correct("I do not know.", "Nor do I.")
    assert is_correct("It is $72.00.", "#### 72")


RUN_ON = {
    "a question": "\n\nQuestion: Tom has 3 and 4.\nAnswer: 3 + 4 = <<3+4=7>>7\n#### 7",
    "a question's letter": "\nQ: Tom has 3 and 4.\nA: The answer is 7.",
    "a problem with a number in bold": "\n\n**Problem 2:** Tom has 3 and 4.\n\\boxed{7}",
    "a headline": "\n\n### Question 2\nTom has 3 and 4.\n#### 7",
    "an instruction": "\n\n### Instruction:\nAdd 3 and 4.\n\n### Response:\n#### 7",
    "another problem": "\nNext problem: Tom has 3 and 4.\n#### 7",
    "a turn": "\nUser: And 3 and 4?\nAssistant: The answer is 7.",
    "a person's turn": "\n\nHuman: And 3 and 4?\n\nAssistant: 7",
    "a turn in control tokens": "<|im_end|>\n<|im_start|>user\nAdd 3 and 4<|im_end|>\n#### 7",
    "a turn in broken control tokens": "<\u200b|eot_id|>I add 3 and 4.\n#### 7",
    "a turn without its control tokens": "user\n\nAdd 3 and 4.\nassistant\n\n#### 7",
}
SAID = ("#### 18", "The answer is 18.", r"\boxed{18}")


@pytest.mark.parametrize("answer", SAID)
@pytest.mark.parametrize("name", RUN_ON)
def test_what_is_written_on_behind_an_answer_is_none_of_it(name, answer):
    assert extract_number(answer + RUN_ON[name]) == "18"


@pytest.mark.parametrize("name", [name for name in RUN_ON if "turn" in name])
def test_what_is_written_on_behind_a_number_that_is_not_said_to_be_the_answer(name):
    assert extract_number("She has 2 + 16 = 18 apples." + RUN_ON[name]) == "18"
    assert extract_number("18\n\nQ: 3 and 4?\nA: 7\n\nQ: 4 and 4?\nA: 8") == "18"


def test_a_question_that_nothing_announces_may_be_one_of_the_steps():
    step = "\nStep 2: How many apples do 3 boys and 4 girls have?\nThe answer is 7."
    assert extract_number("The answer is 18." + step) == "7"


def test_a_question_that_is_told_again_is_no_next_one():
    assert extract_number("Question: 2 and 16?\n\nAnswer: 18") == "18"
    assert extract_number("1. Read it.\nQuestion: 2 and 16?\nSo the answer is 18.") == "18"


REVISED = {
    "of the same kind": ("#### 5\nNo.\n#### 12", "12"),
    "after a question to itself": (
        "#### 5\nWait, are 5 really all of the apples that she has left?\n#### 12",
        "12",
    ),
    "after a short question to itself": ("#### 5\nIs 5 right?\n#### 12", "12"),
    "after a question without a number": (
        "#### 5\nIs that really the number of the apples that she has left?\n#### 12",
        "12",
    ),
    "in vain": ("#### 5\nWait, 2 + 3 = 5. Yes.", "5"),
    "before the answer": ("The answer is 7. No, wait.\n#### 12\nThat is 3 more.", "12"),
    "by nothing": ("#### 12\nNo 3 of them. Not 7. Answer: 5", "12"),
}


@pytest.mark.parametrize("name", REVISED)
def test_an_answer_gives_way_to_a_later_one_of_its_kind(name):
    text, answer = REVISED[name]
    assert extract_number(text) == answer


THOUGHTS = {
    "<think>The answer is 3.</think>\n\nIt is 5.": "5",
    "#### 3\n</think>\n5 apples": "5",  # the template opens the thought
    "<\u200bthink>#### 3<\u200b/think>5": "5",
    "[THINK]#### 3[/THINK]5": "5",
    "◁think▷#### 3◁/think▷5": "5",
    "<seed:think>#### 3</seed:think>5": "5",
    "<|begin_of_thought|>#### 3<|end_of_thought|>5": "5",
    "<think>The answer is 3": None,
    "<think>The answer is 3.</think>": None,
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_a_thought_is_no_answer(text):
    assert extract_number(text) == THOUGHTS[text]


CUT_OFF = {
    "She has 2 + 16 = 18": None,
    "#### 18\nSo she": "18",
    "The answer is 18, beca": "18",
    r"\boxed{18} is wh": "18",
    "18\n\nQ: Tom has 3": "18",  # the response was whole
}


@pytest.mark.parametrize("text", CUT_OFF)
def test_of_a_response_that_was_cut_off_only_a_said_answer_counts(text):
    assert extract_number(text, whole=False) == CUT_OFF[text]
    assert extract_number(text) == "18"


@pytest.mark.parametrize("zero", "٠۰०０𝟎")
@given(number=DECIMALS)
def test_digits_of_any_script_are_read(zero, number):
    written = "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in f"{number:f}")
    assert extract_number(f"#### {written}") == extract_number(f"#### {number:f}")


@given(st.integers(min_value=1000), st.sampled_from([",", "'", "_", "\u2009", r"\,", r"\;", "{,}"]))
def test_thousands_are_read_however_they_are_parted(number, separator):
    written = f"{number:,}".replace(",", separator)
    assert extract_number(f"It is {written}.") == str(number)


@given(st.text(), st.booleans())
@example("\ud83d 5", True)
def test_any_text_has_an_answer_or_none(text, whole):
    answer = extract_number(text, whole=whole)
    assert answer is None or extract_number(answer) == answer


def test_a_solution_that_was_cut_off_has_no_answer_yet():
    for cut in ("Answer: She has 2 app", "Answer: She has 2 and 16. That"):
        assert extract_number(cut, whole=False) is None


def test_a_number_that_the_cut_goes_through_is_no_answer():
    for cut in ("#### 1", "The answer is 1,0", "\\boxed{1.", "#### 1/"):
        assert extract_number(cut, whole=False) is None
        assert extract_number(cut) == "1" or cut.endswith("0")


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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72 clips altogether in April and May. Does that make sense to you?", "72"),
        ("[Reasoning]\n6*5=30\n[Answer]\n#### 30", "30"),
        ("[THINK]6*5=31[/THINK]It is 30.", "30"),
        ("The answer is 7.\n\nProblem 2: 7+5=12", "7"),
    ],
)
def test_headings_and_questions_hide_no_answer(text, number):
    assert extract_number(text) == number


@given(
    st.lists(
        st.sampled_from(
            [
                "####",
                "\n",
                " ",
                "5",
                "answer is",
                ":",
                "Q",
                "Question",
                "2",
                ".",
                "$",
                "\\boxed{",
                "}",
                "?",
                "of",
                "=",
                "[THINK]",
                "User",
            ]
        ),
        max_size=14,
    )
)
def test_no_text_made_of_an_answers_parts_ends_a_run(words):
    assert extract_number("".join(words)) is None or isinstance(extract_number("".join(words)), str)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Given:** 3 boxes, 4 pens each\n**Problem:** total\n**Solution:** 3 x 4 = **12**", "12"),
        ("There are 3 boxes.\nQuestion: How many?\n\n3*4 = 12", "12"),
        ("Step 1: 3 boxes.\nTask: find the total.\nTotal: 12", "12"),
        ("It is 18.\n\nQuestion: What is 2 + 3?\n5", "18"),
        ("The answer is 18.\n\n## Follow-up question 1: Why?\nThe answer is 20", "18"),
        ("5 GB/user\nSo 10 users need 50 GB", "50"),
        ("18.user\nWhat is 5?", "18"),
        ("#### 60 miles/hour * 2 hours = 120 miles", "120"),
        ("The answer is $7/hour * 8 hours = $56", "56"),
        ("The answer is 26 divided by 5 = 5.2", "5.2"),
        ("The answer is 10 minus 3 equals 7", "7"),
        ("#### 3(5) = 15", "15"),
        ("#### 15 (because x = 3)", "15"),
        (r"\boxed{2x = 10}", "10"),
        (r"\boxed{f(2) = 5}", "5"),
        (r"\boxed{x_1 = 5}", "5"),
        (r"\boxed{\sqrt{16} = 4}", "4"),
        (r"\boxed{15 = 3 * 5}", "15"),
        (r"\boxed{x = 3, y = 4}", "3"),
        (r"\boxed{1 / 2}", "0.5"),
        ("__Answer__: 42. Because 3", "42"),
        ("42 is the answer. There were 7 days.", "42"),
        ("So $72$ is the final answer.\n\nCheck: 8 * 9.", "72"),
        ("Thus, 1,234 dollars is our answer (not 7).", "1234"),
        ("7 is the answer to part 1. Then 7 + 3 = 10.", "10"),
    ],
)
def test_restated_tasks_equations_and_units_do_not_hide_the_answer(text, answer):
    assert extract_number(text) == answer

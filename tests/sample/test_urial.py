"""URIAL prompts and the answers in their completions. Run: pytest tests/sample/test_urial.py"""

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aft_factory.errors import UsageError
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.sample.urial import DEFAULT, STOP, Parsed, load_propose_template, parse, render

QUERY = "How many pails?"
# The first digits of the SHA-256 of the prompt for QUERY.
PROMPTS = {
    "basic_icl": "2891f910b9fbc4ee",
    "inst_1k": "9c57ea73f102c9b5",
    "inst_1k_v2": "1c16b9c0e8429140",
    "inst_1k_v4": "fe2f8a02e27c236d",
    "inst_1k_v4_help": "2e010ca21a3ca3bf",
    "inst_1shot": "0636e4e7241fd0f9",
    "inst_2k": "bf18161219cadfd7",
}
FILES = {"inst_1k_v4_help": "inst_1k_v4.help"}
CLOSINGS = {
    "stopped": "\n```\n\n",
    "ran on": "\n```\n\n# Query:\n```\nAnother one?\n```\n\n# Answer:\n```\nYes.\n```\n",
    "ran on without blank line": "\n```\n# Query:\n```Another one?```\n \n# Answer:\n```\nYes.\n```\n",
    "other heading": "\n```\n\n\n# Query 5:\nAnother one?",
    "URIAL's second stop": "\n```\n\n# User: Another one?",
    "instructions": "\n```\n\n# Instruction\n\nBelow is a list",
    "blanks": "\n```  \n \n\n",
    "end of text": "\n```",
    "CRLF": "\r\n```\r\n\r\n",
}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def asked(*queries: str) -> str:
    """What URIAL's prompt builder adds for one query."""
    return "".join(f"\n# Query:\n```\n{q}\n```\n" for q in queries) + "\n# Answer:\n```\n"


# --- the prompt


def test_every_prompt_has_its_hash_here():
    assert sorted(PROMPTS) == sorted(path.stem for path in (TEMPLATES / "propose").iterdir())
    assert DEFAULT in PROMPTS


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_do_not_change(name):
    text = render(name, [user(QUERY)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PROMPTS[name]


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_is_urials_file_and_the_query_as_urial_writes_it(name, real):
    original = real.path(f"urial/{FILES.get(name, name)}.txt").read_bytes().decode()
    for row in real.rows("alpaca_eval_proposals.jsonl")[:100]:
        query = row["instruction"]
        assert render(name, [user(query)]) == original + asked(query)


@pytest.mark.parametrize(
    "query", ["{{ messages }}", "{% raw %}", "{#", "# Query:\n```\nx\n```", "a\r\nb \n", "&<é水"]
)
def test_a_query_is_text(query):
    assert render(DEFAULT, [user(query)]).endswith("```\n" + asked(query))


def test_earlier_turns_are_queries_and_answers_before_the_last():
    plain = render(DEFAULT, [user("Hello")])
    messages = [user("Hello"), assistant("Hi!"), user(QUERY)]
    assert render(DEFAULT, messages) == plain + "Hi!\n```\n" + asked(QUERY)


def test_a_system_message_stands_before_the_first_query():
    messages = [{"role": "system", "content": "Be brief."}, user("Hello")]
    before = [dict(message) for message in messages]
    assert render(DEFAULT, messages) == render(DEFAULT, [user("Be brief.\n\nHello")])
    assert messages == before
    assert render(DEFAULT, [{"role": "system", "content": ""}, user("x")]) == render(
        DEFAULT, [user("x")]
    )


def test_an_unknown_template_is_refused_with_the_closest_name():
    with pytest.raises(UsageError, match=r"did you mean 'inst_1k_v4'\?"):
        load_propose_template("inst_1k_v5")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ messages[0].content }}{{ name }}", "this one has: messages, name"),
        ("no variable", "this one has: none"),
        ("{% for %}", "mine.jinja:1: "),
        ("{{ messages[0].secret }}", "fails: "),
        ("{{ messages.__class__.__mro__ }}", "fails: "),
        ("{{ messages.clear() }}", "fails: "),
    ],
)
def test_a_users_template_that_cannot_work_is_refused(source, problem, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    with pytest.raises(UsageError, match=problem):
        render(str(path), [user(QUERY)])


def test_a_users_own_template_is_used(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ messages[-1].content }}\nA:\n```\n\n")
    assert render(str(path), [user(QUERY)]) == f"Q: {QUERY}\nA:\n```\n"


@pytest.mark.parametrize("name", PROMPTS)
def test_a_model_that_goes_on_as_the_prompt_does_is_stopped(name):
    text = render(name, [user(QUERY)])
    demonstrations = text.count("# Answer:\n")
    assert text.count(STOP[0]) + text.startswith(STOP[0][1:]) == demonstrations


# --- the answer


@pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS)
@pytest.mark.parametrize(
    "answer",
    [
        "Six.",
        "Use this:\n```python\nprint(6)\n```",
        "```python\nprint(6)\n```\nThat prints 6.",
        "```\nprint(6)\n```",
        "No language:\n\n```\nprint(6)\n```\n\nand another:\n\n```\n6\n```\n\nDone.",
        "```\n\nprint(6)\n\n```\n\nDone.",
        "1. In a list:\n   ```sh\n   ls\n   ```\n2. And:\n   ```\n   ls\n   ```",
        "Nested:\n````markdown\n```python\nx\n```\n````",
        "Nested:\n````\n```\nx\n```\n````\nend",
        "Nested, as models do it:\n```markdown\n# Title\n```sh\nls\n```\n```",
        "```python\n# Query the table\nx = 1\n# User: root\n```",
        "# Query\nis how I would call it.\n\n# User\nis not.",
        "Use this prompt:\n```\n\n# Instruction\nBe brief.\n```\nThat is all.",
        "Use this line:\n```\n\n# User: root\n```\n\nThat is all.",
        "Start a query with\n\n# Query:\n\nand a blank line.",
        "Type ```ls\n-l``` or ```pwd```",
        "Type ```ls``` or\n```ls -l``` to see.",
        "第一\u2028第二\x85 ß",
        "a\r\n```sh\r\nls\r\n```\r\nb",
        "``",
    ],
)
def test_an_answer_comes_out_whole(answer, closing):
    assert parse(answer + closing, "stop") == Parsed(answer, False, None)


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        ("", "stop", Parsed("", True, "no closing fence")),
        ("", "length", Parsed("", True, "cut off")),
        ("```\n\n", "stop", Parsed("", False, "empty")),
        (" \n\n```\n", None, Parsed("", False, "empty")),
        ("It is s", "length", Parsed("It is s", True, "cut off")),
        ("It is six.", "stop", Parsed("It is six.", True, "no closing fence")),
        ("It is six.\n\n# Query:\n```\nx", "stop", Parsed("It is six.", True, "no closing fence")),
        # In a code block: what was generated stays as it is.
        ("Run:\n```sh\nls", "length", Parsed("Run:\n```sh\nls", True, "cut off")),
        ("Run:\n```\nls", "length", Parsed("Run:\n```\nls", True, "cut off")),
        ("Run:\n```", "length", Parsed("Run:\n```", True, "cut off")),
        ("Run:\n```sh\nls\n```", "length", Parsed("Run:\n```sh\nls\n```", True, "cut off")),
        # The answer was complete, and something else ran into the limit.
        ("Six.\n```\n\n", "length", Parsed("Six.", False, None)),
        ("Six.\n```\n\n# Quer", "length", Parsed("Six.", False, None)),
        ("Six.\n```\n\n# Query:\n```\nAnoth", "length", Parsed("Six.", False, None)),
        ("Six.\n```\n\nI hope so. I hope", "length", Parsed("Six.", False, None)),
        # One fence for the block and the answer.
        ("Run:\n```sh\nls\n```\n\n", "stop", Parsed("Run:\n```sh\nls\n```", False, None)),
        ("Run:\n```\nls\n```\n\n", "stop", Parsed("Run:\n```\nls\n```", False, None)),
        (
            "Run:\n```sh\nls\n```\n\n# Query:\n```\nx\n```\n",
            "length",
            Parsed("Run:\n```sh\nls\n```", False, None),
        ),
        # An invented turn, without any fence or with its own.
        (
            "Six.\n\n# Query:\nHow many?\n\n# Answer:\nSeven.",
            "length",
            Parsed("Six.", True, "no closing fence"),
        ),
        ("Six.\n\n# Query: How many?", "stop", Parsed("Six.", True, "no closing fence")),
        (
            "Six.\n\n# Query:\nHow many?\n\n# Answer:\n```\nSeven.\n```\n\n",
            "stop",
            Parsed("Six.", True, "no closing fence"),
        ),
        (
            "Six.\n\n# Query 5:\n```\nHow many?\n```\n\n# Answer:\n```\nSeven.\n```\n\n",
            "stop",
            Parsed("Six.", True, "no closing fence"),
        ),
        ("Six.\n```\n\n# Query 5:\n```\nx\n```\n", "stop", Parsed("Six.", False, None)),
        # The closing fence behind text.
        ("The answer is six.```", "stop", Parsed("The answer is six.", False, None)),
        ("Type ```ls``` for six.``` \n\n", "length", Parsed("Type ```ls``` for six.", False, None)),
        ("Six.```\n\n# Query 5:\nx", "length", Parsed("Six.", False, None)),
        ("Type ```ls```", "stop", Parsed("Type ```ls```", True, "no closing fence")),
        ("Type ```", "length", Parsed("Type ```", True, "cut off")),
        # Chatter after the end.
        ("Six.\n```\n\nIs that right?\n", "stop", Parsed("Six.", False, None)),
    ],
)
def test_ends_of_completions(text, finish_reason, expected):
    assert parse(text, finish_reason) == expected


BLANKS = st.sampled_from(["\n", "\n\n", " \n"])
PROSE = st.text(
    st.characters(exclude_characters="`", exclude_categories=["Cs"]), min_size=1
).filter(str.strip)


def fenced(inside: str, ticks: int, language: str, indent: str) -> str:
    fence = indent + "`" * ticks
    return f"{fence}{language}\n{inside}\n{fence}"


HEADINGS = st.sampled_from(["\n# Instruction\nBe brief.", "\n# User: root", "\n# Query:\nx"])
BLOCK = st.builds(
    fenced, PROSE | HEADINGS, st.integers(3, 5), st.sampled_from(["", "python", "c++ x"]), st.sampled_from(["", "  "])
)  # fmt: skip
NESTED = st.builds(fenced, BLOCK, st.just(6), st.sampled_from(["", "markdown"]), st.just(""))


@given(
    st.lists(st.one_of(PROSE, BLOCK, NESTED), min_size=1),
    BLANKS,
    st.sampled_from(sorted(CLOSINGS)),
    st.sampled_from(["stop", None]),
)
def test_any_answer_comes_out_whole(parts, joint, closing, finish_reason):
    answer = joint.join(parts)
    assume(STOP[0] not in answer)
    assert parse(answer + CLOSINGS[closing], finish_reason) == Parsed(answer.strip(), False, None)


@given(st.text("`# \n\rQuery:a"), st.sampled_from(["stop", "length", None]))
def test_no_completion_is_too_odd(text, finish_reason):
    parsed = parse(text, finish_reason)
    assert parsed.answer in text
    assert (parsed.problem is None) == (bool(parsed.answer) and not parsed.truncated)


def test_answers_of_real_models_come_out_whole(real):
    answers = [
        response["response"].strip()
        for row in real.rows("alpaca_eval_proposals.jsonl")
        for response in row["responses"]
        if response["response"].strip()
    ]
    assert sum("```" in answer for answer in answers) == real.either(sample=11, whole=466)
    for closing in CLOSINGS.values():
        parsed = [(a, parse(a + closing, "stop")) for a in answers]
        odd = [(a, p) for a, p in parsed if p != Parsed(a, False, None)]
        # These leave a code block open: the fence is taken to close it. Nothing is lost.
        assert len(odd) == real.either(sample=0, whole=12)
        assert all(p.answer.startswith(a) for a, p in odd)

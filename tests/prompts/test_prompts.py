"""Prompts: golden texts, selection, sanitising. Run: pytest tests/prompts/test_prompts.py"""

import copy
import functools
import pickle
from dataclasses import replace
from pathlib import Path

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aft_factory.errors import UsageError
from aft_factory.prompts.markers import MARKERS, known_markers
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import TEMPLATES, load_template
from aft_factory.prompts.selection import (
    Aggregation,
    best_response,
    conversation,
    select,
    whole_target,
)
from aft_factory.records.record import Record

INSTRUCTIONS = (
    "Your task is to synthesize these responses into a single, high-quality response. It is "
    "crucial to critically evaluate the information provided in these responses, recognizing "
    "that some of it may be biased or incorrect. Your response should not simply replicate "
    "the given answers but should offer a refined, accurate, and comprehensive reply to the "
    "instruction. Ensure your response is well-structured, coherent, and adheres to the "
    "highest standards of accuracy and reliability."
)
PROVIDED = (
    "You have been provided with a set of responses from various {} to the latest user query. "
)
PAPER = PROVIDED.format("distributions") + INSTRUCTIONS + "\n\nResponses from models:"
MOA = PROVIDED.format("open-source models") + INSTRUCTIONS + "\n\nResponses from models:"
RELEASE = (
    "You are a helpful aggregator.\n"
    + PROVIDED.format("open-source models")
    + INSTRUCTIONS
    + "\n    \n    Responses from models:"
)
CHATS = ("llama3", "mistral")


sanitise = known_markers().sanitise


def record(*proposals: str, messages=None) -> Record:
    return Record(
        "r1", messages or [{"role": "user", "content": "How many pails?"}], list(proposals), "Six."
    )


def environment():
    """The environment in which transformers and vLLM render chat templates."""
    return jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)


@pytest.mark.parametrize(("name", "head"), [("paper", PAPER), ("moa", MOA), ("release", RELEASE)])
@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_aggregator_prompt_is_the_published_text(name, head, count):
    drafts = [f"draft {i}\n  with lines" for i in range(count)]
    listed = "".join(f"\n{i}. {draft}" for i, draft in enumerate(drafts, start=1))
    assert load_template(name).render(drafts) == head + listed


def test_conversation_puts_the_aggregator_prompt_into_the_system_message():
    assert conversation(record("five", "six")) == [
        {"role": "system", "content": f"{PAPER}\n1. five\n2. six"},
        {"role": "user", "content": "How many pails?"},
    ]


def test_an_existing_system_message_and_earlier_turns_are_kept_and_inputs_not_changed():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How many?"},
    ]
    before = copy.deepcopy(messages)
    assert conversation(record("five", messages=messages), Aggregation("moa")) == [
        {"role": "system", "content": f"Be brief.\n\n{MOA}\n1. five"},
        *messages[1:],
    ]
    assert messages == before


def test_without_proposals_the_conversation_is_the_plain_query():
    plain = [{"role": "user", "content": "How many pails?"}]
    assert conversation(record()) == plain
    assert conversation(record(" ", "\n")) == plain
    assert conversation(record("five"), Aggregation(ablation="without_proposals")) == plain


def test_where_no_proposal_is_left_there_are_no_scores_and_models():
    kept = select(Record("1", [], [" "], scores=[1.0], proposal_models=["m"]))
    assert (kept.proposals, kept.scores, kept.proposal_models) == ([], None, None)


def test_select_drops_blank_proposals_and_keeps_scores_in_step():
    given_record = Record(
        "r", [], ["a", " ", "b", "c"], scores=[1.0, 2.0, 3.0, 4.0], proposal_models=list("wxyz")
    )
    kept = select(given_record, Aggregation(max_proposals=2))
    assert (kept.proposals, kept.scores, kept.proposal_models) == (
        ["a", "b"],
        [1.0, 3.0],
        ["w", "y"],
    )


def test_shuffling_depends_on_seed_and_id_only():
    drafts = [str(i) for i in range(20)]
    shuffled = [
        select(Record(name, [], drafts), Aggregation(shuffle_proposals=True, seed=seed)).proposals
        for name, seed in [("a", 1), ("a", 1), ("a", 2), ("b", 1)]
    ]
    assert shuffled[0] == shuffled[1]
    assert len({tuple(order) for order in shuffled}) == 3
    assert sorted(shuffled[0], key=int) == drafts


def test_all_wrong_options_are_reported_at_once():
    with pytest.raises(UsageError, match=r"max_proposals.*seed.*did you mean 'paper'"):
        Aggregation(template="papper", max_proposals=0, seed="x")


def test_a_template_with_other_variables_is_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ proposals }} {{ query }} {{ today }}")
    with pytest.raises(UsageError, match="proposals, query, today"):
        load_template(str(path))
    path.with_name("broken.jinja").write_text("line\n{% for %}")
    with pytest.raises(UsageError, match=r"broken\.jinja:2"):
        load_template(str(path.with_name("broken.jinja")))


def test_a_users_own_template_is_used(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("Drafts: {{ proposals | join(' / ') }}")
    assert conversation(record("a", "b"), Aggregation(str(path)))[0]["content"] == "Drafts: a / b"


def test_a_template_is_as_its_file_is_now_and_in_options_as_it_was_when_they_were_made(
    tmp_path, monkeypatch
):
    for folder, text in (("a", "A{{ proposals }}"), ("b", "B{{ proposals }}")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.jinja").write_text(text)
    monkeypatch.chdir(tmp_path / "a")
    options = Aggregation("mine.jinja")
    assert load_template("mine.jinja").source == "A{{ proposals }}"
    monkeypatch.chdir(tmp_path / "b")
    assert load_template("mine.jinja").source == "B{{ proposals }}"
    Path("mine.jinja").write_text("C{{ proposals }}")
    assert load_template("mine.jinja").source == "C{{ proposals }}"
    Path("mine.jinja").write_text("{{ other }}")
    with pytest.raises(UsageError, match="other"):
        load_template("mine.jinja")
    for same in (options, pickle.loads(pickle.dumps(options))):  # as workers get them
        assert conversation(record("x"), same)[0]["content"] == "A['x']"


def test_jinja_in_a_proposal_is_text():
    hostile = "{{ 7*7 }} {% for x in y %} {# c #} {{ proposals.__class__ }}"
    assert conversation(record(hostile))[0]["content"].endswith(hostile)


@pytest.mark.parametrize("marker", [m for m in MARKERS if not (m.startswith("<|") and len(m) == 3)])
def test_every_marker_is_broken_once(marker):
    broken = f"a {marker[0]}\u200b{marker[1:]} b"
    assert sanitise(f"a {marker} b") == broken
    assert sanitise(broken) == broken


@pytest.mark.parametrize(
    "text",
    [
        "a <b and c> d",
        "x <| y",
        "a <|> b",
        "[1] [link](url)",
        "<div>",
        "if a[INST]: pass".lower(),
        "<eos",
        "",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert sanitise(text) == text


MIXED = st.lists(
    st.sampled_from([*MARKERS, "<", "|", ">", "[", "]", "/", "eot_id", "s", "INST", " ", "\n", "é"])
)
TEXTS = st.one_of(st.text(), MIXED.map("".join))


@given(TEXTS)
@settings(max_examples=500)
def test_nothing_that_is_a_marker_survives(text):
    safe = sanitise(text)
    assert not [marker for marker in MARKERS if marker in safe]
    assert safe.replace("\u200b", "") == text.replace("\u200b", "")


@functools.cache
def compiled_chat(chat):
    return environment().from_string(chat_template(chat, "paper"))


@pytest.mark.parametrize("chat", CHATS)
@given(st.lists(TEXTS, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_chat_template_renders_what_conversation_renders(chat, drafts, with_system):
    messages = [{"role": "system", "content": "Be brief."}] if with_system else []
    messages += [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    messages += [{"role": "user", "content": "Q2"}]
    template = compiled_chat(chat)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    rendered = template.render(messages=messages, proposals=drafts, **tokens)
    assert rendered == template.render(
        messages=conversation(record(*drafts, messages=messages)), **tokens
    )


def test_shipped_chat_templates_hold_the_papers_prompt_and_all_markers():
    for chat in CHATS:
        shipped = (TEMPLATES / "chat" / f"{chat}.jinja").read_text(encoding="utf-8")
        assert chat_template(chat, "paper") == shipped
        assert PAPER in shipped
        assert MOA in chat_template(chat, "moa")
        assert PAPER not in chat_template(chat, "moa")


def test_a_users_own_template_serves_as_it_trains_to_the_last_blank(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("\n  Drafts:{% for p in proposals %}\n{{ p }}\n{% endfor %}\nAnswer: \n\n")
    template = environment().from_string(chat_template("llama3", str(path)))
    given = record("a", "b")
    tokens = {"bos_token": "<s>", "add_generation_prompt": True}
    assert template.render(
        messages=given.messages, proposals=given.proposals, **tokens
    ) == template.render(messages=conversation(given, Aggregation(str(path))), **tokens)


@pytest.mark.parametrize(
    "source",
    [
        "{{ proposals | reverse | join(',') }}",
        "{% for p in proposals %}{{ p | trim }}{% endfor %}",
        "{% for p in proposals %}{{ p }}{{ p }}{% endfor %}",
        "{% for p in proposals %}{{ p if p != 'a' else 'first' }}{% endfor %}",
        "{% set all = proposals %}{% for p in all %}{{ p }}{% endfor %}",
        "{% for p in proposals if p != 'b ' %}{{ p }}{% endfor %}",
    ],
)
def test_a_template_that_does_more_than_write_each_proposal_is_left_to_jinja(source, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    template = load_template(str(path))
    assert template.render(["a", "b "]) == template.compiled.render(proposals=["a", "b "])


@pytest.mark.parametrize("name", ["paper", "moa", "release"])
@given(st.lists(TEXTS, max_size=12))
def test_rendering_without_jinja_gives_what_jinja_gives(name, drafts):
    template = load_template(name)
    assert template.render(drafts) == template.compiled.render(proposals=drafts)


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_the_best_response_is_the_best_scored_of_those_with_a_known_score(unknown):
    scored = replace(record("unscored", "good", "poor"), scores=[unknown, 0.9, 0.1])
    assert best_response(scored) == "good"


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_proposal_or_reference_is_no_response_whatever_its_score(blank):
    scored = replace(record(blank, "poor"), scores=[0.9, 0.1])
    assert best_response(scored) == "poor"
    assert best_response(replace(scored, reference=blank)) == "poor"
    assert best_response(replace(scored, reference="given")) == "given"
    assert best_response(replace(record(blank, "unscored"), scores=[0.9, None])) is None


def test_control_tokens_in_a_kept_thought_are_broken_and_the_words_around_it_are_whole():
    kept = replace(record("p"), aggregation="Six <|eot_id|>", aggregation_thought="So </think>")
    target = whole_target(kept, known_markers().sanitise)
    assert target.count("</think>") == 1
    assert "So <\u200b/think>" in target
    assert target.endswith("Six <\u200b|eot_id|>")

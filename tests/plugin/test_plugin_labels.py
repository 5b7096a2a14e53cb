"""What LLaMA-Factory's standard engine learns and reads: labels, control tokens, own templates.

Run: pytest tests/plugin/test_plugin_labels.py
"""

import types

import pytest
from llamafactory_tools import prompt_ids, tokenize, trained_ids, write_dataset
from test_plugin_v0 import logged  # noqa: F401 - a fixture

from aft_factory.convert.targets import to_sharegpt
from aft_factory.errors import UsageError
from aft_factory.plugin import v0_fitting
from aft_factory.plugin.v0 import check_training
from aft_factory.prompts.selection import PAPER
from aft_factory.prompts.tokenizer import tokenizer_markers
from aft_factory.records.record import record_from_row

HISTORY = [
    {"role": "user", "content": "How many pails?"},
    {"role": "assistant", "content": "Six pails."},
    {"role": "user", "content": "And litres?"},
]
ROW = {"messages": HISTORY, "proposals": ["alpha", "beta"], "aggregation": "30 litres."}


@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("options", [{}, {"packing": True, "cutoff_len": 700}])
def test_earlier_answers_are_never_labels(fit, options, tmp_path, tiny_llama):
    write_dataset(tmp_path, "drafts", [ROW], aggregation={"fit": fit})
    tokenizer, (row,) = tokenize(tmp_path, "drafts", tiny_llama, **options)
    assert tokenizer.decode(trained_ids(row)) == "30 litres.<|eot_id|>"
    assert "Six pails." in tokenizer.decode(row["input_ids"])


def test_all_is_learned_of_labels_of_which_none_is_ignored():
    assert v0_fitting._of_last_answer([5, 6]) == [5, 6]
    assert v0_fitting._of_last_answer([-100, 5, -100, 6, 7]) == [-100, -100, -100, 6, 7]


def test_they_are_labels_of_other_data_sets_as_before(tmp_path, tiny_llama):
    other = {
        "conversations": [
            {"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]}
            for m in HISTORY
        ]
    }
    other["conversations"].append({"from": "gpt", "value": "30 litres."})
    write_dataset(tmp_path, "drafts", [ROW])
    write_dataset(tmp_path, "stock", [other], formatting="sharegpt")
    tokenizer, rows = tokenize(tmp_path, "drafts,stock", tiny_llama)
    learned = sorted(tokenizer.decode(trained_ids(row)) for row in rows)
    assert learned == ["30 litres.<|eot_id|>", "Six pails.<|eot_id|>30 litres.<|eot_id|>"]


@pytest.mark.parametrize(
    ("chat", "control", "harmless"),
    [("llama3", "<|eot_id|>", "</s>"), ("mistral", "</s>", "<|eot_id|>")],
)
def test_queries_answers_and_system_messages_hold_no_control_token(
    chat, control, harmless, tmp_path, request
):
    model = request.getfixturevalue({"llama3": "tiny_llama", "mistral": "tiny_mistral"}[chat])
    text = f"a {control} b {harmless} c"
    row = {"messages": [{"role": r, "content": f"{r} {text}"} for r in ("system", "user")]}
    row |= {"proposals": [f"draft {text}"], "aggregation": f"answer {text}"}
    clean = {key: row[key] for key in ("proposals", "aggregation")} | {
        "proposals": ["x"],
        "aggregation": "y",
    }
    clean["messages"] = [{"role": r, "content": r} for r in ("system", "user")]
    write_dataset(tmp_path, "drafts", [row, clean])
    tokenizer, (hostile, plain) = tokenize(tmp_path, "drafts", model, template=f"aft_{chat}")
    token = tokenizer.convert_tokens_to_ids(control)
    assert trained_ids(hostile).count(token) == trained_ids(plain).count(token) == 1
    assert prompt_ids(hostile).count(token) == prompt_ids(plain).count(token)
    text = tokenizer.decode(hostile["input_ids"])
    assert text.count(f"{control[0]}\u200b{control[1:]}") == 4
    assert text.count(f"b {harmless} c") == 4  # no token of this vocabulary: it stays as it is
    rendered = tokenizer.apply_chat_template(
        row["messages"], proposals=row["proposals"], add_generation_prompt=True, return_dict=False
    )
    assert rendered == prompt_ids(hostile)


OWN = [
    "{{ proposals | join(' / ') }}",
    "{% for p in proposals if p %}{{ p | trim }}\n{% endfor %}{{ proposals | length }} drafts",
    "{{ proposals[-1] }} and {{ proposals[0] }}",
]


@pytest.mark.parametrize("source", OWN)
def test_a_row_too_long_keeps_its_query_under_a_template_of_the_users_own(
    source,
    tmp_path,
    tiny_llama,
    logged,  # noqa: F811
):
    path = tmp_path / "own.jinja"
    path.write_text(source)
    rows = [ROW | {"proposals": ["word " * 400, "more " * 300]}] * 3
    write_dataset(tmp_path, "drafts", rows, aggregation={"template": str(path)})
    tokenizer, fitted = tokenize(tmp_path, "drafts", tiny_llama, cutoff_len=256)
    assert len(fitted) == 3
    for row in fitted:
        text = tokenizer.decode(row["input_ids"])
        assert "And litres?" in text
        assert "word word" in text
        assert "more more" in text
        assert tokenizer.decode(trained_ids(row)) == "30 litres.<|eot_id|>"
        assert 200 < len(row["input_ids"]) <= 256
    assert any("in 3 of 3 rows to fit cutoff_len 256" in line for line in logged)


def test_a_template_that_fails_for_a_rows_drafts_costs_that_row(tmp_path, tiny_llama, logged):  # noqa: F811
    path = tmp_path / "own.jinja"
    path.write_text("{{ proposals[1] }}")
    rows = [ROW, ROW | {"proposals": ["alpha", " "]}]  # blank ones are left out
    write_dataset(tmp_path, "drafts", rows, aggregation={"template": str(path)})
    _, trained = tokenize(tmp_path, "drafts", tiny_llama)
    assert len(trained) == 1
    [line] = [line for line in logged if "left out" in line]
    assert "left out 1 of 2 rows because of their template" in line
    assert "fails for 1 proposals" in line


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("pt", "not for pt: it trains on plain text"),
        ("rm", r"not for rm \(or dpo\): it needs a chosen and a rejected answer"),
        ("kto", "not for kto: it needs answers that are marked"),
    ],
)
def test_a_stage_that_does_not_learn_aggregations_is_refused(stage, words):
    with pytest.raises(
        UsageError, match=f"'drafts': aggregation data are for `stage: sft`, {words}"
    ):
        check_training("drafts", stage, types.SimpleNamespace())


def test_a_refusal_comes_from_llamafactorys_own_loader(tmp_path, tiny_llama):
    write_dataset(tmp_path, "drafts", [ROW])
    with pytest.raises(UsageError, match="not for pt"):
        tokenize(tmp_path, "drafts", tiny_llama, stage="pt")
    with pytest.raises(UsageError, match="the loss of AFT is on the aggregation only"):
        tokenize(tmp_path, "drafts", tiny_llama, train_on_prompt=True)


def test_a_hook_that_finds_nothing_says_so_and_training_is_refused(
    tmp_path, tiny_llama, monkeypatch
):
    with pytest.raises(LookupError, match="no class that has _encode_data_example"):
        v0_fitting.hook_processor(types.ModuleType("llamafactory.data.processor.supervised"))
    monkeypatch.setattr(v0_fitting, "_hooked", {"unsupervised"})
    write_dataset(tmp_path, "drafts", [ROW])
    with pytest.raises(UsageError, match=r"nothing to hook into in .*processor\.supervised"):
        tokenize(tmp_path, "drafts", tiny_llama)


@pytest.mark.parametrize("template", ["gemma2", "glm4", "llama3", "mistral"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_labels_are_llamafactorys_own_of_the_last_answer_and_no_other(
    template, turns, tmp_path, tiny_llama
):
    """Some templates end no answer by a token: the next turn's first one has EOS as its label."""
    messages = (HISTORY[:2] * turns)[:-2] + HISTORY[2:]
    record = {"messages": messages, "proposals": [], "aggregation": "30 litres."}
    write_dataset(tmp_path, "drafts", [record])
    names = {"user": "human", "assistant": "gpt"}
    stock = [{"from": names[m["role"]], "value": m["content"]} for m in messages]
    stock.append({"from": "gpt", "value": "30 litres."})
    write_dataset(tmp_path, "stock", [{"conversations": stock}], formatting="sharegpt")
    tokenizer, (ours,) = tokenize(tmp_path, "drafts", tiny_llama, template=template)
    _, (own,) = tokenize(tmp_path, "stock", tiny_llama, template=template, mask_history=True)
    assert ours["input_ids"] == own["input_ids"]
    learned = trained_ids(ours)
    assert own["labels"][-len(learned) :] == ours["labels"][-len(learned) :] == learned
    assert tokenizer.decode(learned).strip().startswith("30 litres.")
    assert set(ours["labels"][: -len(learned)]) == {-100}


THOUGHT = "Six pails of <think>5</think> litres.\n\nSo 30."


@pytest.mark.parametrize(
    ("template", "enable", "kept"),
    [
        ("qwen3", True, True),
        ("qwen3", None, True),
        ("qwen3", False, False),
        ("gpt_oss", True, True),
        ("glm4_7", True, True),
        ("llama3", True, False),
    ],
)
def test_a_thought_that_was_kept_is_learned_as_llamafactory_learns_thoughts(
    template,
    enable,
    kept,
    tmp_path,
    tiny_llama,
    logged,  # noqa: F811
    monkeypatch,
):
    from llamafactory.data.template import TEMPLATES

    for name in (template, f"aft_{template}"):
        monkeypatch.setattr(TEMPLATES[name], "enable_thinking", True)  # put back
    begins, ends = TEMPLATES[template].thought_words
    rows = [ROW | {"aggregation_thought": text} for text in (THOUGHT, None, " ")]
    write_dataset(tmp_path, "drafts", rows)
    tokenizer, (ours, *without) = tokenize(
        tmp_path, "drafts", tiny_llama, template=f"aft_{template}", enable_thinking=enable
    )
    markers = tokenizer_markers(tokenizer, f"{begins}{ends}")
    stock = to_sharegpt(record_from_row(ROW | {"aggregation_thought": THOUGHT}), PAPER, markers)
    answer = stock["conversations"][-1]
    thought = markers.sanitise(THOUGHT)
    assert answer["value"] == f"<think>\n{thought}\n</think>\n\n30 litres."
    answer["value"] = f"{begins}{thought}{ends}30 litres." if kept else "30 litres."
    write_dataset(tmp_path, "stock", [stock], formatting="sharegpt")
    _, (own,) = tokenize(
        *(tmp_path, "stock", tiny_llama),
        template=template,
        enable_thinking=enable,
        mask_history=True,
    )
    assert ours["input_ids"] == own["input_ids"]
    learned = trained_ids(ours)
    assert learned == own["labels"][-len(learned) :]
    assert (thought.split("\n")[-1] in tokenizer.decode(learned)) == kept
    told = [line for line in logged if "1 of 3 rows of data set 'drafts.jsonl' bring a" in line]
    assert bool(told) != kept
    for row in without:
        assert "30 litres." in tokenizer.decode(trained_ids(row))
        assert row["labels"] == without[0]["labels"]

"""The plugin in LLaMA-Factory's standard engine: options, fitting, errors.

Run: pytest tests/plugin/test_plugin_v0.py
"""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import demo_rows
from llamafactory_tools import prompt_ids, tokenize, trained_ids, write_dataset

from aft_factory.errors import UsageError
from aft_factory.plugin import account
from aft_factory.plugin.options import parse_entry
from aft_factory.plugin.templates import aggregator_of
from aft_factory.plugin.v0 import template_problem

ROW = {"query": "How many pails?", "proposals": ["alpha", "beta", "gamma"], "aggregation": "Six."}


@pytest.fixture
def logged():
    """The lines that LLaMA-Factory logs during a test."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("llamafactory")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def prompts(folder, model, **entry):
    """Tokenize ROW under a data set entry and return the prompt as text."""
    write_dataset(folder, "drafts", [entry.pop("row", ROW)], **entry)
    tokenizer, (row,) = tokenize(folder, "drafts", model)
    assert tokenizer.decode(trained_ids(row)) == "Six.<|eot_id|>"
    return tokenizer.decode(prompt_ids(row))


def test_options_reach_the_prompt_past_the_cache(tmp_path, tiny_llama):
    assert "models:\n1. alpha\n2. beta\n3. gamma<|eot_id|>" in prompts(tmp_path, tiny_llama)
    two = prompts(tmp_path, tiny_llama, aggregation={"max_proposals": 2, "template": "moa"})
    assert "open-source models" in two
    assert two.count("\n2. beta<|eot_id|>") == 1
    shuffled = {
        prompts(tmp_path, tiny_llama, aggregation={"shuffle_proposals": True, "seed": s})
        for s in range(9)
    }
    assert 1 < len(shuffled) <= 6
    plain = prompts(tmp_path, tiny_llama, aggregation={"ablation": "without_proposals"})
    assert plain == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow many pails?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_columns_can_be_renamed(tmp_path, tiny_llama):
    row = {
        "sys": "Be brief.",
        "ask": "How many?",
        "drafts": [{"text": "alpha", "model": "m"}],
        "best": "Six.",
    }
    columns = {"query": "ask", "system": "sys", "proposals": "drafts", "aggregation": "best"}
    text = prompts(tmp_path, tiny_llama, row=row, columns=columns)
    assert "Be brief.\n\nYou have been provided" in text
    assert "\n1. alpha<|eot_id|>" in text


def told(logged):
    """What the plugin said of rows."""
    return [line for line in logged if line.startswith(("aft-factory: left", "aft-factory: short"))]


STREAMED = {"streaming": True, "max_steps": 1, "dataloader_num_workers": 1}


@pytest.mark.parametrize("options", [{}, {"packing": True}, STREAMED])
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"aggregation": None}, "aggregation: missing or empty"),
        ({"query": ""}, "query: the query is empty"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_left_out_and_counted(
    wrong, why, options, tmp_path, tiny_llama, logged, monkeypatch
):
    write_dataset(tmp_path, "drafts", [ROW, ROW, ROW, ROW | wrong, ROW])
    at_exit = []
    monkeypatch.setattr(account, "_at_exit", at_exit.append)
    options = {"cutoff_len": 1000} | options
    tokenizer, rows = tokenize(tmp_path, "drafts", tiny_llama, **options)
    text = "".join(tokenizer.decode(row["input_ids"]) for row in rows)
    assert text.count("How many pails?") == text.count("Six.<|eot_id|>") == 4
    if "streaming" in options:  # rows are made while they are trained on: told at the end
        assert told(logged) == []
        at_exit[-1]()
    [line] = told(logged)
    column = why.partition(":")[0]
    assert f"left out 1 of 5 rows because of their {column}. The first: data set" in line
    assert f"'drafts.jsonl', row 4, column {why}" in line
    assert not any("Dropped" in line for line in logged)


@pytest.mark.parametrize("packing", [False, True])
def test_what_several_workers_did_in_many_batches_is_told_once(
    packing, tmp_path, tiny_llama, logged
):
    long, bad = ROW | {"proposals": ["word " * 300] * 2}, ROW | {"aggregation": None}
    endless = ROW | {"query": "very long " * 300}
    write_dataset(tmp_path, "drafts", [ROW, long, bad, ROW, endless, long, bad, ROW, bad] * 3)
    write_dataset(tmp_path, "more", [ROW, long])
    options = {"cutoff_len": 400, "preprocessing_num_workers": 3, "preprocessing_batch_size": 2}
    options |= {"packing": packing}
    _, rows = tokenize(tmp_path, "drafts,more", tiny_llama, **options)
    assert len(rows) == 17 or packing
    lines = told(logged)
    limit = 399 if packing else 400  # LLaMA-Factory's own, which packs one token less
    cut = [1015, 6090] if packing else [1013, 6078]
    assert [line.partition(" tokens")[0] for line in lines] == [
        f"aft-factory: shortened 12 proposals in 6 of 27 rows to fit cutoff_len {limit} ({cut[1]}",
        "aft-factory: left out 9 of 27 rows because of their aggregation. The first: data set "
        "'drafts.jsonl', row 3, column aggregation: missing or empty, nothing to train on; "
        "aggregate first",
        f"aft-factory: left out 3 of 27 rows that do not fit cutoff_len {limit} even with short "
        "proposals; raise cutoff_len to keep them. The first: data set 'drafts.jsonl', row 5 "
        "('very long very long very long very long very long very long '): needs 1110",
        f"aft-factory: shortened 2 proposals in 1 of 2 rows to fit cutoff_len {limit} ({cut[0]}",
    ]
    assert not Path(os.environ[account.FOLDER]).exists()  # a training that is killed leaves none
    logged.clear()
    tokenize(tmp_path, "drafts,more", tiny_llama, **options)  # from LLaMA-Factory's cache
    assert told(logged) == []


def test_a_data_set_of_which_nothing_can_be_trained_on_is_one_error(tmp_path, tiny_llama):
    write_dataset(tmp_path, "good", [ROW])
    write_dataset(tmp_path, "drafts", [ROW | {"aggregation": None}, ROW | {"query": ""}])
    message = (
        "data set 'drafts.jsonl': none of its 2 rows can be trained on. The first: row 1, column "
        "aggregation: missing or empty"
    )
    for names in ("drafts", "good,drafts"):
        with pytest.raises(UsageError, match=message):
            tokenize(tmp_path, names, tiny_llama)


def test_a_missing_column_is_named_with_those_there(tmp_path, tiny_llama):
    write_dataset(tmp_path, "drafts", [ROW], columns={"proposals": "drafts"})
    with pytest.raises(
        UsageError, match=r"row 1, column drafts: no such column; the row has: query, proposals"
    ):
        tokenize(tmp_path, "drafts", tiny_llama)


def test_what_was_streamed_is_told_at_the_end_of_the_process():
    code = """if True:
        import os
        from aft_factory.plugin import account
        batch = account.Account(rows=3)
        batch.leave_out("query", 2, "row 2, column query: the query is empty")
        with account.told_once(print, 9, streaming=True):
            account.begin()
            account.note({"drafts": batch})  # rows that are looked at only
        account.note({"drafts": batch})
        print(os.environ[account.FOLDER], flush=True)
        if os.fork() == 0:  # a worker
            account.note({"drafts": batch})
            raise SystemExit
        os.wait()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    folder, *lines = done.stdout.splitlines()
    assert lines == [
        "aft-factory: left out 2 of 6 rows because of their query. The first: data set 'drafts', "
        "row 2, column query: the query is empty (Streamed: counted as often as they were read.)"
    ]
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"aggregation": {"tempalte": "moa"}},
            r"aggregation.tempalte: unknown option; did you mean 'template'",
        ),
        (
            {"aggregation": {"max_proposals": "5"}},
            r"max_proposals: expected a number from 1, got '5'",
        ),
        ({"columns": {"response": "x"}}, r"columns: unknown field 'response'"),
    ],
)
def test_a_wrong_option_is_one_error_with_data_set_and_key(entry, message, tmp_path, tiny_llama):
    write_dataset(tmp_path, "drafts", [ROW], **entry)
    with pytest.raises(UsageError, match=f"data set 'drafts.jsonl': {message}"):
        tokenize(tmp_path, "drafts", tiny_llama)


def test_fitting_can_be_turned_off_and_says_what_it_did(tmp_path, tiny_llama, logged):
    rows = demo_rows()[:10]
    write_dataset(tmp_path, "drafts", rows)
    tokenizer, fitted = tokenize(tmp_path, "drafts", tiny_llama, cutoff_len=600)
    assert any("aft-factory: shortened" in line for line in logged)
    assert all(
        row["query"] in tokenizer.decode(ours["input_ids"])
        for row, ours in zip(rows, fitted, strict=True)
    )
    write_dataset(tmp_path, "drafts", rows, aggregation={"fit": False})
    tokenizer, cut = tokenize(tmp_path, "drafts", tiny_llama, cutoff_len=600)
    lost = [
        row
        for row, theirs in zip(rows, cut, strict=True)
        if row["query"] not in tokenizer.decode(theirs["input_ids"])
    ]
    assert len(lost) > 5  # what LLaMA-Factory does on its own


def test_rows_that_cannot_fit_are_left_out_with_their_numbers(tmp_path, tiny_llama, logged):
    write_dataset(tmp_path, "drafts", [ROW, ROW | {"query": "very long " * 300}, ROW])
    for packing in (False, True):
        tokenizer, rows = tokenize(tmp_path, "drafts", tiny_llama, cutoff_len=400, packing=packing)
        text = " ".join(tokenizer.decode(row["input_ids"]) for row in rows)
        assert (text.count("How many pails?"), text.count("very long")) == (2, 0)
        assert any("left out 1 of 3 rows that do not fit cutoff_len 400" in line for line in logged)


def test_rows_with_and_without_proposals_mix_across_writer_batches(tmp_path, tiny_llama):
    write_dataset(tmp_path, "drafts", [ROW | {"proposals": []}] * 1001 + [ROW])
    tokenizer, rows = tokenize(tmp_path, "drafts", tiny_llama)
    assert len(rows) == 1002
    assert "alpha" not in tokenizer.decode(rows[0]["input_ids"])
    assert "alpha" in tokenizer.decode(rows[-1]["input_ids"])


def test_a_row_without_proposals_that_is_too_long_is_left_out_too(tmp_path, tiny_llama, logged):
    long = ROW | {"query": "very long " * 300, "proposals": []}
    write_dataset(tmp_path, "drafts", [ROW, long])
    _, rows = tokenize(tmp_path, "drafts", tiny_llama, cutoff_len=400)
    assert len(rows) == 1
    assert any("left out 1 of 2 rows" in line for line in logged)


def test_mixing_with_another_data_set_leaves_that_one_alone(tmp_path, tiny_llama):
    other = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
    write_dataset(tmp_path, "other", [other], formatting="sharegpt")
    write_dataset(tmp_path, "drafts", [ROW])
    tokenizer, rows = tokenize(tmp_path, "drafts,other", tiny_llama, cutoff_len=300)
    assert "alpha" in tokenizer.decode(rows[0]["input_ids"])
    assert tokenizer.decode(trained_ids(rows[1])) == "Hi<|eot_id|>"


def test_templates_tell_their_aggregator_prompt():
    assert [aggregator_of(name) for name in ("aft_llama3", "aft_mistral_moa", "llama3", None)] == [
        "paper",
        "moa",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("template", "aggregation", "words"),
    [
        ("aft_llama3", {}, None),
        (
            "aft_llama3",
            {"template": "release"},
            "trains on the aggregator prompt 'release', but the chat template of 'aft_llama3' will use "
            "'paper' at inference; make the two the same (template: aft_llama3_release, or the data "
            """set's "aggregation": {"template": "paper"}), or answer by """
            "`aft run --template release`.",
        ),
        (
            "aft_llama3_moa",
            {},
            '(template: aft_llama3, or the data set\'s "aggregation": {"template": "moa"}), or '
            "answer by `aft run --template paper`.",
        ),
        (
            "llama3",
            {},
            "trains under the template 'llama3', whose chat template takes no proposals; template: "
            "aft_llama3 encodes the same and exports one that does.",
        ),
        ("llama3", {"template": "moa"}, "template: aft_llama3_moa encodes the same"),
        (
            "llama3",
            {"template": "{own}"},
            "takes no proposals; answer by `aft run --template {own}`, which puts them into the prompt "
            "itself.",
        ),
        (
            "aft_llama3",
            {"template": "{own}"},
            'make the two the same (the data set\'s "aggregation": {{"template": "paper"}}), or '
            "answer by `aft run --template {own}`.",
        ),
        ("llama3", {"ablation": "without_proposals"}, None),  # there are none in a prompt
    ],
)
def test_a_template_that_does_not_fit_the_data_set_is_told_with_what_mends_it(
    tmp_path, tiny_llama, logged, template, aggregation, words
):
    own = tmp_path / "mine.jinja"
    own.write_text("{% for p in proposals %}{{ p }}\n{% endfor %}")
    if aggregation.get("template") == "{own}":
        aggregation, words = {"template": str(own)}, words.format(own=own)
    write_dataset(tmp_path, "drafts", [ROW], aggregation=aggregation)
    tokenize(tmp_path, "drafts", tiny_llama, template=template)
    told = [line for line in logged if "aft-factory: data set 'drafts.jsonl' trains " in line]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]


@pytest.mark.parametrize("asked", ["mine.jinja", "{folder}/mine.jinja", "copy.jinja"])
def test_an_aggregator_prompt_is_the_same_by_its_text_whatever_its_path(
    asked, tmp_path, tiny_llama, logged, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "copy"):
        (tmp_path / f"{name}.jinja").write_text("{% for p in proposals %}{{ p }}\n{% endfor %}")
    aggregation = {"template": asked.format(folder=tmp_path)}
    write_dataset(tmp_path, "drafts", [ROW], aggregation=aggregation)
    tokenize(tmp_path, "drafts", tiny_llama, template="aft_llama3:./mine.jinja")
    assert not [line for line in logged if "trains on" in line]
    (tmp_path / "mine.jinja").write_text("{{ proposals }}")
    assert "will use './mine.jinja'" in template_problem("aft_llama3:./mine.jinja", "copy.jinja")


AUGMENTED = [
    {"id": f"r{i}", "query": f"q{i}", "proposals": list("abcd"), "aggregation": "Six."}
    for i in range(300)
]


def widths(folder, model, rows, **aggregation):
    """How many proposals stand in each row's prompt, by query, as LLaMA-Factory trains on it."""
    write_dataset(folder, "drafts", rows, aggregation=aggregation)
    tokenizer, trained = tokenize(folder, "drafts", model)
    texts = [tokenizer.decode(prompt_ids(row)) for row in trained]
    queries = [re.search(r"user<\|end_header_id\|>\s+(q\d+)", text)[1] for text in texts]
    counts = [len(re.findall(r"^\d\. [abcd]", text, re.MULTILINE)) for text in texts]
    return dict(zip(queries, counts, strict=True))


def test_min_proposals_gives_rows_a_width_by_seed_and_id_alone(tmp_path, tiny_llama):
    found = widths(tmp_path, tiny_llama, AUGMENTED, min_proposals=2)
    counts = Counter(found.values())
    assert set(counts) == {2, 3, 4}
    assert min(counts.values()) >= 60
    assert widths(tmp_path, tiny_llama, AUGMENTED[::-1], min_proposals=2) == found
    assert widths(tmp_path, tiny_llama, AUGMENTED, min_proposals=2, seed=1) != found


def test_mix_plain_turns_a_share_of_rows_by_seed_and_id_alone(tmp_path, tiny_llama):
    found = widths(tmp_path, tiny_llama, AUGMENTED, mix_plain=0.25)
    counts = Counter(found.values())
    assert set(counts) == {0, 4}
    assert 50 <= counts[0] <= 100
    assert widths(tmp_path, tiny_llama, AUGMENTED[::-1], mix_plain=0.25) == found


@pytest.mark.parametrize("ablation", ["sft", "without_proposals"])
def test_an_ablation_leaves_rows_out_that_were_mixed_in_plain(
    tmp_path, tiny_llama, ablation, logged
):
    rows = [ROW | {"id": "a", "reference": "Six."}]
    rows += [ROW | {"id": "a#plain", "proposals": [], "reference": "Six."}]
    write_dataset(tmp_path, "drafts", rows)
    assert len(tokenize(tmp_path, "drafts", tiny_llama)[1]) == 2
    write_dataset(tmp_path, "drafts", rows, aggregation={"ablation": ablation})
    assert len(tokenize(tmp_path, "drafts", tiny_llama)[1]) == 1
    [line] = told(logged)
    assert "row 2, column id: 'a#plain' is a row that mix_plain" in line


def test_sft_trains_on_the_reference_or_the_best_scored_proposal(tmp_path, tiny_llama, logged):
    rows = [
        ROW | {"reference": "Given."},
        ROW | {"reference": " ", "scores": [0.5, None, 2.0]},
        {"query": "How many?", "proposals": ["low", "high"], "scores": [1, 2]},
    ]
    write_dataset(tmp_path, "drafts", rows, aggregation={"ablation": "sft"})
    tokenizer, trained = tokenize(tmp_path, "drafts", tiny_llama)
    answers = [tokenizer.decode(trained_ids(row)) for row in trained]
    assert answers == ["Given.<|eot_id|>", "gamma<|eot_id|>", "high<|eot_id|>"]
    assert [tokenizer.decode(prompt_ids(row)) for row in trained] == [
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{row['query']}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        for row in rows
    ]
    write_dataset(tmp_path, "drafts", [ROW], aggregation={"ablation": "sft"})
    with pytest.raises(UsageError, match=r"row 1, column reference: missing or empty"):
        tokenize(tmp_path, "drafts", tiny_llama)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix_plain": 1.5}, "mix_plain: expected a share from 0 to 1, got 1.5"),
        ({"min_proposals": 0}, "min_proposals: expected a number from 1, got 0"),
        ({"min_proposals": 4, "max_proposals": 3}, "min_proposals: 4 is above max_proposals"),
        ({"mix_plain": 0.5, "ablation": "sft"}, "mix_plain: the ablation 'sft' has no proposals"),
        ({"ablation": "stf"}, "ablation: expected 'none', 'without_proposals' or 'sft'"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        parse_entry("aug", {"aggregation": options})

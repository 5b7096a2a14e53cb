"""Data construction: sample and aggregate, each from rows to records, and resumed."""

import json

import pytest

from aft_factory.aggregate import main as aggregate
from aft_factory.convert.__main__ import main as convert
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.records import record_from_row
from aft_factory.sample import main as sample
from aft_factory.urial import STOP, render


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(path):
    return [record_from_row(json.loads(line)) for line in path.read_text().splitlines()]


PROMPTS = [{"id": f"p{i}", "query": f"What is {i}+{i}?", "topic": "sums"} for i in range(5)]


@pytest.fixture
def scripted(monkeypatch):
    """Let `--scripted` answer by a function of the request; returns the requests asked."""
    asked = []

    def use(script):
        def engine(*given, **options):
            made = ScriptedEngine(*(given or (script,)), model=options["model"])
            made.requests = asked
            return made

        monkeypatch.setattr("aft_factory.stage.engines.ScriptedEngine", engine)
        return asked

    return use


def test_sample_asks_a_base_model_as_the_paper_does(scripted, tmp_path):
    asked = scripted(lambda r: [f"Answer {i}.\n```\n\n" for i in range(r.n)])
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    assert sample([source, "--output", str(output), "--scripted", "--quiet"]) == 0
    assert [request.prompt for request in asked] == [
        render("inst_1k_v4", [{"role": "user", "content": row["query"]}]) for row in PROMPTS
    ]
    sampling = asked[0].sampling
    assert (asked[0].n, sampling.temperature, sampling.top_k, sampling.top_p) == (10, 1.0, 50, 0.95)
    assert sampling.stop == STOP
    [first, *_] = records(output)
    assert first.proposals == [f"Answer {i}." for i in range(10)]
    assert (first.id, first.meta["topic"]) == ("p0", "sums")


def test_sample_flags_what_was_cut_off_and_drops_what_stays_empty(scripted, tmp_path):
    texts = ["Whole.\n```\n\n", "Cut off in the", "\n```\n"]
    scripted(lambda r: texts[: r.n] if r.n == 3 else ["```"])
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl"
    flags = ["--samples", "3", "--scripted", "--quiet"]
    assert sample([source, "--output", str(output), *flags]) == 0
    [record] = records(output)
    assert record.proposals == ["Whole.", "Cut off in the"]
    assert record.meta["sampling"]["finish_reasons"] == ["stop", "length"]


def test_sample_asks_an_instruct_model_by_chat(scripted, tmp_path):
    asked = scripted(lambda r: ["```python\nx\n```"] * r.n)
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl"
    flags = ["--chat", "--samples", "2", "--scripted", "--quiet"]
    assert sample([source, "--output", str(output), *flags]) == 0
    assert asked[0].prompt == [{"role": "user", "content": "What is 0+0?"}]
    assert asked[0].sampling.stop == ()
    assert records(output)[0].proposals == ["```python\nx\n```"] * 2


def test_control_tokens_in_a_query_are_broken_in_the_text_to_complete(scripted, tmp_path):
    asked = scripted(lambda r: ["A.\n```\n"] * r.n)
    source = write_rows(tmp_path / "in.jsonl", [{"query": "What does <|eot_id|> mean?"}])
    output = tmp_path / "out.jsonl"
    assert sample([source, "--output", str(output), "--scripted", "--quiet"]) == 0
    assert "What does <\u200b|eot_id|> mean?" in asked[0].prompt
    assert records(output)[0].messages[0]["content"] == "What does <|eot_id|> mean?"


def test_sample_again_asks_nothing(scripted, tmp_path):
    asked = scripted(lambda r: ["A.\n```\n"] * r.n)
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    command = [source, "--output", str(output), "--scripted", "--quiet"]
    assert sample(command) == 0
    first = output.read_bytes()
    assert sample([*command, "--overwrite"]) == 0
    assert len(asked) == 5
    assert output.read_bytes() == first


DRAFTS = [
    "It is four. " * 20,
    "I think that the sum of both of these numbers is four in the end. " * 5,
]
RECORDS = [{"id": f"r{i}", "query": f"Sum {i}?", "proposals": DRAFTS} for i in range(4)]


def test_aggregate_asks_with_the_aggregator_prompt_and_flags_what_it_finds(
    scripted, tmp_path, capsys
):
    from aft_factory.prompts import load_template

    texts = {
        "Sum 0?": "A fresh and better answer: four.",
        "Sum 1?": DRAFTS[0],
        "Sum 2?": "Based on the responses provided above, the answer is four.",
        "Sum 3?": "Fine as it is.",
    }
    asked = scripted(lambda r: [texts[r.prompt[-1]["content"]]])
    source, output = write_rows(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    command = [source, "--output", str(output), "--scripted", "--quiet"]
    assert aggregate(command) == 0
    assert asked[0].prompt == [
        {"role": "system", "content": load_template("paper").render(DRAFTS)},
        {"role": "user", "content": "Sum 0?"},
    ]
    made = records(output)
    assert [record.aggregation for record in made] == list(texts.values())
    assert [record.meta["aggregating"]["gates"] for record in made] == [
        [],
        ["copy"],
        ["mentions_responses"],
        [],
    ]
    printed = capsys.readouterr().out
    assert "gate copy: 1 rows flagged" in printed
    dropping = [*command, "--overwrite", "--drop", "copy", "mentions_responses"]
    assert aggregate(dropping) == 0
    assert [record.id for record in records(output)] == ["r0", "r3"]
    assert len((tmp_path / "out.rejects.jsonl").read_text().splitlines()) == 2
    assert len(asked) == 4  # other gates ask nothing again


def test_a_pseudo_aggregation_never_saw_the_proposals(scripted, tmp_path):
    asked = scripted(lambda r: ["Four."])
    source, output = write_rows(tmp_path / "in.jsonl", RECORDS[:1]), tmp_path / "out.jsonl"
    assert aggregate([source, "--output", str(output), "--pseudo", "--scripted", "--quiet"]) == 0
    assert asked[0].prompt == [{"role": "user", "content": "Sum 0?"}]
    [record] = records(output)
    assert (record.proposals, record.aggregation) == (DRAFTS, "Four.")
    assert record.meta["aggregating"]["pseudo"] is True


def test_an_unknown_gate_is_refused(tmp_path, capsys):
    source = write_rows(tmp_path / "in.jsonl", RECORDS)
    output = str(tmp_path / "out.jsonl")
    assert aggregate([source, "--output", output, "--scripted", "--drop", "copies"]) == 2
    assert "did you mean 'copy'?" in capsys.readouterr().err


ABLATION = [
    {"id": f"a{i}", "query": f"q{i}", "proposals": ["one", "two", "three"], "aggregation": "best"}
    for i in range(200)
]


def converted(tmp_path, rows, *flags):
    source, output = write_rows(tmp_path / "abl.jsonl", rows), tmp_path / "conv.jsonl"
    command = ["proposals", source, "--output", str(output), "--overwrite", "--quiet"]
    assert convert([*command, *flags]) == 0
    return records(output) if "--target" not in flags else output.read_text().splitlines()


def test_mix_plain_adds_rows_without_proposals(tmp_path, capsys):
    made = converted(tmp_path, ABLATION, "--mix-plain", "0.2")
    added = [record for record in made if record.id.endswith("#plain")]
    assert "200 written" in capsys.readouterr().out
    assert 20 <= len(added) <= 60
    assert all(record.proposals == [] and record.aggregation == "best" for record in added)
    assert [r.id for r in made if not r.id.endswith("#plain")] == [row["id"] for row in ABLATION]


def test_widths_vary_by_seed_and_id_alone(tmp_path):
    widths = [len(r.proposals) for r in converted(tmp_path, ABLATION, "--min-proposals", "1")]
    assert {width: widths.count(width) > 30 for width in (1, 2, 3)} == {1: True, 2: True, 3: True}
    again = converted(tmp_path, ABLATION[::-1], "--min-proposals", "1")
    assert [len(r.proposals) for r in again] == widths[::-1]


def test_without_proposals_is_the_ablation(tmp_path):
    assert all(r.proposals == [] for r in converted(tmp_path, ABLATION, "--without-proposals"))


def test_the_best_scored_proposal_is_the_reference_of_the_sft_baseline(tmp_path):
    rows = [
        {"query": "a", "proposals": ["low", "high", "mid"], "scores": [0.1, 2.0, 1.0]},
        {"query": "b", "proposals": ["x", " "], "scores": [0.1, 5.0]},
        {"query": "c", "proposals": ["x", "y"], "scores": [1.0, 0.5], "reference": "given"},
    ]
    lines = converted(tmp_path, rows, "--target", "sft")
    answers = [json.loads(line)["conversations"][-1]["value"] for line in lines]
    assert answers == ["high", "x", "given"]

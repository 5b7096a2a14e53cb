"""Data construction: sample and aggregate, each from rows to records, and resumed."""

import json
from dataclasses import replace

import pytest

from aft_factory.aggregate.__main__ import main as aggregate
from aft_factory.convert.__main__ import main as convert
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.rank.__main__ import main as rank
from aft_factory.records.record import record_from_row
from aft_factory.sample.__main__ import main as sample
from aft_factory.sample.urial import STOP, render


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(path):
    return [record_from_row(json.loads(line)) for line in path.read_text().splitlines()]


PROMPTS = [{"id": f"p{i}", "query": f"What is {i}+{i}?", "topic": "sums"} for i in range(5)]


@pytest.fixture
def scripted(monkeypatch):
    """Let `--scripted` answer by a function of the request; returns the requests asked.

    Texts in `cut` end by max_tokens; of each prompt so many tokens were `cached`.
    """
    asked = []

    def use(script, *, cut=(), cached=0):
        class Engine(ScriptedEngine):
            async def sample(self, request):
                reply = await super().sample(request)
                completions = tuple(
                    replace(c, finish_reason="length") if c.text in cut else c
                    for c in reply.completions
                )
                usage = replace(reply.usage, cached=cached)
                return replace(reply, completions=completions, usage=usage)

        def engine(*given, **options):
            made = Engine(*(given or (script,)), model=options["model"])
            made.requests = asked
            return made

        monkeypatch.setattr("aft_factory.stage.engines.ScriptedEngine", engine)
        return asked

    return use


@pytest.fixture
def served(monkeypatch):
    """Let `--base-url` be a server of this name, and `--model` load into this process."""

    def use(script, name="served"):
        async def server(settings, asked, model, context):
            return ScriptedEngine(script, model=model or name)

        async def start(model, **options):
            engine = ScriptedEngine(script, model=f"/resolved/{model}#digest+digest")
            engine.max_sequences = 8
            return engine

        monkeypatch.setattr("aft_factory.stage.engines._server", server)
        monkeypatch.setattr("aft_factory.engines.vllm_engine.VllmEngine.start", start)

    return use


def summary(output):
    return json.loads(output.with_name("out.summary.json").read_text())


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


def test_sample_tells_of_each_draft_how_it_ended_and_what_is_wrong_with_it(
    scripted, tmp_path, capsys
):
    texts = ["Whole.\n```\n\n", "Cut off in the", "Ended.", "\n```\n", "Six.\n```\n\nI hope"]
    scripted(lambda r: texts if r.n == 5 else ["```"], cut=("Cut off in the", texts[4]))
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS[:2]), tmp_path / "out.jsonl"
    flags = ["--samples", "5", "--scripted", "--quiet"]
    assert sample([source, "--output", str(output), *flags]) == 0
    [record, _] = records(output)
    assert record.proposals == ["Whole.", "Cut off in the", "Ended.", "Six."]
    about = record.meta["sampling"]
    assert about["finish_reasons"] == ["stop", "length", "stop", "stop"]
    assert about["problems"] == [None, "cut off", "no closing fence", None]
    # Empty at every attempt.
    assert [(e["slot"], e["event"]) for e in about["events"]] == [
        (1, "truncated"),
        *[(3, "empty"), (3, "resampled")] * 2,
        (3, "empty"),
        (3, "dropped"),
    ]
    # All drafts are counted, not one of each query, and each for its own cause.
    assert summary(output)["finish_reasons"] == {"stop": 6, "length": 2}
    assert summary(output)["problems"] == {"cut off": 2, "no closing fence": 2}
    printed = capsys.readouterr().out
    assert "warning: max_tokens cut off 2 drafts\n" in printed
    assert "2 drafts without a closing fence" in printed
    assert "final answers" not in printed


@pytest.mark.parametrize("flags", [[], ["--chat"]])
def test_a_dry_run_of_sample_reckons_with_whole_drafts(scripted, tmp_path, capsys, flags):
    asked = scripted(None)
    source = write_rows(tmp_path / "in.jsonl", PROMPTS)
    policies = ["--on-truncated", "resample", "--on-empty", "resample"]
    flags = [*flags, *policies, "--model", "m", "--dry-run", "--quiet"]
    assert sample([source, *flags]) == 0
    assert [request.n for request in asked] == [10] * 5
    printed = capsys.readouterr().out
    assert "drafts:" not in printed
    assert "prefix cache" not in printed


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--base-url", "http://x/v1"], "served"),
        (["--base-url", "http://x/v1", "--model", "given"], "given"),
        (["--model", "folder/base"], "folder/base"),
        (["--model", "base", "--adapter", "lora"], "base+lora"),
        (["--scripted"], "scripted"),
    ],
)
def test_the_model_is_recorded_by_the_name_people_know(served, tmp_path, flags, name):
    served(lambda r: ["Four.\n```\n\n"] * r.n)
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl"
    command = [source, "--output", str(output), *flags, "--quiet"]
    assert sample([*command, "--samples", "2"]) == 0
    [sampled] = records(output)
    assert sampled.meta["sampling"]["model"] == name
    assert sampled.proposal_models == [name, name]
    made = tmp_path / "made.jsonl"
    assert aggregate([str(output), "--output", str(made), *flags, "--quiet"]) == 0
    assert records(made)[0].meta["aggregating"]["model"] == name
    # Nothing is opened to export.
    assert sample([*command, "--samples", "2", "--export", "--overwrite"]) == 0
    assert records(output) == [sampled]


@pytest.mark.parametrize(
    ("cached", "rate", "line"),
    [
        (0, 0.0, "prefix cache: 0% of the prompts' tokens\n"),
        (100, 0.5, "prefix cache: 50% of the prompts' tokens\n"),
        (None, None, None),
    ],
)
def test_the_rate_of_the_prefix_cache_is_told_where_it_is_known(
    scripted, tmp_path, capsys, cached, rate, line
):
    scripted(lambda r: ["A."] * r.n, cached=cached)
    query = "x" * 800  # 200 tokens
    source, output = write_rows(tmp_path / "in.jsonl", [{"query": query}]), tmp_path / "out.jsonl"
    assert sample([source, "--output", str(output), "--chat", "--scripted", "--quiet"]) == 0
    assert summary(output)["prefix_cache"] == rate
    printed = capsys.readouterr().out
    assert line in printed if line else "prefix cache" not in printed


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


def test_what_sampling_tells_of_drafts_follows_those_that_rank_keeps(scripted, tmp_path):
    texts = ["Short.\n```\n", "The longest of all", "Middling.\n```\n"]
    scripted(lambda r: texts if r.n == 3 else ["The longest of all"], cut=("The longest of all",))
    source, output = write_rows(tmp_path / "in.jsonl", PROMPTS[:1]), tmp_path / "out.jsonl"
    flags = ["--samples", "3", "--on-truncated", "resample", "--resamples", "1", "--quiet"]
    assert sample([source, "--output", str(output), "--scripted", *flags]) == 0
    [sampled] = records(output)
    events = ["truncated", "resampled", "truncated"]
    assert [event["event"] for event in sampled.meta["sampling"]["events"]] == events
    kept = tmp_path / "kept.jsonl"
    command = [str(output), "--output", str(kept), "--scripted", "--top-k", "2", "--quiet"]
    assert rank(command) == 0
    [ranked] = records(kept)
    assert ranked.proposals == ["The longest of all", "Middling."]
    assert ranked.meta["sampling"]["finish_reasons"] == ["length", "stop"]
    assert ranked.meta["sampling"]["problems"] == ["cut off", None]
    assert ranked.meta["sampling"]["events"] == sampled.meta["sampling"]["events"]


DRAFTS = [
    "It is four. " * 20,
    "I think that the sum of both of these numbers is four in the end. " * 5,
]
RECORDS = [{"id": f"r{i}", "query": f"Sum {i}?", "proposals": DRAFTS} for i in range(4)]


def test_aggregate_asks_with_the_aggregator_prompt_and_flags_what_it_finds(
    scripted, tmp_path, capsys
):
    from aft_factory.prompts.rendering import load_template

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
    assert "gate copy: 1 rows flagged" in capsys.readouterr().out
    flagged = {"copy": 1, "mentions_responses": 1}
    assert summary(output)["gates"] == {"flagged": flagged, "rejected": {}}
    dropping = [*command, "--overwrite", "--drop", "copy", "mentions_responses"]
    assert aggregate(dropping) == 0
    assert "gate copy: 1 rows rejected" in capsys.readouterr().out
    assert summary(output)["gates"] == {"flagged": {}, "rejected": flagged}
    assert [record.id for record in records(output)] == ["r0", "r3"]
    assert len((tmp_path / "out.rejects.jsonl").read_text().splitlines()) == 2
    assert len(asked) == 4  # other gates ask nothing again


@pytest.mark.parametrize("keep", [False, True])
def test_the_thoughts_before_aggregations_are_kept_on_request(keep, scripted, tmp_path):
    texts = ["<think>\nDraft <b>1</b> is right.\n</think>\n\nFour.", "Five.", DRAFTS[0], "Six."]
    scripted(lambda r: [texts[int(r.prompt[-1]["content"][4])]])
    before = [row | {"aggregation_thought": "An older one."} for row in RECORDS]
    source, output = write_rows(tmp_path / "in.jsonl", before), tmp_path / "out.jsonl"
    flags = ["--keep-thoughts"] if keep else []
    assert aggregate([source, "--output", str(output), "--scripted", "--quiet", *flags]) == 0
    made = records(output)
    assert [record.aggregation for record in made] == ["Four.", *texts[1:]]
    thoughts = ["Draft <b>1</b> is right.", "", "", ""] if keep else [None] * 4
    assert [record.aggregation_thought for record in made] == thoughts
    again = [*flags, "--overwrite", "--keep-thoughts"]
    assert aggregate([source, "--output", str(output), "--scripted", "--quiet", *again]) == 0
    assert records(output)[0].aggregation_thought == "Draft <b>1</b> is right."  # no model is asked


def test_empty_and_dropped_aggregations_count_under_their_gates(scripted, tmp_path, capsys):
    texts = {"Sum 0?": " ", "Sum 1?": "Cut", "Sum 2?": "Four.", "Sum 3?": ""}
    scripted(lambda r: [texts[r.prompt[-1]["content"]]], cut=("Cut",))
    source, output = write_rows(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    flags = ["--scripted", "--on-truncated", "drop", "--quiet"]
    assert aggregate([source, "--output", str(output), *flags]) == 0
    gates = {"flagged": {}, "rejected": {"empty": 2, "truncated": 1}}
    assert summary(output)["gates"] == gates
    assert "gate empty: 2 rows rejected\n" in capsys.readouterr().out
    assert [record.id for record in records(output)] == ["r2"]


def test_blank_proposals_do_not_reach_the_strong_model(scripted, tmp_path, capsys):
    from aft_factory.prompts.rendering import load_template

    asked = scripted(lambda r: ["Four."])
    rows = [
        {"id": "a", "query": "Sum?", "proposals": ["first", " \n", "third"]},
        {"id": "b", "query": "Sum?", "proposals": ["", " "]},
    ]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert aggregate([source, "--output", str(output), "--scripted", "--quiet"]) == 0
    assert [request.prompt[0]["content"] for request in asked] == [
        load_template("paper").render(["first", "third"])
    ]
    [record] = records(output)
    assert record.proposals == ["first", " \n", "third"]
    left_out = {"turn": 0, "layer": 0, "slot": 1, "event": "blank proposal left out"}
    assert record.meta["aggregating"]["events"] == [left_out]
    assert "1 x blank proposal left out" in capsys.readouterr().out
    assert "proposals" in (tmp_path / "out.rejects.jsonl").read_text()


def test_what_became_of_an_aggregation_is_in_its_row(scripted, tmp_path):
    scripted(lambda r: ["Four."] if r.seed % 2 else [" "])
    source, output = write_rows(tmp_path / "in.jsonl", RECORDS * 3), tmp_path / "out.jsonl"
    flags = ["--scripted", "--quiet", "--resamples", "9", "--seed", "1"]
    assert aggregate([source, "--output", str(output), *flags]) == 0
    events = [
        [event["event"] for event in record.meta["aggregating"]["events"]]
        for record in records(output)
    ]
    assert ["empty", "resampled"] in [found[:2] for found in events]
    assert {record.meta["aggregating"]["finish_reason"] for record in records(output)} == {"stop"}


def test_rows_tell_the_seed_of_each_stage(scripted, tmp_path):
    scripted(lambda r: ["Four."] * r.n)
    source, drafts = write_rows(tmp_path / "in.jsonl", PROMPTS[:1]), tmp_path / "drafts.jsonl"
    assert sample([source, "--output", str(drafts), "--scripted", "--quiet", "--seed", "7"]) == 0
    made = ["--output", str(tmp_path / "out.jsonl"), "--scripted", "--quiet", "--seed", "8"]
    assert aggregate([str(drafts), *made]) == 0
    [record] = records(tmp_path / "out.jsonl")
    assert [record.meta[stage]["seed"] for stage in ("sampling", "aggregating")] == [7, 8]


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

"""What a run took, and what is written of it later: requests, FLOPs, rows that are alike, exports."""

import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp import web
from asking_tools import command, query, read_lines, runner, write_lines
from flaky_server import serving

from aft_factory.aggregate.__main__ import main as aggregate
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Reply, Usage, joined
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.scoring import Longest
from aft_factory.run.__main__ import main
from aft_factory.stage.totals import Totals, describe

ROWS = [{"id": f"q{i}", "query": f"What is {i}+{i}?"} for i in range(3)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run rows on a script; returns (code, output rows, stdout)."""

    def run(rows, *flags, script=None, output="out.jsonl"):
        source = write_lines(tmp_path / "in.jsonl", rows)
        path = tmp_path / output
        code, out, _ = command(monkeypatch, capsys, script, source, path, *flags)
        return code, read_lines(path) if path.exists() else None, out

    return run


@pytest.fixture
def summary(tmp_path):
    return lambda name="out": json.loads((tmp_path / f"{name}.summary.json").read_text())


# Requests as they were sent


def test_split_samples_are_counted_as_they_are_sent(tmp_path, summary, capsys):
    source = write_lines(tmp_path / "in.jsonl", ROWS[:1])
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--width", "5"]
    with serving() as server:
        flags = ("--layers", "2", "--base-url", server.url, "--split-samples")
        assert main([*argv, *flags, "--dry-run"]) == 0
        [total] = [line for line in capsys.readouterr().out.splitlines() if " all " in line]
        assert total.split()[1:3] == ["11", "11"]
        assert main([*argv, *flags]) == 0
        assert len(server.log) == 11
        assert len(server.probes) == summary()["session"]["requests_tried"] == 1
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("requests: ")]
    words = "before, 1 of one token, for what the server takes"
    assert last == [f"requests: 11 asked, 0 from the journal; {words}"]
    told = summary()
    assert [layer["requests"] for layer in told["layers"]] == [5, 5, 1]
    assert told["total"]["requests"] == told["session"]["requests_asked"] == 11
    assert [session["requests_asked"] for session in told["sessions"]] == [11]


def test_so_are_those_that_a_server_answers_one_by_one(tmp_path, summary):
    source = write_lines(tmp_path / "in.jsonl", ROWS[:1])
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--width", "5"]
    with serving(most_choices=1) as server:
        assert main([*argv, "--layers", "2", "--base-url", server.url]) == 0
        assert len(server.log) == 11
    told = summary()
    assert told["total"]["requests"] == told["session"]["requests_asked"] == 11
    assert [session["requests_asked"] for session in told["sessions"]] == [11]


def test_split_samples_change_no_flops_but_of_the_prompts_that_are_read_again():
    """Appendix C goes by the context of one sample, however many requests carried them."""
    part = Reply.of((Completion("a", tokens=4),), 10, 0, 4)
    usage = joined([part] * 5).usage
    assert (usage.requests, usage.samples, usage.prompt) == (5, 5, 50)
    assert usage.prompt / usage.requests == 10


def test_appendix_c_of_split_samples_is_that_of_others(tmp_path, tiny_llama, capsys):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    told = ("--base-url", "http://nowhere.invalid/v1", "--tokenizer", str(tiny_llama))
    formulas = []
    for more in ((), ("--split-samples",)):
        assert main([str(source), "--dry-run", "--quiet", *told, *more]) == 0
        formulas.append(capsys.readouterr().out.split("tokens computed, ")[1])
    assert formulas[0] == formulas[1]


# FLOPs


def test_the_flops_of_best_of_n_have_the_reward_models(run, summary, tiny_llama, tiny_reward_model):
    best = ("--strategy", "best_of_n", "--width", "3", "--tokenizer", str(tiny_llama))
    run(ROWS, *best, "--reward-model", str(tiny_reward_model))
    told = summary()
    own = ModelShape.load(str(tiny_llama))
    reward = ModelShape.load(str(tiny_reward_model), classifier=True)
    total, read = told["total"], told["reward"]
    assert read["pairs"] == 9
    written = own.flops(total["prompt"] + total["completion"], total["attended"])
    assert told["flops"]["exact"] == written + reward.flops(read["tokens"], read["attended"])
    assert told["flops"]["exact"] > written

    run(ROWS, *best, "--reward-model", str(tiny_reward_model), "--overwrite")  # from the journal
    assert summary()["flops"] == told["flops"]


def test_what_a_reward_model_reads_is_the_tokens_it_scores(tiny_reward_model):
    from aft_factory.engines.transformers_reward import TransformersReward

    reward = TransformersReward.load(str(tiny_reward_model), dtype="float32")
    pairs = [([{"role": "user", "content": "Why?"}], text) for text in ("So.", "So it is. " * 9)]
    lengths = reward.lengths(pairs)
    assert lengths == [len(ids) for ids in reward._encoder.encode(pairs)]
    assert Usage.of_pairs([3, None, 2]) == Usage(2, prompt=5, attended=1 + 2 + 3 + 1 + 2)


def test_a_reward_models_size_is_read_without_a_vocabulary_at_its_end(tiny_reward_model):
    from transformers import AutoModelForSequenceClassification

    real = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    shape = ModelShape.load(str(tiny_reward_model), classifier=True)
    assert shape.parameters == real.num_parameters()


def test_without_the_reward_models_size_no_flops_are_told(run, summary, tiny_llama):
    run(ROWS, "--strategy", "best_of_n", "--tokenizer", str(tiny_llama))  # the longest is best
    assert summary()["flops"]["exact"] is None
    assert summary()["flops"]["appendix_c"] > 0


def test_the_flops_of_moa_are_unknown_where_a_proposers_size_is(run, summary, tiny_llama):
    moa = ("--strategy", "moa", "--tokenizer", str(tiny_llama), "--layers", "1", "--proposers")
    run(ROWS, *moa, "a", str(tiny_llama))
    told = summary()
    assert told["flops"] == {"exact": None, "appendix_c": None}
    assert [(row["model"], row["samples"]) for row in told["models"]] == [
        (None, 3),
        (str(tiny_llama), 3),
        ("a", 3),
    ]
    run(ROWS, *moa, str(tiny_llama), output="known.jsonl")
    told, own = summary("known"), ModelShape.load(str(tiny_llama))
    total = told["total"]
    known = own.flops(total["prompt"] + total["completion"], total["attended"])
    assert told["flops"]["exact"] == known


def test_each_proposer_of_moa_is_counted_by_its_own_size(run, summary, tiny_llama, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=99).save_pretrained(tmp_path / "s")
    small = str(tmp_path / "s")
    moa = ("--strategy", "moa", "--tokenizer", str(tiny_llama), "--layers", "1", "--proposers")
    run(ROWS, *moa, small)
    told = summary()
    shapes = {None: ModelShape.load(str(tiny_llama)), small: ModelShape.load(small)}
    assert told["flops"]["exact"] == sum(
        shapes[row["model"]].flops(row["prompt"] + row["completion"], row["attended"])
        for row in told["models"]
    )


def test_what_a_reward_model_read_of_a_query_that_failed_is_unknown():
    async def score(query, drafts):
        raise EngineError("gone", "retry")

    async def count(query, drafts):
        return [1] * len(drafts)

    async def ask(score):
        one = runner(ScriptedEngine(), strategy="best_of_n", options={"width": 3})
        return await replace(one, score=score, count=count).answer(query())

    failed = asyncio.run(ask(score))
    assert failed.about == "engine"
    assert Usage(**failed.scored) == Usage(requests=3, prompt=None, attended=None)
    sound = asyncio.run(ask(Longest().score_each))
    assert Usage(**sound.scored) == Usage(requests=3, prompt=3, attended=3)


# Rows that are alike


TWO = [{"id": "a", "query": "Why?", "proposals": [text]} for text in ("So.", "Thus.")]


def test_rows_of_equal_id_and_text_with_other_proposals_are_two(run, summary):
    _, rows, _ = run(TWO, "--width", "2", "--layers", "1")
    told = summary()
    assert told["repeated"] == 0
    assert told["total"]["requests"] == told["session"]["requests_asked"] == 4
    assert rows[0]["response"] != rows[1]["response"]
    _, rows, _ = run([TWO[0], TWO[0]], "--width", "2", "--layers", "1", output="equal.jsonl")
    told = summary("equal")
    assert (told["repeated"], rows[0]) == (1, rows[1])
    assert told["total"]["requests"] == told["session"]["requests_asked"] == 2


@pytest.mark.parametrize("flags", [(), ("--pseudo",)])
def test_so_they_are_for_aggregate(tmp_path, summary, flags):
    source = write_lines(tmp_path / "in.jsonl", [*TWO, TWO[0]])
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--scripted", *flags]
    assert aggregate(argv) == 0
    told = summary()
    assert told["repeated"] == 1
    assert told["total"]["requests"] == told["session"]["requests_asked"] == 2


# Exports


def test_an_export_needs_only_input_and_output_and_writes_what_the_run_would_have(run, summary):
    flags = ("--seed", "7", "--strategy", "majority_vote", "--width", "3", "--keep-drafts")
    _, rows, _ = run(ROWS, *flags)
    first = summary()
    code, again, _ = run(ROWS, "--export", "--overwrite")
    assert (code, again) == (0, rows)
    assert again[0]["seed"] == 7
    assert [len(layer["drafts"]) for layer in again[0]["layers"]] == [3]
    assert summary()["settings"] == first["settings"]


def test_a_run_without_limits_of_time_can_be_exported(run):
    _, rows, _ = run(ROWS, "--timeout", "inf")
    assert run(ROWS, "--export", "--overwrite")[:2] == (0, rows)


def test_an_export_needs_no_model_and_no_template(tmp_path, run):
    import shutil

    from conftest import ROOT

    mine = tmp_path / "mine.jinja"
    shutil.copy(ROOT / "templates" / "aggregate" / "moa.jinja", mine)
    _, rows, _ = run(ROWS, "--template", str(mine))
    mine.unlink()
    argv = [str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--export"]
    assert main([*argv, "--overwrite"]) == 0
    assert read_lines(tmp_path / "out.jsonl") == rows


def test_todays_settings_do_not_count_for_an_export_and_that_is_said(run, tmp_path, caplog):
    _, rows, _ = run(ROWS, "--seed", "7", "--keep-drafts", "--width", "2")
    caplog.clear()
    flags = ("--seed", "8", "--no-keep-drafts", "--width", "2", "--strategy", "rsa", "--limit", "1")
    code, again, _ = run(ROWS, "--export", "--overwrite", *flags)
    assert (code, again) == (0, rows)
    told = sorted(record.getMessage().split("settings: ")[1] for record in caplog.records)
    assert told == [
        "keep_drafts is True, not False",
        "limit is None, not 1",
        "seed is 7, not 8",
        "strategy is 'propose_and_aggregate', not 'rsa'",
    ]


def test_an_export_writes_the_run_that_began_last(run, summary):
    first = run(ROWS, "--seed", "1")[1]
    second = run(ROWS, "--seed", "2", "--keep-drafts", "--overwrite")[1]
    assert run(ROWS, "--export", "--overwrite")[1] == second
    run(ROWS, "--seed", "1", "--overwrite")
    assert run(ROWS, "--export", "--overwrite")[1] == first


def test_an_export_of_another_commands_gates_are_that_runs(tmp_path):
    rows = [{"id": "a", "query": "Why?", "proposals": ["So."]}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--overwrite"]
    assert aggregate([*argv, "--scripted", "--pseudo", "--copy-threshold", "0.5"]) == 0
    written = read_lines(tmp_path / "out.jsonl")
    assert aggregate([*argv, "--export"]) == 0
    assert read_lines(tmp_path / "out.jsonl") == written
    assert json.loads(written[0]["meta"])["aggregating"]["pseudo"] is True


def test_a_journal_of_another_command_is_refused(run, tmp_path, capsys):
    run(ROWS)
    argv = [str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--export"]
    assert aggregate([*argv, "--overwrite"]) == 2
    told = "expected the journal of `aft aggregate`, got that of `aft run`"
    assert told in capsys.readouterr().err


def test_the_flags_that_went_before_a_benchmark_do_so_in_an_export(run, summary):
    bench = [{"question_id": 1, "category": "math", "turns": ["One?"]}]
    _, rows, _ = run(bench, "--final-temperature", "0.4")
    assert run(bench, "--export", "--overwrite")[1] == rows
    assert summary()["unfinished"] == 0


# Words for an answer that did not come to its end


@pytest.mark.parametrize(("reason", "by"), [("MAX_TOKENS", "max_tokens"), ("content_filter", "a filter of contents")])  # fmt: skip
def test_answers_cut_off_are_counted_by_whatever_word(tmp_path, capsys, reason, by):
    def answer(path, body):
        choice = {"index": 0, "message": {"content": "So"}, "finish_reason": reason}
        return web.json_response({"choices": [choice], "usage": {}})

    source = write_lines(tmp_path / "in.jsonl", ROWS)
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--layers", "0"]
    with serving(answer=answer) as server:
        assert main([*argv, "--base-url", server.url, "--on-filtered", "keep"]) == 0
    assert f"warning: {by} cut off 3 final answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "reason", "flags", "words"),
    [
        ({"reasoning_content": "But"}, "length", "", "3 x unfinished (--on-unfinished; --max-tokens gives thoughts more room), "),
        ({"content": "So"}, "length", "--on-truncated drop", "3 x truncated (--on-truncated; --max-tokens gives answers more room), "),
        ({"content": ""}, "stop", "", "3 x empty (--on-empty), "),
        ({"content": "So"}, "content_filter", "", "3 x filtered (--on-filtered), "),
    ],
)  # fmt: skip
def test_what_becomes_of_drafts_is_told_with_the_flags_that_say_so(
    tmp_path, capsys, message, reason, flags, words
):
    def answer(path, body):
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response({"choices": [choice], "usage": {}})

    source = write_lines(tmp_path / "in.jsonl", ROWS)
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--layers", "0"]
    with serving(answer=answer) as server:
        own = ["--base-url", server.url, "--resamples", "0", *flags.split()]
        assert main([*argv, *own]) == 1
    assert f"\ndrafts: {words}3 x dropped\n" in capsys.readouterr().out


def test_a_row_that_is_too_long_is_told_with_the_flag_that_makes_room(tmp_path, tiny_llama, capsys):
    source = write_lines(tmp_path / "in.jsonl", [{"query": "Explain it. " * 200}])
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--layers", "0"]
    with serving(max_model_len=500) as server:
        own = ["--base-url", server.url, "--tokenizer", str(tiny_llama), "--max-tokens", "400"]
        assert main([*argv, *own]) == 1
        told = capsys.readouterr().out
        assert main([*argv, *own[:-1], "500"]) == 2
    assert "1 x context: layer 0: needs " in told
    assert ", the limit is 244 (a smaller --max-tokens leaves it more room)\n" in told
    assert capsys.readouterr().err.endswith(
        "the context of flaky is 500 tokens; lower --max-tokens and --final-max-tokens (or give "
        "--context, where a server has more than it tells)\n"
    )


def test_a_failed_query_counts_what_it_took(run, summary):
    def script(request):
        if request.prompt[0]["role"] == "system" and "1+1" in request.prompt[-1]["content"]:
            return EngineError("no", "refused")
        return ["fine"] * request.n

    run(ROWS, "--width", "2", "--layers", "1", script=script)
    assert [layer["samples"] for layer in summary()["layers"]] == [6, 2]


def test_thoughts_are_told_of_what_was_written():
    of_a_thinker = Totals(usage={(0, 0): Usage(1, 1, 3, 0, 9, 0, 5)})
    assert "thoughts: 5 of the tokens written" in describe(of_a_thinker, None)
    assert not [line for line in describe(Totals(), None) if "thoughts" in line]

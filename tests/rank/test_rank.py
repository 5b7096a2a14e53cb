"""`rank`: from records to records with the best proposals; kills, stops and servers on bad days."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from itertools import chain

import pytest
from conftest import ROOT, demo_rows
from reward_tools import http_server, logits

from aft_factory.asking.availability import Retries
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.engine import EngineError
from aft_factory.inference.scoring import Scorer
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.rank.__main__ import main as rank
from aft_factory.records.record import record_from_row
from aft_factory.records.told import STAGES

PATIENCE = 120  # seconds until a test gives a process up


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(path):
    return [record_from_row(json.loads(line)) for line in path.read_text().splitlines()]


def summary(output):
    return json.loads(output.with_suffix(".summary.json").read_text())


def rejects(output):
    return [json.loads(line) for line in output.with_suffix(".rejects.jsonl").open()]


def real_rows(count):
    return [
        {"id": str(i), "query": row["query"], "proposals": record_from_row(row).proposals}
        for i, row in enumerate(demo_rows()[:count])
    ]


def made_up_rows(count):
    """Rows of three proposals, the longest of which is the last but one."""
    return [
        {"id": f"r{i}", "query": f"q{i}", "proposals": [f"row{i} a", f"row{i} bbb", f"row{i} cc"]}
        for i in range(count)
    ]


class Served:
    """A server of a reward model that scores by length.

    Attributes:
        asked: The proposals that were asked about, each time.
        scored: The proposals that were scored.
        score: From a proposal to its score.
        fails: From a proposal to the status to fail with, in `words`; None scores it.
        held: Once set, nothing is answered before `released` is.
    """

    def __init__(self, folder):
        self.asked, self.scored = [], []
        self.fails, self.words = (lambda text: None), "not now"
        self.score = lambda text: float(len(text))
        self.held, self.released = threading.Event(), threading.Event()
        self.hold_after = None
        self._tokenizer, self._turn = load_tokenizer(str(folder)), threading.Lock()

    def answer(self, body):
        with self._turn:  # a tokenizer is for one thread at a time; and no more than these pass
            found = re.search(r"row\d+ \w+", self._tokenizer.decode(body["input"]))
            if found is None:  # no proposal, but anything has a score
                return 200, {}, logits(0.0)
            text = found[0]
            self.asked.append(text)
            if self.hold_after is None or len(self.scored) < self.hold_after:
                return self._judge(text)
        self.held.set()
        self.released.wait(PATIENCE)
        with self._turn:
            return self._judge(text)

    def _judge(self, text):
        if (status := self.fails(text)) is not None:
            return status, {}, self.words
        self.scored.append(text)
        return 200, {}, logits(self.score(text))


@pytest.fixture
def served(tiny_reward_model):
    """A `Served`, running; `served.flags` name it."""
    server = Served(tiny_reward_model)
    with http_server(server.answer, root=str(tiny_reward_model), max_model_len=8192) as url:
        server.flags = ["--reward-url", url, "--reward-tokenizer", str(tiny_reward_model)]
        yield server
        server.released.set()


class TestRows:
    def test_the_best_are_kept_in_order_and_all_scores(self, tmp_path, tiny_reward_model):
        rows = [*real_rows(12), {"id": "none", "query": "a", "proposals": []}]
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        flags = ["--reward-model", str(tiny_reward_model), "--top-k", "2", "--quiet"]
        assert rank([source, "--output", str(output), *flags]) == 0
        ranked = records(output)
        assert [record.id for record in ranked] == [str(i) for i in range(12)]
        for row, record in zip(rows, ranked, strict=False):
            about = record.meta["ranking"]
            order = sorted(range(4), key=lambda i: -about["scores"][i])
            assert about["kept"] == order[:2]
            assert record.proposals == [row["proposals"][i] for i in order[:2]]
            assert record.scores == [about["scores"][i] for i in order[:2]]
        assert [reject["field"] for reject in rejects(output)] == ["proposals"]

    def test_the_order_of_rows_is_irrelevant(self, tmp_path, tiny_reward_model):
        rows, outputs = real_rows(12), []
        for name, given in (("a", rows), ("b", rows[::-1])):
            source = write_rows(tmp_path / f"{name}.in.jsonl", given)
            output = tmp_path / f"{name}.jsonl"
            flags = ["--reward-model", str(tiny_reward_model), "--quiet"]
            assert rank([source, "--output", str(output), *flags]) == 0
            outputs.append({record.id: record for record in records(output)})
        assert outputs[0].keys() == outputs[1].keys()
        for name, record in outputs[0].items():
            assert record.proposals == outputs[1][name].proposals
            assert record.scores == pytest.approx(outputs[1][name].scores, abs=1e-4)

    def test_a_proposal_that_cannot_be_scored_is_left_out_alone_and_counted(
        self, tmp_path, tiny_reward_model, capsys
    ):
        long = "word " * 20000
        rows = [{"query": "a", "proposals": [long, "short"]}, {"query": "b", "proposals": [long]}]
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        flags = ["--reward-model", str(tiny_reward_model), "--quiet"]
        assert rank([source, "--output", str(output), *flags]) == 0
        [record] = records(output)
        assert record.proposals == ["short"]
        assert record.meta["ranking"]["scores"][0] is None
        assert "reads at most" in record.meta["ranking"]["problems"][0]
        assert "no proposal could be scored" in json.dumps(rejects(output))
        assert summary(output)["events"] == {"proposal that cannot be scored left out": 2}
        assert "2 x proposal that cannot be scored left out" in capsys.readouterr().out

    @pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
    def test_a_score_that_is_no_number_is_none_here_and_in_best_of_n(
        self, tmp_path, served, monkeypatch, number
    ):
        from aft_factory.engines.scripted import ScriptedEngine
        from aft_factory.run.__main__ import main as run

        served.score = lambda text: float(number if text.endswith("bbb") else len(text))
        source, output = write_rows(tmp_path / "in.jsonl", made_up_rows(2)), tmp_path / "out.jsonl"
        flags = ["--quiet", *served.flags]
        assert rank([source, "--output", str(output), *flags]) == 0
        assert [r.proposals for r in records(output)] == [
            ["row0 cc", "row0 a"],
            ["row1 cc", "row1 a"],
        ]
        assert [r.meta["ranking"]["scores"] for r in records(output)] == [[6.0, None, 7.0]] * 2
        assert summary(output)["events"] == {"proposal that cannot be scored left out": 2}

        monkeypatch.setattr(
            "aft_factory.stage.engines.ScriptedEngine",
            lambda *_, model, **__: ScriptedEngine(
                lambda r: made_up_rows(1)[0]["proposals"][: r.n], model=model
            ),
        )
        output = tmp_path / "best.jsonl"
        flags += ["--strategy", "best_of_n", "--width", "3", "--scripted"]
        assert run([source, "--output", str(output), *flags]) == 0
        for row in map(json.loads, output.open()):
            [details] = row["details"]
            assert (row["response"], details["scores"]) == ("row0 cc", [6.0, None, 7.0])
            assert f"returned {number}" in details["problem"]
        assert summary(output)["events"] == {
            "proposal that cannot be scored left out": 2,
            "the row's own proposals not used": 2,
        }

    def test_blank_proposals_are_never_scored_and_counted(self, tmp_path):
        rows = [
            {"query": "a", "proposals": ["", "bb", " \n\t  ", "c"], "scores": [9, 8, 7, 6]},
            {"query": "b", "proposals": ["  ", ""]},
        ]
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        assert rank([source, "--output", str(output), "--scripted", "--quiet"]) == 0
        [record] = records(output)
        assert (record.proposals, record.scores) == (["bb", "c"], [2.0, 1.0])
        about = record.meta["ranking"]
        assert (about["scores"], about["kept"]) == ([None, 2.0, None, 1.0], [1, 3])
        assert summary(output)["events"] == {"blank proposal left out": 2}
        assert [reject["field"] for reject in rejects(output)] == ["proposals"]

    def test_what_meta_says_of_each_proposal_stays_with_it(self, tmp_path):
        sampling = dict.fromkeys(STAGES["sampling"]) | {"events": [1, 2, 3], "seed": 42}
        sampling |= {"finish_reasons": ["stop", "length", "eos"]}
        row = {"query": "a", "proposals": ["a", "bbb", "cc"], "proposal_models": ["x", "y", "z"]}
        row["meta"] = {"sampling": sampling, "topic": "sums"}
        source, output = write_rows(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
        flags = ["--top-k", "2", "--scripted", "--quiet"]
        assert rank([source, "--output", str(output), *flags]) == 0
        [record] = records(output)
        assert (record.proposals, record.proposal_models) == (["bbb", "cc"], ["y", "z"])
        assert record.meta["sampling"] == sampling | {"finish_reasons": ["length", "eos"]}
        assert record.meta["topic"] == "sums"

    def test_what_a_user_has_by_the_name_of_a_stage_stays_whole(self, tmp_path):
        own = {"sampling": {"weights": [1, 2, 3]}, "ranking": "by hand"}
        row = {"query": "a", "proposals": ["a", "bbb", "cc"], **own}
        source, output = write_rows(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
        assert rank([source, "--output", str(output), "--top-k", "2", "--scripted"]) == 0
        [record] = records(output)
        assert record.meta["sampling"] == own["sampling"]
        assert record.meta["input_ranking"] == "by hand"
        assert record.meta["ranking"]["kept"] == [1, 2]


class TestSettings:
    """What the errors ask for can be given, by `rank` and by `run --strategy best_of_n`."""

    def ranked(self, tmp_path, *flags, name="out"):
        source = write_rows(tmp_path / "in.jsonl", [*real_rows(3), *made_up_rows(1)])
        output = tmp_path / f"{name}.jsonl"
        code = rank([source, "--output", str(output), "--quiet", "--overwrite", *flags])
        return code, [r.meta["ranking"]["scores"] for r in records(output)] if not code else None

    def test_the_model_that_was_opened_is_named(self, tmp_path, tiny_reward_model, served):
        source = write_rows(tmp_path / "in.jsonl", made_up_rows(1))
        config = tmp_path / "rank.yaml"
        config.write_text("reward_model: never/opened\n")
        for name, flags in {
            "longest": ["--scripted", "--config", str(config)],
            "rm": served.flags,
            str(tiny_reward_model): ["--reward-model", str(tiny_reward_model)],
        }.items():
            output = tmp_path / f"{len(name)}.jsonl"
            assert rank([source, "--output", str(output), "--quiet", *flags]) == 0
            [record] = records(output)
            assert record.meta["ranking"]["model"] == name

    def test_a_script_is_told_of_and_the_model_that_it_stands_for(self, tmp_path, caplog):
        assert self.ranked(tmp_path, "--scripted")[0] == 0
        assert caplog.messages == ["--scripted: no model is asked, the scores are made up"]
        caplog.clear()
        assert self.ranked(tmp_path, "--scripted", "--reward-model", "m", "--overwrite")[0] == 0
        assert caplog.messages == ["--scripted: m is not asked, the scores are made up"]
        caplog.clear()
        served = ("--reward-url", "http://me:pw@127.0.0.1:9?key=1", "--reward-tokenizer", "m")
        assert self.ranked(tmp_path, "--scripted", *served, "--overwrite")[0] == 0
        assert caplog.messages == [
            "--scripted: http://127.0.0.1:9 is not asked, the scores are made up"
        ]

    def test_a_chat_template_a_length_a_dtype_and_a_budget(
        self, tmp_path, tiny_reward_model, capsys
    ):
        import shutil

        bare = shutil.copytree(tiny_reward_model, tmp_path / "bare")
        (bare / "chat_template.jinja").unlink()
        model = ["--reward-model", str(bare)]
        assert self.ranked(tmp_path, *model) == (2, None)
        assert "pass --reward-chat-template llama3, mistral or a path" in capsys.readouterr().err
        own = self.ranked(tmp_path, "--reward-model", str(tiny_reward_model))
        model += ["--reward-chat-template", "llama3"]
        assert self.ranked(tmp_path, *model) == own
        _, half = self.ranked(tmp_path, *model, "--reward-dtype", "bfloat16")
        assert half != own[1]
        assert half[0] == pytest.approx(own[1][0], rel=0.2, abs=0.2)
        budget = self.ranked(tmp_path, *model, "--reward-batch-tokens", "1", name="other")
        assert [x for row in budget[1] for x in row] == pytest.approx(
            [x for row in own[1] for x in row], abs=1e-4
        )
        code, short = self.ranked(tmp_path, *model, "--reward-max-length", "100")
        assert code == 0  # though all had scores before
        assert short == [pytest.approx(own[1][3], abs=1e-4)]

    def test_a_label_of_several(self, tmp_path, tiny_reward_model, capsys):
        import torch
        from transformers import AutoModelForSequenceClassification

        one = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
        two = AutoModelForSequenceClassification.from_pretrained(
            tiny_reward_model, num_labels=2, ignore_mismatched_sizes=True
        )
        two.score.weight.data = torch.cat([one.score.weight.data, -one.score.weight.data])
        folder = tmp_path / "two"
        two.save_pretrained(folder)
        load_tokenizer(str(tiny_reward_model)).save_pretrained(folder)
        model = ["--reward-model", str(folder)]
        assert self.ranked(tmp_path, *model) == (2, None)
        assert "2 labels; say whose logit is the score: pass --reward-label 0" in (
            capsys.readouterr().err
        )
        _, first = self.ranked(tmp_path, *model, "--reward-label", "0")
        _, second = self.ranked(tmp_path, *model, "--reward-label", "1")
        assert [x for row in first for x in row] == pytest.approx(
            [-x for row in second for x in row], abs=1e-4
        )

    @pytest.mark.parametrize(
        ("flags", "problem"),
        [
            (["--reward-engine-args", "dtype=float32"], "reward_engine_args: needs"),
            (["--reward-tokenizer", "t"], "reward_tokenizer: for servers"),
            (["--reward-url", "http://h", "--reward-engine", "vllm"], "reward_engine: for a"),
            (["--reward-url", "http://h"], "reward_tokenizer: name the folder or hub name"),
            (["--reward-url", "http://h", "--reward-dtype", "float16"], "reward_dtype: for a"),
            (["--reward-max-length", "0"], "reward_max_length: expected a number from 1"),
            (["--reward-label", "-1"], "reward_label: expected a number from 0"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, tmp_path, capsys, flags, problem):
        assert self.ranked(tmp_path, *flags) == (2, None)
        assert problem in capsys.readouterr().err

    def test_a_server_is_all_that_best_of_n_needs(self, tmp_path, served, monkeypatch):
        from aft_factory.engines.scripted import ScriptedEngine
        from aft_factory.run.__main__ import main as run

        drafts = ["row1 a", "row1 ccc", "row1 bb"]
        monkeypatch.setattr(
            "aft_factory.stage.engines.ScriptedEngine",
            lambda *_, model, **__: ScriptedEngine(lambda r: drafts[: r.n], model=model),
        )
        source = write_rows(tmp_path / "in.jsonl", [{"query": "a"}])
        output = tmp_path / "out.jsonl"
        flags = ["--strategy", "best_of_n", "--width", "3", "--scripted", "--quiet"]
        assert run([source, "--output", str(output), *flags, *served.flags]) == 0
        [row] = [json.loads(line) for line in output.open()]
        assert row["response"] == "row1 ccc"
        assert row["details"] == [{"scores": [6.0, 8.0, 7.0], "problem": ""}]
        assert sorted(served.asked) == sorted(drafts)


class TestBadDays:
    def test_rows_of_a_server_that_fails_for_a_while_are_healed_by_the_same_command(
        self, tmp_path, served
    ):
        """One proposal fails as often as it is asked about, the next time it does not."""
        source, output = write_rows(tmp_path / "in.jsonl", made_up_rows(6)), tmp_path / "out.jsonl"
        command = [source, "--output", str(output), "--quiet", "--overwrite"]
        command += ["--retries", "1", *served.flags]
        served.fails = lambda text: 500 if text == "row2 bbb" else None
        assert rank(command) == 0
        assert [record.id for record in records(output)] == ["r0", "r1", "r3", "r4", "r5"]
        [reject] = rejects(output)
        assert (reject["field"], "after 2 attempts" in reject["reason"]) == ("engine", True)
        assert served.asked.count("row2 bbb") == 2

        served.fails, before = (lambda text: None), len(served.asked)
        assert rank(command) == 0
        made = records(output)
        assert [record.proposals for record in made] == [
            [f"row{i} bbb", f"row{i} cc", f"row{i} a"] for i in range(6)
        ]
        assert sorted(served.asked[before:]) == ["row2 a", "row2 bbb", "row2 cc"]

    @pytest.mark.parametrize("status", [402, 429])
    def test_a_quota_that_is_used_up_ends_the_run_in_the_servers_words(
        self, tmp_path, served, capsys, status
    ):
        source, output = write_rows(tmp_path / "in.jsonl", made_up_rows(6)), tmp_path / "out.jsonl"
        served.fails, served.words = (lambda text: status), '{"error": "insufficient credits"}'
        assert rank([source, "--output", str(output), "--quiet", *served.flags]) == 2
        assert f"/classify answered {status}: insufficient credits\n" in capsys.readouterr().err
        assert len(served.asked) <= 18  # nothing twice
        assert not output.exists()

    def test_a_dead_server_ends_the_run_and_another_one_goes_on(
        self, tmp_path, served, tiny_reward_model
    ):
        rows = made_up_rows(12)
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        first = Served(tiny_reward_model)
        first.hold_after = 9
        dying = http_server(first.answer, root=str(tiny_reward_model), max_model_len=8192)
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(dying)
            flags = ["--admit", "2", "--retries", "2", "--reward-url", url]
            flags += ["--reward-tokenizer", str(tiny_reward_model)]
            process = started(source, output, *flags)
            assert first.held.wait(PATIENCE)
            stack.close()
        first.fails = lambda text: 500  # what it has got already
        first.released.set()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "has answered nothing for" in err
        assert "nothing answered is lost" in err
        assert not output.exists()

        assert rank([source, "--output", str(output), "--quiet", *served.flags]) == 0
        assert len(records(output)) == 12
        kept = {text for row in rows for text in row["proposals"]} - set(served.asked)
        assert 0 < len(kept) <= 9
        assert set(first.scored) >= kept
        assert max(Counter(served.asked).values()) == 1

    def test_a_few_rows_that_always_fail_do_not_keep_the_others_from_the_output(
        self, tmp_path, served
    ):
        source, output = write_rows(tmp_path / "in.jsonl", made_up_rows(6)), tmp_path / "out.jsonl"
        served.fails = lambda text: 500 if text[:4] in ("row4", "row5") else None
        command = [source, "--output", str(output), "--quiet", "--overwrite"]
        for _ in range(2):  # the second time nothing but them is left
            assert rank([*command, "--retries", "1", *served.flags]) == 0
            assert [record.id for record in records(output)] == ["r0", "r1", "r2", "r3"]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_it_goes_on_where_it_was_killed_or_stopped(self, tmp_path, served, number):
        rows = made_up_rows(20)
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        served.hold_after = 30
        process = started(source, output, "--admit", "2", *served.flags)
        assert served.held.wait(PATIENCE)
        process.send_signal(number)
        if number != signal.SIGKILL:
            while "stopping" not in process.stderr.readline():
                assert process.poll() is None
        served.hold_after = None
        served.released.set()
        _, err = process.communicate(timeout=PATIENCE)
        assert not output.exists()
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert "stopped; everything answered is in" in err

        before = list(served.scored)
        command = [source, "--output", str(output), "--quiet", *served.flags]
        assert rank(command) == 0
        made = records(output)
        assert [record.id for record in made] == [row["id"] for row in rows]
        assert [r.proposals[0] for r in made] == [f"row{i} bbb" for i in range(20)]
        second = served.scored[len(before) :]
        kept = len(rows) - len(second) // 3
        assert 8 <= kept <= (10 if number == signal.SIGKILL else 12)
        assert sorted(second) == sorted(text for row in rows[kept:] for text in row["proposals"])
        if number != signal.SIGKILL:  # what was being scored was waited for
            assert len(before) + len(second) == 60

    def test_another_way_to_score_scores_anew(self, tmp_path, served):
        source, output = write_rows(tmp_path / "in.jsonl", made_up_rows(2)), tmp_path / "out.jsonl"
        command = [source, "--output", str(output), "--quiet", "--overwrite"]
        command += served.flags
        assert rank(command) == 0
        assert rank(command) == 0
        assert len(served.asked) == 6
        assert rank([*command, "--reward-max-length", "100"]) == 0
        assert rank([*command, "--reward-chat-template", "mistral"]) == 0
        assert len(served.asked) == 18


def started(source, output, *flags):
    """`rank` in a process of its own."""
    command = [sys.executable, "-m", "aft_factory.rank", source, "--output", str(output)]
    return subprocess.Popen(
        [*command, "--quiet", *flags],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


QUERY = [{"role": "user", "content": "?"}]
QUICK = Retries(most=2, first=0.001, longest=0.002)


class Scripted:
    """A reward model that scores by length; `fails` says how, `batches` holds what it was asked."""

    model = identity = "scripted"

    def __init__(self, fails=lambda text: None, reachable=True):
        self.batches, self.fails, self._reachable = [], fails, reachable
        self.begun, self.released = asyncio.Event(), asyncio.Event()
        self.released.set()

    async def score(self, pairs):
        self.batches.append([text for _, text in pairs])
        self.begun.set()
        await self.released.wait()
        return [
            float(len(text)) if (kind := self.fails(text)) is None else EngineError(text, kind)
            for _, text in pairs
        ]

    async def reachable(self):
        return self._reachable

    async def close(self):
        pass


def results(scorer, *queries):
    """Ask about several queries at once: their scores or errors."""
    return asyncio.gather(
        *(scorer.score_each(list(QUERY), texts) for texts in queries), return_exceptions=True
    )


def run(make):
    """Run a coroutine function, with a limit."""
    return asyncio.run(asyncio.wait_for(make(), PATIENCE))


class TestScorer:
    def test_queries_that_wait_together_are_scored_together(self):
        async def go():
            model = Scripted()
            assert await results(Scorer(model, QUICK), ["a", "bb"], ["ccc"]) == [[1, 2], [3]]
            return model.batches

        assert run(go) == [["a", "bb", "ccc"]]

    def test_only_what_failed_is_asked_again_and_the_others_do_not_wait_for_it(self):
        async def go():
            failures = iter(["retry", "retry"])
            model = Scripted(lambda text: next(failures, None) if text == "bad" else None)
            scorer = Scorer(model, QUICK)
            ended = []

            async def ask(*texts):
                ended.append(await scorer.score_each(list(QUERY), texts))

            await asyncio.gather(ask("bad", "a"), ask("bb"))
            return ended, model.batches

        ended, batches = run(go)
        assert ended == [[2], [3, 1]]
        assert batches == [["bad", "a", "bb"], ["bad"], ["bad"]]

    def test_what_fails_at_every_attempt_fails_its_query_alone(self):
        async def go():
            model = Scripted(lambda text: "retry" if text == "bad" else None, reachable=False)
            first = await results(Scorer(model, QUICK), ["a", "bad"], ["bb"])
            return first, model.batches

        (error, other), batches = run(go)
        assert (error.kind, "after 3 attempts" in str(error)) == ("retry", True)
        assert other == [2]
        assert batches == [["a", "bad", "bb"], ["bad"], ["bad"]]

    def test_what_is_refused_is_left_out_and_not_asked_again(self):
        async def go():
            model = Scripted(lambda text: "refused" if text == "bad" else None)
            [scores] = await results(Scorer(model, QUICK), ["a", "bad"])
            return scores, model.batches

        (score, error), batches = run(go)
        assert (score, error.kind) == (1, "refused")
        assert batches == [["a", "bad"]]

    def test_nothing_scored_by_a_model_that_cannot_be_reached_ends_the_run(self):
        async def go():
            scorer = Scorer(Scripted(lambda text: "retry", reachable=False), QUICK)
            return await results(scorer, ["a"], ["b"], ["c"])

        errors = run(go)
        fatal = [str(error) for error in errors if error.kind == "fatal"]
        assert len(fatal) == 2  # the first alone may be at fault itself
        assert "the reward model scripted has answered nothing for" in fatal[0]

    def test_what_got_all_it_can_beside_them_is_not_lost(self):
        async def go():
            kinds = iter(["retry", "retry", "refused"])
            model = Scripted(lambda text: next(kinds) if text == "c" else "retry", reachable=False)
            in_order = Retries(most=2, first=0, longest=0)
            return await results(Scorer(model, in_order), ["a"], ["b"], ["c"])

        _, other, [score] = run(go)
        assert (other.kind, score.kind) == ("fatal", "refused")

    def test_one_that_is_there_but_scores_nothing_ends_it(self):
        async def go():
            model = Scripted(lambda text: "retry")
            return await results(Scorer(model, QUICK), ["a"], ["b"]), model.batches

        errors, batches = run(go)
        assert sorted(error.kind for error in errors) == ["fatal", "retry"]
        assert Counter(chain(*batches)) == {"a": 3, "b": 3, "Hello": 3}

    def test_what_it_fails_while_it_scores_others_ends_no_run(self):
        """Not even when nobody is there at the moment."""

        async def go():
            model = Scripted(lambda text: "retry" if text == "bad" else None, reachable=False)
            scorer = Scorer(model, QUICK)
            failing = asyncio.ensure_future(results(scorer, ["bad"], ["bad"], ["bad"]))
            while not failing.done():
                await scorer.score_each(list(QUERY), ["good"])
            return failing.result()

        assert [error.kind for error in run(go)] == ["retry"] * 3

    def test_texts_that_it_fails_end_no_run_though_nobody_else_asks(self):
        async def go():
            model = Scripted(lambda text: "retry" if text == "bad" else None)
            return await results(Scorer(model, QUICK), *[["bad"]] * 30), model.batches

        errors, batches = run(go)
        assert {error.kind for error in errors} == {"retry"}
        assert Counter(chain(*batches)) == {"bad": 90, "Hello": 1}

    def test_a_fatal_error_ends_all_that_wait(self):
        async def go():
            model = Scripted()

            async def score(pairs):
                raise EngineError("gone", "fatal")

            model.score = score
            return await results(Scorer(model, QUICK), ["a"], ["b"])

        assert [error.kind for error in run(go)] == ["fatal", "fatal"]

    def test_stopped_it_finishes_what_is_being_scored_and_gives_up_the_rest(self, monkeypatch):
        monkeypatch.setattr("aft_factory.inference.scoring.MOST_PAIRS", 2)

        async def go():
            model = Scripted()
            model.released.clear()
            scorer = Scorer(model, QUICK)
            asked = results(scorer, ["a", "bb"], ["ccc"])
            await model.begun.wait()
            scorer.stop()
            model.released.set()
            late = await results(scorer, ["dddd"])
            return await asked, late, model.batches

        (first, second), [third], batches = run(go)
        assert first == [1, 2]
        assert isinstance(second, Stopped)
        assert isinstance(third, Stopped)
        assert batches == [["a", "bb"]]

    def test_stopped_it_does_not_wait_for_another_attempt(self):
        async def go():
            model = Scripted(lambda text: "retry")
            scorer = Scorer(model, Retries(most=5, first=1000, longest=1000))
            asked = results(scorer, ["a"])
            await model.begun.wait()
            await asyncio.sleep(0.1)  # the failure is in, the next attempt far away
            scorer.stop()
            return await asked

        [error] = run(go)
        assert isinstance(error, Stopped)

"""The command: settings, keys, the address, signals, the journal.

Run: pytest tests/serve/test_serving.py
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import openai
import pytest
from asking_tools import command, write_lines
from conftest import ROOT
from flaky_server import until
from reward_tools import free_port
from serve_tools import QUESTION, Watched, drafts_of, served

from aft_factory.asking.journal import Journal
from aft_factory.engines.scripted import babble
from aft_factory.run.__main__ import inspect_query
from aft_factory.serve.__main__ import COMMAND, main
from aft_factory.serve.settings import ServeSettings


@contextlib.contextmanager
def started(*flags, env=None):
    """The command as a process, once it is ready; yields it and a client of it."""
    port = free_port()
    line = [sys.executable, "-m", "aft_factory.serve", "--scripted", "--port", str(port), *flags]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    said = []
    reading = threading.Thread(target=lambda: said.extend(process.stderr))
    reading.start()
    try:
        until(lambda: any(text.startswith("serving") for text in said) or process.poll(), 60)
        assert process.poll() is None, said
        url = f"http://127.0.0.1:{port}/v1"
        yield process, openai.OpenAI(base_url=url, api_key="x", max_retries=0), said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reading.join()


def test_a_signal_ends_the_command_with_0_and_says_what_it_waits_for():
    with started("--width", "2", "--layers", "1") as (process, client, said):
        assert [one.id for one in client.models.list()] == ["aft", "plain"]
        assert client.chat.completions.create(model="aft", messages=QUESTION).choices
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert any("stopping: waiting for the requests in flight" in text for text in said)
    assert any(text.startswith("serving aft, plain at http://127.0.0.1:") for text in said)


def test_who_lets_everybody_in_is_warned():
    with started("--host", "0.0.0.0") as (_, _, said):
        assert any("everybody who reaches 0.0.0.0 may ask" in text for text in said)
    with started("--host", "0.0.0.0", env=os.environ | {"AFT_API_KEY": "k"}) as (_, client, said):
        assert not any("everybody" in text for text in said)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_an_address_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    with started("--width", "1") as (_, client, _):
        port = client.base_url.port
        assert main(["--model", str(ROOT), "--port", str(port)]) == 2
    assert (
        f"cannot listen on 127.0.0.1, port {port}: Address already in use"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--limit", "5"], "unknown flag --limit"),
        (["--task", "gsm8k"], "unknown flag --task"),
        (["--variants", "fast={width: 0}"], "variants: fast: width: expected a number from 1"),
        (["--variants", "fast={widht: 2}"], "unknown key 'widht'; did you mean 'width'?"),
        (["--variants", "fast={port: 2}"], "unknown key 'port'"),
        (["--variants", "fast=3"], "expected settings such as {width: 3, layers: 1}, got 3"),
        (["--variants", "A/B={}"], "expected a name of small letters"),
        (["--variants", "aft-k3={}"], "'aft-k3' is 'aft' of other width or layers"),
        (["--variants", "m={strategy: moa}"], "variants: m: proposers: moa needs the models"),
        (["--reward-model", "x"], "reward_model: propose_and_aggregate asks no reward model"),
        (["--client-key-env", "NO_SUCH"], "no environment variable of that name is set"),
        (["--client-key-file", "/no/such"], "client_key_file: /no/such: No such file"),
        (["--port", "70000"], "port: expected a number up to 65535"),
        (["--time-limit", "0"], "time_limit: expected seconds"),
        (["--queue", "0"], "queue: expected a number from 1"),
        (["--reasoning-field", "thoughts"], "invalid choice: 'thoughts'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(capsys, flags, problem):
    with contextlib.suppress(SystemExit):
        assert main(["--scripted", *flags]) == 2
    assert problem in capsys.readouterr().err


def test_a_reward_model_is_for_any_variant_that_asks_it():
    variants = {"best": {"strategy": "best_of_n"}}
    assert ServeSettings(scripted=True, reward_model="x", variants=variants).problems() == []


def test_a_preset_is_a_papers_settings_without_its_benchmark():
    settings = COMMAND.read({"scripted": True, "preset": "alpaca_eval", "width": 4})
    assert (settings.width, settings.layers, settings.final_temperature) == (4, 2, 0.9)
    assert settings.task is None


def test_the_example_is_read_as_it_stands():
    settings = COMMAND.read({"config": ROOT / "examples" / "serve_llama.yaml"})
    assert set(settings.all_variants()) == {"aft", "plain", "aft-fast"}


def test_an_equal_request_is_answered_from_the_journal_after_a_restart_too(tmp_path, capsys):
    path = tmp_path / "served.journal"
    answers, engines = [], []
    for _ in range(2):
        engine = Watched(drafts_of)
        engines.append(engine)
        with served(engine, journal=path) as server:
            raw = server.client().chat.completions.with_raw_response
            for fields in ({}, {}, {"stream": True}, {"seed": 7}):
                response = raw.create(model="aft", messages=QUESTION, **fields)
                replayed = response.headers.get("x-aft-replayed")
                text = response.http_response.read().decode()
                answers.append((replayed, fields, "aggregation" in text, '"total_tokens"' in text))
    assert [replayed for replayed, *_ in answers] == [None, "true", "true", None, *["true"] * 4]
    assert all(found for _, _, found, _ in answers)
    assert [len(engine.requests) for engine in engines] == [4, 0]
    with Journal(path, read_only=True) as journal:
        [name] = journal.ids()
    capsys.readouterr()
    inspect_query([str(path), name], False)
    shown = capsys.readouterr().out
    assert "How many pails are there?" in shown
    assert "draft 2 (stop): draft 2 at 0.7" in shown
    assert "answer (stop): aggregation 0" in shown


def test_fresh_requests_get_another_answer_each_time():
    with served(Watched(drafts_of), fresh=True) as server:
        first, second = server.ask(), server.ask()
        assert first.aft["seed"] != second.aft["seed"]
        assert server.ask(seed=5).choices == server.ask(seed=5).choices


def test_an_answer_is_that_of_aft_run_under_the_same_seed(monkeypatch, capsys, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"messages": QUESTION}])
    out = tmp_path / "out.jsonl"
    flags = ["--width", "3", "--layers", "1", "--seed", "7"]
    code, _, _ = command(monkeypatch, capsys, babble, source, out, *flags)
    with served() as server:
        answer = server.ask(seed=7, temperature=0.7).choices[0].message.content
    assert (code, json.loads(out.read_text())["response"]) == (0, answer)

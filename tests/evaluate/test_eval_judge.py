"""What a judge said is kept by what decides it, whoever is killed; what is no judgment is not."""

import contextlib
import fcntl
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time

import pytest
from evaluate_tools import judging
from reward_tools import http_server

from aft_factory.errors import UsageError
from aft_factory.evaluate.harness import run_harness
from aft_factory.evaluate.judge import Judge
from aft_factory.evaluate.settings import EvalSettings


def rated(reply):
    return "[[" in reply["choices"][0]["message"]["content"]


def judge_at(url, folder, model="the-judge", **settings):
    path = folder / "judgments.sqlite"
    return Judge(EvalSettings(judge_url=url, **settings), model, path, rated)


def body(text="Is it good?", **sampling):
    return {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **sampling}


def test_a_judgment_is_known_by_model_texts_and_sampling_wherever_it_is_served(tmp_path):
    with judging(lambda body: {"content": "[[7]]"}) as (url, asked):
        first = judge_at(url, tmp_path).ask(body(temperature=0))
        assert first[0] == 200
    with judging(lambda body: {"content": "[[9]]"}) as (moved, again):
        assert judge_at(moved, tmp_path).ask(body(temperature=0)) == first
        assert (len(asked), len(again)) == (1, 0)
        for number, (model, other) in enumerate(
            [
                ("the-judge", body(temperature=1)),
                ("the-judge", body("Is it bad?", temperature=0)),
                ("another", body(temperature=0)),
            ]
        ):
            assert b"[[9]]" in judge_at(moved, tmp_path, model).ask(other)[1]
            assert len(again) == number + 1


def test_what_is_no_judgment_is_asked_for_anew(tmp_path):
    replies = iter(["I would rather not.", "[[7]]"])
    with judging(lambda body: {"content": next(replies)}) as (url, asked):
        judge = judge_at(url, tmp_path)
        assert b"rather not" in judge.ask(body())[1]
        assert b"[[7]]" in judge.ask(body())[1]
        assert b"[[7]]" in judge.ask(body())[1]
    assert len(asked) == 2


def test_a_refusal_is_told_as_often_as_a_harness_asks_but_sent_once(tmp_path):
    with judging(lambda body: None) as (url, asked):
        judge = judge_at(url, tmp_path)
        assert judge.ask(body()) == judge.ask(body())
        assert judge.failure is None  # it may be of this text alone
    assert len(asked) == 1


def test_a_judgment_that_broke_off_is_asked_for_again(tmp_path):
    whole = json.dumps({"choices": [{"message": {"content": "[[7]]"}}]})
    replies = iter([({"Content-Length": "999"}, whole[:9]), ({}, whole)])
    with http_server(lambda body: (200, *next(replies))) as url:
        assert b"[[7]]" in judge_at(url, tmp_path, retries=1).ask(body())[1]


WHOLE = json.dumps({"choices": [{"message": {"content": "[[7]]"}}]})


@pytest.mark.parametrize(
    ("status", "passing"),
    [
        (409, {"error": {"message": "try again"}}),
        (429, {"error": {"message": "slow down", "details": [{"retryDelay": "0.2s"}]}}),
        (529, {"error": {"message": "Overloaded"}}),
        (200, {"error": {"message": "Overloaded", "code": 503}}),
        (200, "a page"),
    ],
)
def test_what_passes_is_asked_again_as_of_a_model(tmp_path, status, passing):
    replies = iter([(status, {}, json.dumps(passing)), (200, {}, WHOLE)])
    with http_server(lambda body: next(replies)) as url:
        judge = judge_at(url, tmp_path, retries=1)
        assert judge.ask(body()) == (200, WHOLE.encode())
    assert (judge.asked, judge.failure) == (2, None)


def test_a_judge_is_asked_again_when_it_says(tmp_path):
    replies = iter([(429, {"Retry-After": "2"}, "{}"), (200, {}, WHOLE)])
    with http_server(lambda body: next(replies)) as url:
        began = time.monotonic()
        judge_at(url, tmp_path, retries=1).ask(body())
        assert time.monotonic() - began >= 2


@pytest.mark.parametrize(
    ("status", "refusal", "ends"),
    [
        (429, "Billing hard limit has been reached", "429: "),
        (402, "no money left", "402: "),
        (200, "Incorrect API key provided", "400: "),
        (200, "Invalid 'messages'", None),
        (400, "the context is too long", None),
        (500, "Context size has been exceeded", None),
    ],
)
def test_what_does_not_pass_is_sent_once(tmp_path, status, refusal, ends):
    told = json.dumps({"error": {"message": refusal}})
    with http_server(lambda body: (status, {}, told)) as url:
        judge = judge_at(url, tmp_path)
        answer, reply = judge.ask(body())
        assert answer >= 400
        assert refusal.encode() in reply
        if ends is None:
            judge.ask(body())
    assert judge.asked == 1
    assert (judge.failure or "").startswith(ends or "")
    assert (judge.failure is None) == (ends is None)


def test_what_a_harness_that_has_ended_did_not_wait_for_is_no_failure(tmp_path):
    with http_server(lambda body: (503, {}, "{}")) as url:
        judge = judge_at(url, tmp_path)
        with judge.serving():
            left = threading.Thread(target=judge.ask, args=(body(),))
            left.start()
            wait_for(lambda: judge.asked)
        left.join()
    assert judge.failure is None


def test_that_a_judge_is_there_is_asked_of_each_server_until_it_can_judge(tmp_path):
    able = []
    with judging(lambda body: {"content": "[[7]]" if able else "no"}) as (url, asked):
        assert not judge_at(url, tmp_path).check(body(), rated)
        able.append(True)
        assert judge_at(url, tmp_path).check(body(), rated)
        assert judge_at(url, tmp_path).check(body(), rated)
        assert len(asked) == 2
    with pytest.raises(UsageError, match="the judge the-judge at http"):
        judge_at("http://127.0.0.1:1/v1", tmp_path, retries=0).check(body(), rated)


HARNESS = """
import fcntl, json, os, sys, time, urllib.request

own = open("alive", "w")
fcntl.flock(own, fcntl.LOCK_EX)
for number in range(int(sys.argv[1])):
    text = {"messages": [{"role": "user", "content": f"Question {number}?"}]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    try:
        with urllib.request.urlopen(url, json.dumps(text).encode()) as reply:
            print(json.load(reply)["choices"][0]["message"]["content"])
    except OSError:
        time.sleep(600)  # some try for long
"""


def harness(judge, folder, questions=20):
    command = [sys.executable, "-c", HARNESS, str(questions)]
    return run_harness("a harness", command, judge, folder, folder / "log", {})


def kept(folder):
    with contextlib.closing(sqlite3.connect(folder / "judgments.sqlite")) as file:
        return file.execute("SELECT count(*) FROM judgments").fetchone()[0]


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def has_ended(folder):
    with (folder / "alive").open("w") as own:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def test_killed_at_ten_moments_no_judgment_is_paid_twice_and_no_harness_stays(tmp_path):
    draw = random.Random(1)
    kills = [draw.randint(1, 3) for _ in range(10)]
    paid, left, running = [], [0], [0]

    def reply(body):
        text = body["messages"][0]["content"]
        if left[0] == 1:  # this many more before it is killed, each of them kept
            wait_for(lambda: kept(tmp_path) == len(paid))
            os.kill(running[0], signal.SIGKILL)
            return None
        left[0] -= 1
        paid.append(text)
        return {"content": f"[[{len(text)}]]"}

    with judging(reply) as (url, _):
        for kill in kills:
            left[0] = kill
            if (pid := os.fork()) == 0:
                running[0] = os.getpid()
                with contextlib.suppress(BaseException):
                    harness(judge_at(url, tmp_path), tmp_path)
                os._exit(99)
            running[0] = pid
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            wait_for(lambda: has_ended(tmp_path))
        left[0] = 0
        said = harness(judge_at(url, tmp_path), tmp_path)
    assert said.split() == [f"[[{len(f'Question {number}?')}]]" for number in range(20)]
    assert sorted(paid) == sorted(f"Question {number}?" for number in range(20))


def test_where_a_judge_fails_what_it_is_at_is_waited_for_as_it_is_paid(tmp_path):
    failed = threading.Event()

    def reply(body):
        if "Good" not in body["messages"][0]["content"]:
            failed.set()
            return None
        failed.wait(60)
        time.sleep(0.5)
        return {"content": "[[7]]"}

    with judging(reply, refusal=401) as (url, _):
        judge = judge_at(url, tmp_path)
        with judge.serving() as relay:
            slow = threading.Thread(target=judge_at(relay, tmp_path / "x").ask, args=[body("Good")])
            slow.start()
            wait_for(lambda: judge.asked)
            judge.ask(body("Bad"))
            assert judge.failure.startswith("401")
        assert kept(tmp_path) == 1
        slow.join()


def test_a_harness_asks_us_directly_whatever_proxy_the_environment_names(tmp_path, monkeypatch):
    with judging(lambda body: {"content": "[[7]]"}) as (url, asked):
        judge = judge_at(url, tmp_path)  # by NO_PROXY, which may name no more than the judge
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert harness(judge, tmp_path, questions=1) == "[[7]]\n"
        with pytest.raises(UsageError, match=r"through the proxy of http_proxy; .* NO_PROXY=127"):
            judge_at(url, tmp_path, retries=0).check(body(), rated)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "JUDGES_KEY"])
def test_a_judges_key_that_cannot_be_sent_is_told_by_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "xyzzy\nx")
    with pytest.raises(UsageError, match=f"variable {name} holds no key") as caught:
        judge_at("http://127.0.0.1:1", tmp_path, judge_key_env=name)
    assert "xyzzy" not in str(caught.value)
    problems = EvalSettings(judge_key_env="JUDGES_KEY_2").problems()
    assert any(text.startswith("judge_key_env: no environment variable") for text in problems)


def test_a_judges_key_that_it_repeats_is_in_no_message_and_not_told_to_the_harness(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("JUDGES_KEY", "xyzzy-xyzzy")
    with http_server(lambda body: (401, {}, "no such key: xyzzy-xyzzy")) as url:
        judge = judge_at(url, tmp_path, judge_key_env="JUDGES_KEY")
        assert judge.ask(body()) == (401, b"no such key: ...")
        assert judge.failure == "401: no such key: ..."


def test_a_harness_is_handed_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", "xyzzy-xyzzy")
    judge = judge_at("http://127.0.0.1:1", tmp_path, judge_key_env="JUDGES_KEY")
    show = [sys.executable, "-c", "import os; print(dict(os.environ))"]
    said = run_harness("a harness", show, judge, tmp_path, tmp_path / "log", {})
    assert "'OPENAI_API_KEY': 'none'" in said
    assert "xyzzy" not in said


def test_judgments_that_cannot_be_kept_end_the_judging(tmp_path):
    with judging(lambda body: {"content": "[[7]]"}) as (url, asked):
        judge = judge_at(url, tmp_path)
        judge._db.execute("PRAGMA max_page_count = 3")  # as a full disk
        with pytest.raises(UsageError, match="judgments cannot be kept: database or disk is full"):
            harness(judge, tmp_path, questions=200)
        assert len(asked) < 200
        assert kept(tmp_path) == len(asked) - 1
        with pytest.raises(UsageError, match="judgments cannot be kept"):
            judge.check(body(), rated)


def test_a_damaged_file_of_judgments_is_told_by_its_name(tmp_path):
    (tmp_path / "judgments.sqlite").write_text("no database" * 99)
    with pytest.raises(
        UsageError, match=r"judgments.sqlite: no file of judgments .*not a database"
    ):
        judge_at("http://127.0.0.1:1/v1", tmp_path)

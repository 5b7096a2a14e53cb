"""Whatever happens to a run, nothing answered is lost or asked twice, and the same command ends it.

Real processes are killed, interrupted and left without a server. Chance is seeded; where a test
waits, it waits for what a process or a server did and not for the clock.
"""

import asyncio
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flaky_server import error, serving, until

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.run.__main__ import main

LAYERS = ("--width", "3", "--layers", "2")  # 3 requests a query, of 3, 3 and 1 samples
SCRIPTED = ("--scripted", *LAYERS, "--in-flight", "16")

# Forks a process for each command it reads, with everything imported: 50 starts take seconds. Where
# a log is named, every request asked of a scripted engine leaves its key there.
FORKER = """
import asyncio, contextlib, functools, json, os, sys
from aft_factory.run import __main__ as run
from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.errors import UsageError
from aft_factory.stage import engines

with contextlib.suppress(UsageError):  # nobody is there; it imports what it needs
    asyncio.run(OpenAIEngine.connect(["http://127.0.0.1:1/v1"]))

class Logged(ScriptedEngine):
    async def sample(self, request):
        os.write(asked, (request.key(self.model).hex() + "\\n").encode())
        return await super().sample(request)

for line in sys.stdin:
    argv, delay, log, printed = json.loads(line)
    if (pid := os.fork()) == 0:
        code = 99
        try:
            out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            asked = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            engines.ScriptedEngine = functools.partial(Logged, delay=delay)
            code = run.main(argv)
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Command:
    """Runs the command in processes of its own, one after another."""

    running = False

    def __init__(self):
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def settle(self, folder):
        self._log, self._printed = folder / "asked", folder / "printed"

    def asked(self):
        """The keys of all requests asked of scripted engines."""
        return self._log.read_text().split() if self._log.exists() else []

    def printed(self):
        """What the last command printed, on either stream."""
        return self._printed.read_text()

    def start(self, argv, delay=0.0):
        self._printed.unlink(missing_ok=True)
        line = json.dumps([argv, delay, str(self._log), str(self._printed)]) + "\n"
        self._forker.stdin.write(line.encode())
        self._pid = int(self._forker.stdout.readline())
        self.running = True

    def ended(self, seconds=0.0):
        return bool(select.select([self._forker.stdout], [], [], seconds)[0])

    def send(self, number):
        os.kill(self._pid, number)

    def code(self, seconds=60):
        assert self.ended(seconds), "it goes on and on"
        self.running = False
        return int(self._forker.stdout.readline())

    def run(self, argv, delay=0.0):
        """Run it; return its exit code."""
        self.start(argv, delay)
        return self.code()

    def kill(self, argv, delay=0.0, *, when):
        """Run it, and SIGKILL it as soon as `when()`."""
        self.start(argv, delay)
        while not when():
            assert not self.ended(0.002), "it ended before it could be killed"
        self.send(signal.SIGKILL)
        assert self.code() == -signal.SIGKILL

    def close(self):
        self._forker.stdin.close()
        self._forker.wait(60)


@pytest.fixture(scope="module")
def forker():
    command = Command()
    yield command
    command.close()


@pytest.fixture
def command(forker, tmp_path):
    forker.settle(tmp_path)
    yield forker
    if forker.running:  # a test failed
        forker.send(signal.SIGKILL)
        forker.code()


def arguments(source, output, *flags):
    return [str(source), "--output", str(output), "--quiet", *flags]


def write_lines(path, lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def plain_rows(count):
    """Queries with and without ids; rows that come twice; rows that cannot be read."""
    rows = []
    for i in range(count):
        rows.append({"query": f"What is {i}+{i}?", "tag": i} | ({"id": f"q{i}"} if i % 3 else {}))
        if i % 20 == 7:
            rows += [{"id": f"bad{i}", "query": " "}, "not json", rows[i // 2]]
    return rows


def two_turn_rows(count):
    """MT-Bench's layout; one question comes twice, one has no turns."""
    categories = ("math", "writing", "stem")
    rows = [
        {"question_id": i, "category": categories[i % 3], "turns": [f"Sum {i}?", "Explain."]}
        for i in range(count)
    ]
    return [*rows, rows[3], {"question_id": count, "category": "math", "turns": []}]


def seeds(requests):
    """What names requests on either side: how many samples, from which seed."""
    return {(request["n"], request["seed"]) for request in requests}


def replies(output):
    """All of a journal's rows: (place, request, reply), less the seconds that each took; empty
    where a kill left no journal yet."""
    path = Path(f"{output}.journal")
    try:
        with Journal(path, read_only=True) as journal:
            return [
                (place, request | {"seconds": None}, reply)
                for place, request, reply in journal.replies()
            ]
    except UsageError:
        assert not path.exists() or path.stat().st_size <= 4096
        return []


def contents(output):
    """All that a run leaves: output, rejects and summary, less what is said of the sessions."""
    summary = summary_of(output)
    for name in ("session", "sessions", "seconds"):
        del summary[name]
    rejects = output.with_suffix(".rejects.jsonl")
    return (
        output.read_bytes(),
        rejects.read_bytes() if rejects.exists() else None,
        json.dumps(summary),
    )


def summary_of(output):
    return json.loads(output.with_suffix(".summary.json").read_text())


def moment(chance, asked, longest):
    """A random moment of a run, as a condition: soon after its start or its first request."""
    begun, before = time.monotonic(), asked()
    at = begun + chance.uniform(0, longest) if chance.random() < 0.3 else None
    delay = chance.uniform(0, longest)

    def has_come():
        nonlocal at
        if at is None and asked() > before:
            at = time.monotonic() + delay
        return at is not None and time.monotonic() >= at

    return has_come


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "kills"), [(plain_rows(600), 50), (two_turn_rows(80), 10)], ids=["plain", "two turns"]
)
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(tmp_path, command, rows, kills):
    source = write_lines(tmp_path / "in.jsonl", rows)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert command.run(arguments(source, whole, *SCRIPTED)) == 0
    assert len(set(command.asked())) == len(command.asked()) == len(replies(whole))

    chance = random.Random(1)
    argv = arguments(source, output, *SCRIPTED)
    kept = set()
    for number in range(kills + 1):
        mark = len(command.asked())
        if number < kills:
            when = moment(chance, lambda: len(command.asked()), 0.25)
            command.kill(argv, 0.05, when=when)
        else:
            assert command.run(argv) == 0
        asked = command.asked()[mark:]
        assert len(set(asked)) == len(asked)
        assert not kept & set(asked)
        now = {request["key"].hex() for _, request, _ in replies(output)}
        assert kept <= now <= kept | set(asked)
        kept = now
    assert replies(output) == replies(whole)
    assert contents(output) == contents(whole)
    sessions = summary_of(output)["sessions"]
    assert sum(session["requests_asked"] for session in sessions) == len(kept)
    assert 1 < len(sessions) <= kills + 1  # some are killed before they begin


@pytest.mark.slow
def test_killed_at_random_moments_with_a_flaky_server_nothing_is_asked_twice(tmp_path, command):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(400))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    with serving() as server:
        flags = ("--base-url", server.url, *LAYERS, "--in-flight", "16", "--timeout", "2")
        assert command.run(arguments(source, whole, *flags)) == 0
    failures = ("429", "500", "reset", "hang")
    with serving(port=server.port, fail_rate=0.1, failures=failures, seed=1, delay=0.05) as server:
        chance = random.Random(2)
        argv = arguments(source, output, *flags)
        kept = set()
        for number in range(51):
            mark = len(server.log)
            if number < 50:
                command.kill(argv, when=moment(chance, lambda: len(server.requests), 0.2))
            else:
                server.delay = 0
                assert command.run(argv) == 0
            answered = seeds(server.log[mark:])
            assert not kept & answered
            now = seeds(request for _, request, _ in replies(output))
            assert kept <= now <= kept | answered
            kept = now
        assert len(server.failed) > 50
    assert replies(output) == replies(whole)
    assert contents(output) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_once_it_keeps_what_is_in_flight_and_goes_on_later(tmp_path, command, number):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(200))
    output = tmp_path / "out.jsonl"
    with serving(delay=0.5) as server:
        argv = arguments(source, output, "--base-url", server.url, *LAYERS, "--in-flight", "24")
        command.start(argv)
        until(lambda: len(server.log) >= 20)
        command.send(number)
        assert command.code() == 130
        printed = command.printed()
        assert "waiting for the requests in flight" in printed
        assert f"everything answered is in {output}.journal. The same command goes on" in printed
        assert not output.exists()
        assert len(replies(output)) == len(server.log) == len(server.requests)
        server.delay = 0
        assert command.run(argv) == 0
        assert len(seeds(server.log)) == len(server.log) == len(replies(output))
    summary = summary_of(output)
    assert summary["read"] == summary["written"] + summary["rejected"] == 230
    assert (summary["rejected"], summary["unfinished"]) == (20, 0)


@pytest.mark.slow
def test_interrupted_amid_a_population_it_keeps_what_is_in_flight(tmp_path, command):
    """A member that may not be asked any more ends its query; what others were sent is kept."""
    source = write_lines(tmp_path / "in.jsonl", [{"query": f"What is {i}+{i}?"} for i in range(40)])
    output = tmp_path / "out.jsonl"
    flags = ("--strategy", "rsa", "--width", "6", "--subset", "2", "--layers", "2")
    with serving(delay=0.5) as server:
        argv = arguments(source, output, "--base-url", server.url, *flags, "--in-flight", "20")
        command.start(argv)
        until(lambda: len(server.log) >= 20)
        command.send(signal.SIGINT)
        assert command.code() == 130
        assert 20 <= len(replies(output)) == len(server.log) == len(server.requests)
        server.delay = 0
        assert command.run(argv) == 0
        assert len(seeds(server.log)) == len(server.log) == len(replies(output)) == 40 * 18
    assert summary_of(output)["written"] == 40


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_twice_amid_a_population_it_leaves_at_once(tmp_path, command, second):
    source = write_lines(tmp_path / "in.jsonl", [{"query": f"What is {i}+{i}?"} for i in range(9)])
    flags = ("--strategy", "rsa", "--width", "6", "--subset", "2", "--layers", "2")
    with serving(delay=3600) as server:
        flags = ("--base-url", server.url, *flags, "--in-flight", "20")
        command.start(arguments(source, tmp_path / "out.jsonl", *flags))
        until(lambda: len(server.requests) >= 20)
        command.send(signal.SIGINT)
        until(lambda: "once more: leave them" in command.printed())
        command.send(second)
        assert command.code() == 130


def test_rows_that_fail_whenever_they_are_asked_do_not_keep_a_run_from_its_end(tmp_path, command):
    """Asked again at every start, they are all that is left to ask."""

    def answer(path, body):
        return error(500, "out of luck") if "7" in str(body["messages"][-1]) else None

    source = write_lines(tmp_path / "in.jsonl", [{"query": f"{i}?"} for i in range(20)])
    output = tmp_path / "out.jsonl"
    with serving(answer=answer) as server:
        argv = arguments(source, output, "--base-url", server.url, *LAYERS, "--retries", "1")
        for more in ((), ("--overwrite",)):
            assert command.run([*argv, *more]) == 0
            summary = summary_of(output)
            assert (summary["written"], summary["rejected"]) == (18, 2)
        assert summary["session"]["requests_asked"] == 0


def test_interrupted_twice_it_leaves_at_once(tmp_path, command):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(20))
    with serving(delay=3600) as server:
        command.start(arguments(source, tmp_path / "out.jsonl", "--base-url", server.url, *LAYERS))
        until(lambda: server.requests)
        command.send(signal.SIGINT)
        until(lambda: "once more: leave them" in command.printed())
        command.send(signal.SIGINT)
        assert command.code() == 130
        assert "the same command goes on where this one was" in command.printed()


@pytest.mark.slow
def test_with_a_flaky_server_every_query_ends_in_output_or_rejects(tmp_path, command):
    rows = [{"id": f"q{i}", "query": f"What is {i}+{i}?"} for i in range(200)]
    source = write_lines(tmp_path / "in.jsonl", [*rows, {"id": "bad"}])
    seconds, sent, written = {}, {}, {}
    for rate in (0.0, 0.1):
        output = tmp_path / f"{rate}.jsonl"
        with serving(fail_rate=rate, delay=0.05) as server:
            flags = ("--base-url", server.url, *LAYERS, "--in-flight", "64", "--timeout", "5")
            assert command.run(arguments(source, output, *flags)) == 0
            sent[rate], written[rate] = len(server.requests), output.read_bytes()
            assert len(seeds(server.log)) == len(server.log) == 600
        summary = summary_of(output)
        assert (summary["read"], summary["written"], summary["rejected"]) == (201, 200, 1)
        seconds[rate] = summary["session"]["seconds"]
    assert written[0.1] == written[0.0]
    assert sent[0.0] == 600 < sent[0.1] <= 1.3 * 600
    print(f"seconds, by the rate of failures: {seconds}")


def test_a_query_that_fails_at_every_attempt_is_rejected_alone(tmp_path, command):
    def answer(path, body):
        return error(500, "out of luck") if "7+7" in str(body["messages"]) else None

    source = write_lines(tmp_path / "in.jsonl", plain_rows(60))
    output = tmp_path / "out.jsonl"
    with serving(answer=answer, delay=0.1) as server:
        flags = ("--base-url", server.url, *LAYERS, "--in-flight", "12", "--retries", "1")
        assert command.run(arguments(source, output, *flags)) == 0
    summary = summary_of(output)
    assert (summary["written"], summary["rejected"]) == (62, 7)
    assert summary["rejects"]["engine"]["count"] == 1
    assert "no answer after 2 attempts" in summary["rejects"]["engine"]["first"]


def test_what_waits_for_another_attempt_holds_no_place_in_flight(tmp_path, command):
    asked = []

    def answer(path, body):
        asked.append(body["seed"])
        return error(429, "later", {"Retry-After": "200"}) if len(asked) <= 8 else None

    source = write_lines(tmp_path / "in.jsonl", [{"query": f"{i}?"} for i in range(100)])
    with serving(answer=answer) as server:
        flags = ("--base-url", server.url, "--width", "1", "--layers", "0", "--in-flight", "8")
        command.start(arguments(source, tmp_path / "out.jsonl", *flags))
        until(lambda: len(asked) == 100)  # all others, while the first ones wait
        assert len(set(asked)) == 100
        assert server.most_in_flight <= 8
        command.send(signal.SIGINT)
        assert command.code() == 130  # they do not wait any longer
    assert len(replies(tmp_path / "out.jsonl")) == 92


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["9", "900"], ids=["some waiting", "all in flight"])
@pytest.mark.parametrize("layers", [("--width", "1", "--layers", "0"), LAYERS], ids=["one", "more"])
def test_a_server_that_dies_ends_the_run_and_loses_nothing(tmp_path, command, layers, in_flight):
    asked = 0

    async def answer(path, body):
        nonlocal asked
        asked += 1
        if asked > 20:
            await asyncio.sleep(3600)

    rows = [{"query": f"What is {i}+{i}?"} for i in range(100)]
    source = write_lines(tmp_path / "in.jsonl", [*rows, "not json"])
    output = tmp_path / "out.jsonl"
    with serving(answer=answer) as server:
        flags = ("--base-url", server.url, *layers, "--in-flight", in_flight, "--retries", "2")
        argv = arguments(source, output, *flags)
        command.start(argv)
        until(lambda: len(server.log) == 20 < asked)
    assert command.code() == 2
    assert re.search("error: the model .* has answered nothing for", command.printed())
    assert "no answer after 3 attempts" in command.printed()
    assert "nothing answered is lost: it is in" in command.printed()
    assert list(tmp_path.glob("out*")) == [tmp_path / "out.jsonl.journal"]
    first = replies(output)
    assert len(first) == 20
    with serving(port=server.port) as server:
        assert command.run(argv) == 0
        assert len(seeds(server.log)) == len(server.log)
        assert not seeds(server.log) & seeds(request for _, request, _ in first)
    summary = summary_of(output)
    assert (summary["read"], summary["written"], summary["rejected"]) == (101, 100, 1)


def test_replies_do_not_depend_on_order_concurrency_or_interruption(tmp_path, command):
    rows = plain_rows(60)
    source = write_lines(tmp_path / "in.jsonl", rows)
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    assert command.run(arguments(source, one, "--scripted", *LAYERS, "--in-flight", "1")) == 0
    random.Random(3).shuffle(rows)
    shuffled = write_lines(tmp_path / "shuffled.jsonl", rows)
    argv = arguments(shuffled, many, "--scripted", *LAYERS, "--in-flight", "64")
    command.kill(argv, 0.05, when=lambda: len(command.asked()) > 180 + 90)
    assert 0 < len(replies(many)) < len(replies(one))
    assert command.run(argv) == 0
    assert replies(many) == replies(one)
    assert len(replies(one)) == 180
    lines = [output.read_text().splitlines() for output in (one, many)]
    assert lines[0] != lines[1]
    assert sorted(lines[0]) == sorted(lines[1])


@pytest.fixture
def killed(tmp_path, command):
    """A run that was killed in its midst: (arguments, output)."""
    source = write_lines(tmp_path / "in.jsonl", plain_rows(60))
    output = tmp_path / "out.jsonl"
    argv = arguments(source, output, *SCRIPTED)
    command.kill(argv, 0.05, when=lambda: len(command.asked()) > 160)
    return argv, output


def test_what_a_kill_left_in_the_wal_is_recovered(killed, tmp_path):
    argv, output = killed
    journal = Path(f"{output}.journal")
    kept = replies(output)
    assert Path(f"{journal}-wal").stat().st_size > 0
    assert 0 < len(kept) < 180
    with Journal(journal) as opened:
        told = [(place, reply) for place, _, reply in opened.replies()]
        assert told == [(place, reply) for place, _, reply in kept]
    assert list(tmp_path.glob("*.journal*")) == [journal]
    assert main(argv) == 0
    assert summary_of(output)["session"]["requests_asked"] == 180 - len(kept)


def test_export_writes_the_finished_rows_in_order_and_the_run_can_go_on(killed, tmp_path, capsys):
    argv, output = killed
    before = replies(output)
    assert main([*argv, "--export"]) == 0
    printed = capsys.readouterr().out
    summary = summary_of(output)
    written, unfinished = summary["written"], summary["unfinished"]
    assert written > 0 < unfinished
    assert written + unfinished + 6 == summary["read"] == 69
    assert f"read 69 rows: {written} written to {output}, 6 rejected" in printed
    assert f"{unfinished} not done yet" in printed
    assert replies(output) == before
    some = output.read_text().splitlines()

    assert main(argv) == 0  # what an export left is no obstacle
    every = output.read_text().splitlines()
    assert len(every) == 63
    assert [line for line in every if line in set(some)] == some
    assert len(some) == written
    whole = tmp_path / "whole.jsonl"
    assert main(arguments(argv[0], whole, *SCRIPTED)) == 0
    assert contents(output) == contents(whole)


def test_a_journal_in_use_is_closed_to_another_run_and_open_to_read(tmp_path, command, capsys):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(20))
    output = tmp_path / "out.jsonl"
    with serving(delay=0.05) as server:
        flags = ("--base-url", server.url, *LAYERS, "--in-flight", "8", "--admit", "4")
        argv = arguments(source, output, *flags)
        command.start(argv)
        until(lambda: len(server.log) >= 20)
        command.send(signal.SIGSTOP)
        try:
            assert main(argv) == 2
            err = capsys.readouterr().err
            assert f"{output}.journal: another run is using this journal; wait for it" in err
            aside = arguments(source, tmp_path / "part.jsonl", *flags)
            assert main([*aside, "--journal", f"{output}.journal", "--export"]) == 0
            assert "not done yet" in capsys.readouterr().out
        finally:
            command.send(signal.SIGCONT)
        assert command.code() == 0
        assert len(seeds(server.log)) == len(server.log) == 60


@pytest.mark.parametrize(
    "damage",
    [
        lambda good, noise: noise,
        lambda good, noise: good[: len(good) // 2],
        lambda good, noise: good[:1000],
        lambda good, noise: good[:4096] + noise[4096:],
        lambda good, noise: good[:-9000] + noise[-9000:],
        lambda good, noise: good[:16] + noise[16:],
    ],
    ids=["noise", "half", "a part of a page", "no tables", "its end", "only its name"],
)
def test_a_damaged_journal_is_refused_in_clear_words(tmp_path, capsys, damage):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(60))
    output = tmp_path / "out.jsonl"
    argv = arguments(source, output, *SCRIPTED)
    assert main(argv) == 0
    journal = Path(f"{output}.journal")
    good = journal.read_bytes()
    output.unlink()
    data = damage(good, random.Random(4).randbytes(len(good)))
    journal.write_bytes(data)
    capsys.readouterr()
    for more in ((), ("--export",)):
        assert main([*argv, *more]) == 2
        err = capsys.readouterr().err
        assert f"error: {journal}: " in err
        assert "journal that can be read" in err or "journal cannot be used" in err
        assert not output.exists()


def test_a_changed_setting_asks_what_is_new_and_never_mixes_outcomes(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", plain_rows(15))  # 15 different queries
    base = {"--width": "3", "--layers": "1"}
    changes = [
        ((), 15 * 2),
        (("--layers", "2"), 15 * 2),  # the proposals stay; layer 1 is now wider
        (("--layers", "1"), 0),
        (("--width", "4"), 15 * 2),
        (("--final-temperature", "0"), 15),  # of the final layer only
        (("--temperature", "0", "--final-temperature", "0"), 15 * 2),
        (("--seed", "1"), 15 * 2),
        (("--template", "moa"), 15),
        (("--keep-drafts",), 0),
        (("--strategy", "parallel_sampling"), 0),
        (("--in-flight", "1"), 0),
    ]
    output = tmp_path / "out.jsonl"
    for number, (flags, asked) in enumerate(changes):
        names = [name for name in base if name not in flags]
        names = [name for name in names if "--strategy" not in flags or name != "--layers"]
        kept = ["--scripted", *(part for name in names for part in (name, base[name]))]
        assert main([*arguments(source, output, *kept, *flags), "--overwrite"]) == 0
        assert summary_of(output)["session"]["requests_asked"] == asked, flags
        fresh = tmp_path / f"fresh{number}.jsonl"
        assert main(arguments(source, fresh, *kept, *flags)) == 0
        assert contents(output) == contents(fresh), flags

"""Asking: the limit in flight, retries, the journal in between, stopping."""

import asyncio
import re

import pytest
from asking_tools import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from aft_factory.asking import Asker, Limiter, Retries, Stopped
from aft_factory.engines import EngineError
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.journal import Journal, Place
from aft_factory.sampling import Completion, Reply, Request, Sampling, Usage

PLACE = Place("q", 0, 0, 0)


def request(text="?", n=1, seed=1):
    return Request([{"role": "user", "content": text}], n, Sampling(), seed)


def flaky(*problems):
    """A script that raises each problem once, and then answers."""
    left = list(problems)
    return lambda r: left.pop(0) if left else ["fine"] * r.n


def ask(engine, journal=None, retries=QUICK, asked=None):
    async def run():
        asker = Asker({"": engine}, journal, 10, retries)
        _, reply = await asker.ask(asked or request(), PLACE)
        return reply, asker

    return asyncio.run(run())


@settings(max_examples=50, deadline=None)
@given(
    limit=st.integers(1, 8),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    cancelled=st.sets(st.integers(0, 29)),
)
def test_the_limit_is_never_passed_never_leaks_and_lets_all_in_first_come_first_served(
    limit, sizes, cancelled
):
    entered = []

    async def run():
        limiter = Limiter(limit)

        async def one(i, n):
            async with limiter.slots(n):
                entered.append(i)
                assert limiter.taken <= limit
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one(i, n)) for i, n in enumerate(sizes)]
        await asyncio.sleep(0)
        for i in cancelled & set(range(len(sizes))):
            tasks[i].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert limiter.taken == 0
        return limiter

    limiter = asyncio.run(run())
    assert entered == sorted(entered)
    assert set(entered) >= set(range(len(sizes))) - cancelled
    assert limiter.most <= limit


def test_stopping_turns_away_who_waits_and_leaves_who_is_in():
    async def run():
        limiter = Limiter(1)
        out = []

        async def one(i):
            try:
                async with limiter.slots(1):
                    await asyncio.sleep(0.01)
                    out.append(f"{i} done")
            except Stopped:
                out.append(f"{i} stopped")

        tasks = [asyncio.create_task(one(i)) for i in range(3)]
        await asyncio.sleep(0)
        limiter.stop()
        await asyncio.gather(*tasks)
        return out

    assert asyncio.run(run()) == ["1 stopped", "2 stopped", "0 done"]


def test_a_passing_failure_is_asked_again():
    engine = ScriptedEngine(flaky(EngineError("busy", "retry"), EngineError("reset", "retry")))
    reply, asker = ask(engine)
    assert reply.completions[0].text == "fine"
    assert (len(engine.requests), asker.counts.retried, asker.counts.asked) == (3, 2, 1)


@pytest.mark.parametrize("kind", ["refused", "fatal"])
def test_a_final_failure_is_not_asked_again(kind):
    engine = ScriptedEngine(flaky(EngineError("too long", kind)))
    with pytest.raises(EngineError, match="too long"):
        ask(engine)
    assert len(engine.requests) == 1


def test_who_gets_no_answer_while_nobody_does_ends_the_run():
    engine = ScriptedEngine(lambda r: EngineError("no route", "retry"))

    async def run():
        asker = Asker({"": engine}, None, 10, QUICK)
        return await asyncio.gather(
            *(asker.ask(request(seed=seed), PLACE) for seed in range(2)), return_exceptions=True
        )

    # Whichever gives up first: one alone may be at fault itself.
    fatal, refused = sorted(asyncio.run(run()), key=lambda error: error.kind)
    assert (fatal.kind, refused.kind) == ("fatal", "refused")
    assert re.search("answered nothing .* 4 attempts; the last: no route", str(fatal))


def test_who_gets_no_answer_while_others_do_is_refused_alone():
    def script(r):
        return EngineError("bad luck", "retry") if r.seed == 1 else ["fine"]

    async def run():
        asker = Asker({"": ScriptedEngine(script)}, None, 10, Retries(3, 0.01, 0.01))

        async def others():
            for seed in range(100, 150):
                await asker.ask(request(seed=seed), PLACE)
                await asyncio.sleep(0.001)

        busy = asyncio.create_task(others())
        with pytest.raises(EngineError) as error:
            await asker.ask(request(seed=1), PLACE)
        await busy
        return error.value

    assert asyncio.run(run()).kind == "refused"


def test_waits_double_with_jitter_and_honour_retry_after():
    retries = Retries(most=9, first=1, longest=8)
    for attempt, top in enumerate([1, 2, 4, 8, 8]):
        waits = [retries.wait(attempt, None) for _ in range(50)]
        assert top / 2 <= min(waits) < max(waits) <= top
    assert retries.wait(0, 7.5) == 7.5
    assert retries.wait(0, 1e9) == 80


def test_a_wait_holds_no_place_in_flight():
    def script(r):
        return EngineError("busy", "retry", 0.2) if r.seed == 1 else ["fine"]

    async def run():
        asker = Asker({"": ScriptedEngine(script)}, None, 1, Retries(1, 0.2, 0.2))
        failing = asyncio.create_task(asker.ask(request(seed=1), PLACE))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        await asyncio.wait_for(asker.ask(request(seed=2), PLACE), 0.1)
        failing.cancel()

    asyncio.run(run())


def test_what_was_answered_is_not_asked_again(tmp_path):
    first, second = ScriptedEngine(), ScriptedEngine()
    with Journal(tmp_path / "j") as journal:
        kept, _ = ask(first, journal)
    with Journal(tmp_path / "j") as journal:
        replayed, asker = ask(second, journal)
    assert replayed == kept
    assert (second.requests, asker.counts.asked, asker.counts.replayed) == ([], 0, 1)


def test_equal_requests_at_the_same_time_are_asked_once(tmp_path):
    engine = ScriptedEngine(delay=0.01)

    async def run(journal):
        asker = Asker({"": engine}, journal, 10, QUICK)
        replies = await asyncio.gather(*(asker.ask(request(), PLACE) for _ in range(5)))
        assert len({reply.completions for _, reply in replies}) == 1

    with Journal(tmp_path / "j") as journal:
        asyncio.run(run(journal))
    assert len(engine.requests) == 1


def test_half_a_surrogate_pair_does_not_stop_the_run(tmp_path):
    engine = ScriptedEngine(lambda r: ["broken \ud83d emoji"])
    with Journal(tmp_path / "j") as journal:
        reply, _ = ask(engine, journal)
        assert reply.completions[0].text == "broken ? emoji"
        assert journal.find(request().key("scripted")) == reply


def test_the_key_names_all_that_decides_an_answer():
    base = request()
    changed = [
        request("other"),
        request(n=2),
        request(seed=2),
        Request(base.prompt, 1, Sampling(temperature=0.1), 1),
        Request("?", 1, Sampling(), 1),
        Request(base.prompt, 1, Sampling(extra={"min_p": 0.1}), 1),
    ]
    keys = [r.key("m") for r in [base, *changed]] + [base.key("other model")]
    assert len(set(keys)) == len(keys)
    assert base.key("m") == request().key("m")


def test_unknown_usage_stays_unknown():
    assert Usage(1, None, 2) + Usage(3, 4, None) == Usage(4, None, None)
    assert sum([Usage(1, 2, 3)] * 2, Usage()) == Usage(2, 4, 6)


def test_a_reply_survives_the_journal(tmp_path):
    reply = Reply(
        (Completion("a\x00\n", "stop", 3), Completion("", "length", None)), Usage(7, None, 9)
    )
    with Journal(tmp_path / "j") as journal:
        journal.keep(b"k", PLACE, "m", request(n=2), reply)
        assert journal.find(b"k") == reply

"""Asking: the limit in flight, retries, the journal in between, stopping."""

import asyncio
import re
from dataclasses import replace

import pytest
from asking_tools import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from aft_factory.asking.asker import Asker
from aft_factory.asking.availability import Retries
from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.limiter import Limiter, Stopped, client
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Reply, Request, Sampling, Usage
from aft_factory.engines.scripted import ScriptedEngine

PLACE = Place("q", 0, 0, 0)


def request(text="?", n=1, seed=1):
    return Request([{"role": "user", "content": text}], n, Sampling(), seed)


def flaky(*problems):
    """A script that raises each problem once, and then answers."""
    left = list(problems)
    return lambda r: left.pop(0) if left else ["fine"] * r.n


def ask(engine, journal=None, retries=QUICK, asked=None):
    async def run():
        async with Asker({"": engine}, journal, 10, retries) as asker:
            return await asker.ask(asked or request(), PLACE), asker

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
            await limiter.enter(n)
            try:
                entered.append(i)
                assert limiter.taken <= limit
                await asyncio.sleep(0)
            finally:
                limiter.leave(n)

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


def test_one_who_waits_no_longer_does_not_keep_out_who_stands_behind():
    async def run():
        limiter = Limiter(10)
        await limiter.enter(8)
        big, small = (asyncio.create_task(limiter.enter(n)) for n in (5, 2))
        await asyncio.sleep(0)
        big.cancel()
        await asyncio.wait_for(small, 60)
        assert limiter.taken == 10

    asyncio.run(run())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 3))
def test_clients_take_turns_and_of_each_the_first_comes_first(clients, limit):
    entered = []

    async def one(limiter, i, name):
        client.set(str(name))
        await limiter.enter(1)
        entered.append((i, name))
        await asyncio.sleep(0)
        limiter.leave(1)

    async def run():
        limiter = Limiter(limit)
        await limiter.enter(limit)
        tasks = [asyncio.create_task(one(limiter, i, name)) for i, name in enumerate(clients)]
        await asyncio.sleep(0)
        assert limiter.waiting == len(clients)
        limiter.leave(limit)
        await asyncio.gather(*tasks)
        assert (limiter.taken, limiter.waiting) == (0, 0)

    asyncio.run(run())
    for name in set(clients):
        own = [i for i, who in entered if who == name]
        assert own == sorted(own)
    turns = dict.fromkeys(clients, 0)  # nobody is let in once more before all who wait have been
    for _, name in entered:
        assert turns[name] == min(n for who, n in turns.items() if n < clients.count(who))
        turns[name] += 1


def test_stopping_turns_away_who_waits_and_leaves_who_is_in():
    async def run():
        limiter = Limiter(1)
        out = []

        async def one(i):
            try:
                await limiter.enter(1)
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
    assert (len(engine.requests), asker.counts.retried, asker.counts.asked.requests) == (3, 2, 1)


@pytest.mark.parametrize("kind", ["refused", "fatal"])
def test_a_final_failure_is_not_asked_again(kind):
    engine = ScriptedEngine(flaky(EngineError("too long", kind)))
    with pytest.raises(EngineError, match="too long"):
        ask(engine)
    assert len(engine.requests) == 1


class Nobody(ScriptedEngine):
    """Fails every request for a passing reason, and may not even be there."""

    def __init__(self, there, script=lambda r: EngineError("no route", "retry"), **options):
        super().__init__(script, **options)
        self.there = there

    async def reachable(self):
        return self.there


def poisoned(r):
    """A script of a server that fails for some texts and answers all others."""
    text = r.prompt if isinstance(r.prompt, str) else r.prompt[-1]["content"]
    return EngineError("out of luck", "retry") if "poison" in text else ["fine"] * r.n


def give_up(engine, count, in_flight=10, **more):
    """The errors of so many requests at once, the fatal ones first."""

    async def run():
        async with Asker({"": engine}, None, in_flight, QUICK) as asker:
            asked = (asker.ask(request(seed=seed, **more), PLACE) for seed in range(count))
            errors = await asyncio.gather(*asked, return_exceptions=True)
        return sorted(errors, key=lambda error: error.kind)

    return asyncio.run(run())


def test_who_gets_no_answer_from_an_engine_that_is_gone_ends_the_run():
    engine = Nobody(there=False)
    fatal, first = give_up(engine, 2)  # one alone may be at fault itself
    assert (fatal.kind, first.kind) == ("fatal", "retry")
    words = "model scripted has answered nothing .* 4 attempts; the last: no route"
    assert re.search(words, str(fatal))
    assert len(engine.requests) == 2 * 4  # nor is it asked anything else


@pytest.mark.parametrize("in_flight", [1, 10, 100])
def test_rows_that_an_engine_fails_end_no_run_though_nobody_else_asks(in_flight):
    """Be they the first of a run, the last, or all that may be in flight."""
    engine = Nobody(True, poisoned)
    errors = give_up(engine, 30, in_flight, text="poison")
    assert {error.kind for error in errors} == {"retry"}
    assert 1 <= len(engine.requests) - 30 * 4 <= 29  # it was asked something harmless instead


@pytest.mark.parametrize("prompt", ["poison", [{"role": "user", "content": "poison"}]])
def test_what_an_engine_is_asked_instead_is_as_harmless_as_it_is_alike(tmp_path, prompt):
    engine, sampling = Nobody(True, poisoned), Sampling(temperature=0.3, extra={"min_p": 0.1})

    async def run(journal):
        async with Asker({"": engine, "b": engine}, journal, 10, QUICK) as asker:
            asked = [Request(prompt, 5, sampling, seed, "b") for seed in (1, 2)]
            errors = asyncio.gather(*(asker.ask(r, PLACE) for r in asked), return_exceptions=True)
            assert [error.kind for error in await errors] == ["retry", "retry"]
        assert asker.counts.asked == Usage()

    with Journal(tmp_path / "j") as journal:
        asyncio.run(run(journal))
        assert list(journal.replies()) == []
    [probe] = [r for r in engine.requests if r.prompt != prompt]
    assert isinstance(probe.prompt, str) == isinstance(prompt, str)
    assert (probe.n, probe.model, probe.sampling) == (1, "b", replace(sampling, max_tokens=1))


def test_an_engine_that_is_there_but_answers_nobody_ends_the_run():
    engine = Nobody(there=True)
    assert [error.kind for error in give_up(engine, 2)] == ["fatal", "retry"]
    assert len(engine.requests) == 3 * 4  # it is asked something else as often as anybody


def test_what_an_engine_is_asked_instead_may_fail_as_others_may():
    failures = iter(["busy", "reset"])

    def script(r):
        if r.prompt == request("poison").prompt:
            return EngineError("out of luck", "retry")
        return EngineError(problem, "retry") if (problem := next(failures, None)) else ["fine"]

    assert {error.kind for error in give_up(Nobody(True, script), 3, text="poison")} == {"retry"}


@pytest.mark.parametrize(("kind", "ends"), [("refused", False), ("fatal", True)])
def test_an_engine_that_refuses_what_it_is_asked_instead_is_there(kind, ends):
    def script(r):
        poison = r.prompt == request("poison").prompt
        return EngineError("no", "retry" if poison else kind)

    engine = Nobody(True, script)
    kinds = [error.kind for error in give_up(engine, 5, text="poison")]
    assert kinds == (["fatal"] * 4 + ["retry"] if ends else ["retry"] * 5)
    assert ends or len(engine.requests) < 5 * 4 + 4  # not for each that is given up


def test_an_engine_that_answers_others_meanwhile_is_there_whatever_it_is_asked_instead():
    async def run():
        async def sample(r):
            if len(engine.requests) == 11 and r.seed != 100:  # the last of what is asked instead
                late.set()
                await answered.wait()
            return await ScriptedEngine.sample(engine, r)

        late, answered = asyncio.Event(), asyncio.Event()
        engine = Nobody(True, lambda r: ["fine"] if r.seed == 100 else EngineError("no", "retry"))
        engine.sample = sample
        async with Asker({"": engine}, None, 10, Retries(3, 0, 0)) as asker:
            failing = [asyncio.create_task(asker.ask(request(seed=i), PLACE)) for i in range(2)]
            await late.wait()
            await asker.ask(request(seed=100), PLACE)
            answered.set()
            return [error.kind for error in await asyncio.gather(*failing, return_exceptions=True)]

    assert asyncio.run(run()) == ["retry", "retry"]


def test_one_of_several_engines_that_answers_nobody_ends_the_run():
    """As a proposer of `moa`, though the others answer all the time."""

    async def run(there):
        dead = Nobody(there, model="dead")
        async with Asker({"": ScriptedEngine(), "b": dead}, None, 10, QUICK) as asker:

            async def one(i):
                failing = asyncio.create_task(asker.ask(replace(request(seed=i), model="b"), PLACE))
                seed = 1000 * (i + 1)
                while not failing.done():
                    await asker.ask(request(seed=seed), PLACE)
                    seed += 1
                return failing.exception()

            return sorted([(e.kind, str(e)) for e in await asyncio.gather(*map(one, range(2)))])

    for there in (True, False):
        (fatal, words), (first, _) = asyncio.run(run(there))
        assert (fatal, first) == ("fatal", "retry")
        assert words.startswith("the model dead has answered nothing for ")


@pytest.mark.parametrize("name", ["", "b"])
def test_who_gets_no_answer_while_others_do_fails_alone(name):
    """Not even when they all fail, and nobody is there at the moment."""

    def script(r):
        return EngineError("bad luck", "retry") if r.seed < 100 else ["fine"]

    async def run():
        engines = {"": ScriptedEngine(), name: Nobody(False, script)}
        async with Asker(engines, None, 50, Retries(3, 0.01, 0.01)) as asker:
            asked = [replace(request(seed=i), model=name or None) for i in range(5)]
            failing = [asyncio.create_task(asker.ask(r, PLACE)) for r in asked]
            seed = 100
            while not all(task.done() for task in failing):
                await asker.ask(replace(asked[0], seed=seed), PLACE)
                seed += 1
            return [task.exception().kind for task in failing]

    assert asyncio.run(run()) == ["retry"] * 5


def test_what_an_engine_answered_before_the_first_failure_tells_nothing():
    async def run():
        async def sample(r):
            if r.seed == 100:
                return await ScriptedEngine().sample(r)
            await answered.wait()
            raise EngineError("gone", "retry")

        answered, engine = asyncio.Event(), Nobody(there=False)
        engine.sample = sample
        async with Asker({"": engine}, None, 50, QUICK) as asker:
            failing = [asyncio.create_task(asker.ask(request(seed=i), PLACE)) for i in range(2)]
            await asyncio.sleep(0)
            await asker.ask(request(seed=100), PLACE)
            answered.set()
            errors = await asyncio.gather(*failing, return_exceptions=True)
            return sorted(error.kind for error in errors)

    assert asyncio.run(run()) == ["fatal", "retry"]


def test_who_gets_no_answer_once_in_a_while_fails_alone():
    def script(r):
        return EngineError("bad luck", "retry") if r.seed < 100 else ["fine"]

    async def run():
        async with Asker({"": Nobody(False, script)}, None, 50, QUICK) as asker:
            for seed in range(3):
                with pytest.raises(EngineError) as caught:
                    await asker.ask(request(seed=seed), PLACE)
                assert caught.value.kind == "retry"
                await asker.ask(request(seed=100 + seed), PLACE)

    asyncio.run(run())


def test_what_was_sent_is_kept_though_nobody_waits_for_it(tmp_path):
    """As when another draft of the query fails, or the run is stopped: it is paid for."""

    async def run(journal, engine):
        async with Asker({"": engine}, journal, 10, QUICK) as asker:
            asking = asyncio.create_task(asker.ask(request(), PLACE))
            while not engine.requests:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            second = asyncio.create_task(asker.ask(request(), PLACE))  # waits for the first
            asker.stop()
            await asyncio.sleep(0)
        assert asker.limiter.taken == 0
        return await second

    engine = ScriptedEngine(delay=0.05)
    with Journal(tmp_path / "j") as journal:
        reply = asyncio.run(run(journal, engine))
        assert journal.find(request().key("scripted")) == reply
    assert len(engine.requests) == 1


def test_after_an_error_what_is_in_flight_is_given_up(tmp_path):
    async def run(engine):
        async with Asker({"": engine}, None, 10, QUICK) as asker:
            asking = asyncio.create_task(asker.ask(request(), PLACE))
            while not engine.requests:
                await asyncio.sleep(0)
            raise KeyError
        await asking

    with pytest.raises(KeyError):
        asyncio.run(asyncio.wait_for(run(ScriptedEngine(delay=3600)), 60))


def test_samples_that_an_engine_gives_one_by_one_are_kept_one_by_one(tmp_path):
    """A failure of one of them costs no other."""
    failed = []

    def script(r):
        if r.seed == 3 and len(failed) < 2:
            failed.append(r)
            return EngineError("busy", "retry")
        return [f"sample {r.seed}"]

    engine = ScriptedEngine(script)
    engine.most_samples = 1
    with Journal(tmp_path / "j") as journal:
        reply, asker = ask(engine, journal, asked=request(n=4, seed=1))
        places = [place for place, _, _ in journal.replies()]
    assert [c.text for c in reply.completions] == ["sample 1", "sample 2", "sample 3", "sample 4"]
    assert [place.slot for place in places] == [0, 1, 2, 3]
    assert (len(engine.requests), asker.counts.asked.requests, asker.counts.retried) == (6, 4, 2)
    assert reply.usage.prompt == 4  # "?" is a token, read four times


def test_waits_double_with_jitter_and_honour_retry_after():
    retries = Retries(most=9, first=1, longest=8)
    for attempt, top in enumerate([1, 2, 4, 8, 8]):
        waits = [retries.wait(attempt, None) for _ in range(50)]
        assert top / 2 <= min(waits) < max(waits) <= top
    assert retries.wait(0, 7.5) == 7.5
    assert retries.wait(5000, None) <= 8
    assert retries.wait(0, 1e9) == 80


def test_a_wait_holds_no_place_in_flight():
    def script(r):
        return EngineError("busy", "retry") if r.seed == 1 else ["fine"]

    async def run():
        engine = ScriptedEngine(script)
        asker = Asker({"": engine}, None, 1, Retries(1, 3600, 3600))
        failing = asyncio.create_task(asker.ask(request(seed=1), PLACE))
        while not engine.requests:
            await asyncio.sleep(0)
        await asyncio.wait_for(asker.ask(request(seed=2), PLACE), 60)
        failing.cancel()

    asyncio.run(run())


def test_what_was_answered_is_not_asked_again(tmp_path):
    first, second = ScriptedEngine(), ScriptedEngine()
    with Journal(tmp_path / "j") as journal:
        kept, _ = ask(first, journal)
    with Journal(tmp_path / "j") as journal:
        replayed, asker = ask(second, journal)
    assert replayed == kept
    assert (second.requests, asker.counts.asked.requests) == ([], 0)


def test_equal_requests_at_the_same_time_are_asked_once(tmp_path):
    engine = ScriptedEngine(delay=0.01)

    async def run(journal):
        asker = Asker({"": engine}, journal, 10, QUICK)
        replies = await asyncio.gather(*(asker.ask(request(), PLACE) for _ in range(5)))
        assert len({reply.completions for reply in replies}) == 1

    with Journal(tmp_path / "j") as journal:
        asyncio.run(run(journal))
    assert len(engine.requests) == 1


def test_who_waits_with_others_for_one_reply_may_go_and_the_others_get_it():
    async def run(leaves):
        engine = ScriptedEngine(flaky(EngineError("busy", "retry")))
        async with Asker({"": engine}, None, 10, QUICK) as asker:
            asked = [asyncio.create_task(asker.ask(request(), PLACE)) for _ in range(3)]
            while not engine.requests:
                await asyncio.sleep(0)
            asked[leaves].cancel()
            replies = await asyncio.gather(*asked, return_exceptions=True)
        assert asker.limiter.taken == 0
        assert asker.counts.asked.requests == 1
        return [isinstance(reply, Reply) for reply in replies], len(engine.requests)

    assert asyncio.run(run(0)) == ([False, True, True], 2)
    assert asyncio.run(run(2)) == ([True, True, False], 2)


def test_what_fails_is_not_asked_again_for_who_has_gone():
    async def run():
        async def sample(r):
            asked.set()
            await gone.wait()
            sent.append(r)
            raise EngineError("busy", "retry")

        asked, gone, sent, engine = asyncio.Event(), asyncio.Event(), [], ScriptedEngine()
        engine.sample = sample
        async with Asker({"": engine}, None, 10, Retries(9, 3600, 3600)) as asker:
            asking = asyncio.create_task(asker.ask(request(), PLACE))
            await asked.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            gone.set()
        return len(sent)

    assert asyncio.run(asyncio.wait_for(run(), 60)) == 1


def test_what_waits_to_be_sent_is_not_sent_for_who_has_gone_and_who_comes_then_gets_it():
    async def run(engine):
        async with Asker({"": engine}, None, 1, QUICK) as asker:
            first = asyncio.create_task(asker.ask(request(seed=1), PLACE))
            while not engine.requests:
                await asyncio.sleep(0)
            gone = asyncio.create_task(asker.ask(request(seed=2), PLACE))
            gone_too = asyncio.create_task(asker.ask(request(seed=3), PLACE))
            await asyncio.sleep(0)
            gone.cancel()
            gone_too.cancel()
            later = [asyncio.create_task(asker.ask(request(seed=2), PLACE)) for _ in range(2)]
            await asyncio.gather(first, *later)
        assert asker.limiter.taken == 0

    engine = ScriptedEngine(delay=0.01)
    asyncio.run(asyncio.wait_for(run(engine), 60))
    assert [r.seed for r in engine.requests] == [1, 2]


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
    assert Usage(1, 1, 1, None, 2) + Usage(1, 2, 3, 4, None) == Usage(2, 3, 4, None, None)
    assert sum([Usage(1, 2, 3, 4, 5, 6)] * 2, Usage()) == Usage(2, 4, 6, 8, 10, 12)


def test_a_reply_survives_the_journal(tmp_path):
    drafts = (Completion("a\x00\n", "stop", 3), Completion("", "length", None, instead="a thought"))
    reply = Reply.of(drafts, 7, None, 9)
    with Journal(tmp_path / "j") as journal:
        journal.keep(b"k", PLACE, "m", request(n=2), reply)
        assert journal.find(b"k") == reply


# Who hears of samples while they are written; what is given up


def heard(pieces):
    """The texts that pieces make, by sample."""
    texts = {}
    for piece in pieces:
        texts[piece.index] = (texts.get(piece.index, "") if piece.start else "") + piece.text
    return texts


@pytest.mark.parametrize("most", [None, 1, 2])
def test_who_listens_hears_what_is_answered_each_sample_at_its_place(most):
    engine, pieces = ScriptedEngine(), []
    engine.most_samples = most

    async def run():
        async with Asker({"": engine}, None, 10) as asker:
            return await asker.ask(request(n=3), PLACE, pieces.append)

    reply = asyncio.run(run())
    assert heard(pieces) == {i: c.text for i, c in enumerate(reply.completions)}
    assert len(set(heard(pieces).values())) == 3
    assert len(pieces) > 10


def test_who_joins_an_equal_request_hears_it_from_its_beginning():
    first, second = [], []

    async def run():
        async with Asker({"": ScriptedEngine(delay=0.1)}, None, 10) as asker:
            one = asyncio.create_task(asker.ask(request(), PLACE, first.append))
            while len(first) < 3:
                await asyncio.sleep(0.001)
            two = asyncio.create_task(asker.ask(request(), PLACE, second.append))
            await asyncio.sleep(0)
            assert len(second) == 1
            one.cancel()
            return len(first), await two

    before, reply = asyncio.run(run())
    assert heard(second) == {0: reply.completions[0].text}
    assert len(first) == before  # who has gone hears no more


@pytest.mark.parametrize("keep_sent", [True, False])
def test_what_was_sent_and_nobody_waits_for_is_kept_or_given_up(tmp_path, keep_sent):
    engine = ScriptedEngine(delay=0.2)

    async def run(journal):
        async with Asker({"": engine}, journal, 10, keep_sent=keep_sent) as asker:
            asking = asyncio.create_task(asker.ask(request(), PLACE))
            while not engine.requests:
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.wait([asking])
            await asyncio.sleep(0)
            assert asker.limiter.taken == (1 if keep_sent else 0)

    with Journal(tmp_path / "j") as journal:
        asyncio.run(run(journal))
        assert len(list(journal.replies())) == keep_sent

"""Replicas, the driver's side and the node's: who is asked, who is lost, who waits, who is refused.

The actors are in this process; `test_ray` has the same with real ones.
"""

import asyncio
import functools
import os
import pickle
import socket
from dataclasses import replace

import pytest
from ray_here import Here

from aft_factory.engines import ray_actor, ray_replicas
from aft_factory.engines.engine import EngineError
from aft_factory.engines.identity import contents, fingerprint
from aft_factory.engines.ray_actor import Absent, Replica, comparable
from aft_factory.engines.ray_engine import RayEngine, RayReward
from aft_factory.engines.sampling import Piece, Request, Sampling
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.engines.vllm_served import Served
from aft_factory.errors import UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'aft-factory[ray]'")
from ray.exceptions import (  # noqa: E402 - where it is not installed, nothing here is
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
)

REQUEST = Request([{"role": "user", "content": "Hello"}], 2, Sampling(), 7)
GONE = ActorUnavailableError("its process is gone", b"0" * 16)


class Engine(ScriptedEngine):
    """A scripted engine that answers when the gate of its replica is open."""

    identity = "a model"

    def __init__(self, name, gates):
        super().__init__(lambda request: [name] * request.n, record=False)
        self.gate = gates.setdefault(name, asyncio.Event())

    async def sample(self, request):
        await self.gate.wait()
        return await super().sample(request)

    async def stream(self, request, told):
        told(Piece(0, "first", 0))
        await self.gate.wait()
        told(Piece(0, "last", 5, ended=True))
        return await super().sample(request)

    async def reachable(self):
        return False

    async def close(self):
        self.gate.closed = True


@pytest.fixture
def here(monkeypatch):
    stand_in = Here()
    for name in ("remote", "kill", "cancel"):
        monkeypatch.setattr(ray, name, getattr(stand_in, name))
    monkeypatch.setattr(ray_replicas, "LONGEST_PAUSE", 0.05)
    return stand_in


def run(here, scenario, count=2, kind=RayEngine, gpus=0, opening=None, **more):
    """Begin replicas 0, 1, ... and have something happen to them."""
    names, gates = iter(range(1000)), {}

    async def open_one():
        return Engine(str(next(names)), gates)

    async def whole():
        opened = await kind.start(opening or open_one, count, gpus, what="a model", **more)
        for member in opened._members:
            await member.loading
        try:
            return await scenario(opened, gates)
        finally:
            await opened.close()

    return asyncio.run(asyncio.wait_for(whole(), 20))


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def texts(reply):
    return {completion.text for completion in reply.completions}


def test_ray_begins_actors_anew_but_repeats_no_call(here):
    async def nothing(opened, gates):
        pass

    run(here, nothing, count=3, gpus=2)
    assert len(here.handles) == 3
    told = {name: here.options[name] for name in ("max_restarts", "max_task_retries")}
    assert told == {"max_restarts": -1, "max_task_retries": 0}
    assert here.options["num_gpus"] == 2
    assert here.options["scheduling_strategy"] == "SPREAD"


def test_a_request_goes_to_the_replica_with_the_fewest_samples(here):
    async def ask(opened, gates):
        weights = [5, 1, 1, 1, 1, 1, 1]
        asked = [
            asyncio.create_task(opened.sample(replace(REQUEST, n=weight))) for weight in weights
        ]
        await settle()
        for gate in gates.values():
            gate.set()
        answers = [texts(reply) for reply in await asyncio.gather(*asked)]
        assert texts(await opened.sample(REQUEST)) == {"0"}  # which has nothing to do any more
        return answers

    answers = run(here, ask)
    assert answers[:6] == [{"0"}, {"1"}, {"1"}, {"1"}, {"1"}, {"1"}]


@pytest.mark.parametrize(
    "error",
    [GONE, ActorDiedError(), OutOfMemoryError("too much"), ObjectLostError("0" * 56, None, "")],
)
def test_a_call_lost_with_its_replica_goes_to_another_and_costs_no_attempt(here, caplog, error):
    async def lose(opened, gates):
        gates["1"].set()
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        here.handles[0].lose(error)
        return await asked

    assert texts(run(here, lose)) == {"1"}
    assert "replica 0 of a model is lost (1 are left), and begun anew" in caplog.text


def test_calls_lost_together_are_one_loss(here, caplog):
    async def lose(opened, gates):
        asked = [asyncio.create_task(opened.sample(REQUEST)) for _ in range(4)]
        await settle()
        for gate in gates.values():
            gate.set()
        here.handles[0].lose(GONE)
        await asyncio.gather(*asked)
        return opened._members[0].began

    assert run(here, lose) == 1
    assert caplog.text.count("is lost") == 1


def test_where_none_is_ready_calls_wait_for_the_first_that_is(here, caplog):
    async def lose(opened, gates):
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        here.handles[0].lose(GONE)
        await settle()
        gates["1"].set()  # the second process of the one replica
        return await asked

    assert texts(run(here, lose, count=1)) == {"1"}
    assert "none is left, requests wait" in caplog.text
    assert "is there again" in caplog.text


def test_a_call_that_ends_every_replica_comes_to_an_end(here):
    async def lose(opened, gates):
        asked = asyncio.create_task(opened.sample(REQUEST))
        while not asked.done():
            await settle()
            here.handles[0].lose(GONE)
        return await asked

    with pytest.raises(EngineError, match="5 replicas in turn were lost with this") as error:
        run(here, lose, count=1)
    assert error.value.kind == "retry"


@pytest.mark.parametrize("kind", ["retry", "refused", "overflow"])
def test_an_engines_own_error_comes_as_it_is_and_nobody_else_is_asked(here, kind):
    async def refuse(opened, gates):
        for gate in gates.values():
            gate.set()
        return await opened.sample(REQUEST)

    async def opening():
        engine = Engine("0", {})
        engine.gate.set()
        engine.script = lambda request: EngineError("no", kind)
        return engine

    with pytest.raises(EngineError, match="no") as error:
        run(here, refuse, opening=opening)
    assert error.value.kind == kind
    assert sum(handle.calls.count("call") for handle in here.handles) == 1


def test_an_error_of_our_own_in_a_replica_costs_an_attempt_and_loses_none(here, caplog):
    async def fail(opened, gates):
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        for call in here.handles[0]._calls:
            call.set_exception(RayTaskError("call", "a trace\nKeyError: 'x'", KeyError("x")))
        return await asked

    with pytest.raises(EngineError, match="KeyError") as error:
        run(here, fail)
    assert error.value.kind == "retry"
    assert not caplog.text


def test_a_replica_that_was_begun_anew_unseen_is_loaded_again(here):
    async def lose(opened, gates):
        here.handles[0].lose(GONE)  # while it has no calls: nobody hears of it
        gates.setdefault("1", asyncio.Event()).set()
        return await opened.sample(REQUEST)

    assert texts(run(here, lose, count=1)) == {"1"}
    assert here.handles[0].calls.count("start") == 2


@pytest.mark.parametrize("failures", [4, 5])
@pytest.mark.parametrize("error", [GONE, OutOfMemoryError("too much")])
def test_a_replica_that_ends_while_it_loads_is_begun_again_and_given_up_in_the_end(
    here, caplog, failures, error
):
    async def lose(opened, gates):
        for gate in gates.values():
            gate.set()
        here.handles[0].refuse_starts = [error] * failures
        here.handles[0].lose(GONE)
        answers = [await opened.sample(REQUEST) for _ in range(3)]
        await opened._members[0].loading
        return [texts(reply) for reply in answers], opened._members[0].hello

    answers, hello = run(here, lose)
    assert answers == [{"1"}] * 3
    assert (hello is None) == (failures == 5)
    assert ("the others go on without it" in caplog.text) == (failures == 5)


def none_there():
    """What Ray says where the package is missing."""
    error = ActorDiedError()
    error._actor_init_failed = True
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (none_there(), "every node needs the aft-factory that is here"),
        (RayTaskError("start", "a trace\nKeyError: 'x'", KeyError("x")), "KeyError: 'x'"),
    ],
)
def test_a_replica_that_cannot_be_loaded_at_all_is_not_begun_again(here, caplog, error, words):
    async def lose(opened, gates):
        gates["1"].set()
        here.handles[0].refuse_starts = [error]
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        here.handles[0].lose(GONE)
        await asked
        await opened._members[0].loading

    run(here, lose)
    assert [handle.calls.count("start") for handle in here.handles] == [2, 1]
    assert f"{words}; the others go on without it" in caplog.text


def begun_with(here, *openings):
    """Begin a replica with each of these; all must have ended in the end."""
    turns = iter(openings)

    async def whole():
        count = min(len(openings), 2)
        opened = await RayEngine.start(lambda: next(turns)(), count, 0, what="a model")
        await opened.close()

    try:
        asyncio.run(asyncio.wait_for(whole(), 5))
    finally:
        assert all(handle.killed for handle in here.handles)


async def broken():
    raise ValueError("no such thing")


def test_if_the_first_that_ends_loading_cannot_nobody_waits_for_the_others(here):
    async def again():
        raise ValueError("once more no such thing")

    with pytest.raises(UsageError, match=r"replica 0 .* cannot be loaded: .* once more no such"):
        begun_with(here, broken, asyncio.Event().wait, again)
    assert sum(handle.calls.count("start") for handle in here.handles) == 3


def test_a_single_one_that_cannot_be_loaded_is_told_at_once(here):
    with pytest.raises(UsageError, match="no such thing"):
        begun_with(here, broken)
    assert here.handles[0].calls == ["start"]


def test_a_port_that_another_took_while_all_loaded_costs_no_replica(here, caplog):
    async def lose(opened, gates):
        return [member.hello is not None for member in opened._members]

    turns = iter([broken])

    async def opening():
        return await next(turns, good)()

    async def good():
        return Engine("0", {})

    assert run(here, lose, opening=opening) == [True, True]
    assert "cannot be loaded, and is tried again" in caplog.text


@pytest.mark.parametrize("failures", [4, 5])
def test_where_it_was_loaded_before_a_gpu_may_not_be_free_yet(here, caplog, failures):
    async def lose(opened, gates):
        here.handles[0].lose(GONE)
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        return texts(await asked)

    async def good():
        engine = Engine("it", {})
        engine.gate.set()
        return engine

    turns = iter([good] + [broken] * failures)

    async def opening():
        return await next(turns, good)()

    if failures == 4:
        assert run(here, lose, count=1, opening=opening) == {"it"}
    else:
        with pytest.raises(EngineError, match=r"cannot be loaded: .*no such thing"):
            run(here, lose, count=1, opening=opening)
    assert caplog.text.count("is tried again") == 4


def test_where_none_is_ready_yet_it_is_told_after_a_while(here, caplog, monkeypatch):
    monkeypatch.setattr(ray_replicas, "TELL_AFTER", 0.05)

    async def slow():
        await asyncio.sleep(0.2)
        return Engine("0", {})

    begun_with(here, slow)
    assert "replica 0 of a model is loading, or waits for free GPUs" in caplog.text


def test_where_another_is_ready_nothing_is_told_of_one_that_waits(here, caplog, monkeypatch):
    monkeypatch.setattr(ray_replicas, "TELL_AFTER", 0.05)

    async def ready():
        return Engine("0", {})

    async def whole():
        turns = iter((ready, asyncio.Event().wait))
        opened = await RayEngine.start(lambda: next(turns)(), 2, 0, what="a model")
        await asyncio.sleep(0.2)
        await opened.close()

    asyncio.run(whole())
    assert not caplog.text


def test_what_nobody_waits_for_any_more_is_given_up_in_the_replica_too(here):
    async def give_up(opened, gates):
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        asked.cancel()
        await settle()
        return len(here.handles[0]._calls), opened._members[0].busy

    assert run(here, give_up, count=1) == (0, 0)


def test_a_replica_loads_once_however_often_it_is_begun():
    opened = []

    async def opening():
        opened.append(Engine("0", {}))
        return opened[-1]

    async def start():
        replica = Replica(opening, [], ["model"], os.getcwd())
        return [await replica.start(), await replica.start()]

    first, second = asyncio.run(start())
    assert first == second
    assert len(opened) == 1


def test_when_the_last_one_is_given_up_calls_end_at_once(here):
    async def lose(opened, gates):
        here.handles[0].refuse_starts = [GONE] * 5
        asked = asyncio.create_task(opened.sample(REQUEST))
        await settle()
        here.handles[0].lose(GONE)
        try:
            await asked
        finally:
            assert not await opened.reachable()

    with pytest.raises(EngineError, match=r"cannot be loaded: .*its process is gone") as error:
        run(here, lose, count=1)
    assert error.value.kind == "fatal"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("identity", "another model", "has another model than is here"),
        ("version", "0.0.1", "has aft-factory 0.0.1, here is"),
    ],
)
def test_a_replica_that_is_not_what_all_are_is_refused(
    here, caplog, monkeypatch, field, value, problem
):
    vetted = RayEngine._vetted

    def other(self, said):
        mine = said.node if self._identity else ""
        return vetted(self, replace(said, **{field: value}) if mine else said)

    monkeypatch.setattr(RayEngine, "_vetted", other)

    async def ask(opened, gates):
        for gate in gates.values():
            gate.set()
        return [texts(await opened.sample(REQUEST)) for _ in range(4)]

    assert run(here, ask) == [{"0"}] * 4
    assert problem in caplog.text


def test_in_the_end_each_closes_what_it_holds_and_is_killed(here):
    gates = {}

    async def keep(opened, all_gates):
        gates.update(all_gates)

    run(here, keep)
    assert [handle.calls[-1] for handle in here.handles] == ["close"] * 2
    assert all(gate.closed for gate in gates.values())
    assert all(handle.killed for handle in here.handles)


@pytest.mark.parametrize("error", [GONE, None])
def test_a_lost_stream_begins_anew_with_another_replica(here, caplog, error):
    async def lose(opened, gates):
        told = []
        asked = asyncio.create_task(opened.stream(REQUEST, told.append))
        while not told:
            await asyncio.sleep(0.01)
        gates["1"].set()
        here.handles[0].lose(error)
        return texts(await asked), [piece.text for piece in told], opened._members[0].busy

    assert run(here, lose) == ({"1"}, ["first", "first", "last"], 0)
    assert caplog.text.count("is lost") == 1


def test_a_stream_counts_for_what_its_replica_has_to_do(here):
    async def ask(opened, gates):
        stream = asyncio.create_task(opened.stream(REQUEST, lambda piece: None))
        await settle()
        for gate in gates.values():
            gate.set()
        answer = texts(await opened.sample(REQUEST))
        return answer, texts(await stream)

    assert run(here, ask) == ({"1"}, {"0"})


def test_a_stream_with_nothing_held_tells_that():
    async def follow():
        replica = Replica(None, [], [], os.getcwd())
        return [part async for part in replica.stream(REQUEST)]

    [part] = asyncio.run(follow())
    assert isinstance(part, Absent)


@pytest.mark.parametrize(
    ("kind", "reachable", "ends"),
    [("fatal", False, True), ("fatal", True, False), ("retry", False, False)],
)
def test_a_replica_whose_engine_has_died_ends_so_that_ray_begins_it_anew(
    monkeypatch, kind, reachable, ends
):
    ended = []
    monkeypatch.setattr(ray_actor.os, "_exit", ended.append)

    async def opening():
        engine = Engine("0", {})
        engine.gate.set()
        engine.script = lambda request: EngineError("vLLM has died", kind)
        engine.reachable = lambda: asyncio.sleep(0, reachable)
        return engine

    async def ask():
        replica = Replica(opening, [], ["model"], os.getcwd())
        await replica.start()
        streamed = [part async for part in replica.stream(REQUEST)]
        packed = await replica.call(pickle.dumps(("sample", (REQUEST,))))
        return [streamed[-1], pickle.loads(packed)]

    errors = asyncio.run(ask())
    assert [error.kind for error in errors] == [kind] * 2
    assert ended == [1] * (2 * ends)


def test_relative_paths_are_those_of_the_drivers_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "a")  # as a node's, wherever that was begun
    Replica(None, [], [], str(tmp_path / "here"))
    assert os.getcwd() == str(tmp_path / "here")
    Replica(None, [], [], str(tmp_path / "gone"))
    assert os.getcwd() == str(tmp_path / "here")


def test_what_cannot_be_loaded_is_told_with_its_node():
    async def start():
        opening = functools.partial(asyncio.to_thread, int, "x")
        return await Replica(opening, [], [], os.getcwd()).start()

    said = asyncio.run(start())
    assert isinstance(said, UsageError)
    assert str(said).startswith(f"{socket.gethostname()}: invalid literal for int()")


def test_copies_of_one_model_are_equal_whatever_their_place_and_times(tmp_path):
    for name, size in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * size)
        os.utime(tmp_path / name / "model.safetensors", (len(name), ord(name)))
    known = [
        comparable(f"{fingerprint(str(tmp_path / name))}+t", [str(tmp_path / name)])
        for name in "abc"
    ]
    assert known[0] == known[1] != known[2]


def test_the_engine_is_what_the_driver_knows_and_what_the_replicas_tell(here):
    async def opening():
        engine = Engine("0", {})
        engine.max_sequences = 8
        return engine

    async def tell(opened, gates):
        return opened.model, opened.tokenizer, opened.chat_template, opened.in_flight

    served = Served({}, "a tokenizer", "a template", "a model")
    told = run(here, tell, count=3, opening=opening, served=served)
    assert told == ("a model", "a tokenizer", "a template", 2 * 8 * 3)
    assert run(here, tell)[-1] is None


def test_a_reward_model_is_known_by_the_drivers_own_files(here, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    folder = str(tmp_path)

    async def opening():
        scorer = Reward("reward", {})
        scorer.identity = f"{fingerprint(folder)}+revision=a"
        return scorer

    async def start():
        opened = await RayReward.start(opening, 1, 0, what=folder, folders=[folder])
        await opened.close()
        return opened.identity

    assert asyncio.run(start()) == f"{fingerprint(folder)}+revision=a"
    assert contents(folder) != fingerprint(folder)


class Reward(Engine):
    """Scores a pair by its length; of a text `refused` there is an error, of `dead` a fatal one."""

    def score(self, pairs):
        for kind, text in (("fatal", "dead"), ("refused", "refused")):
            if any(response == text for _, response in pairs):
                raise EngineError(text, kind)
        return [float(len(response)) for _, response in pairs]

    async def reachable(self):
        return True


async def reward():
    return Reward("reward", {})


def score(here, *responses):
    async def ask(opened, gates):
        return await opened.score([("", response) for response in responses])

    return run(here, ask, kind=RayReward, opening=reward)


def test_scores_come_in_order_and_each_replica_has_texts_of_all_lengths(here):
    assert score(here, "dddd", "a", "ccc", "bb") == [4.0, 1.0, 3.0, 2.0]
    assert [handle.calls.count("call") for handle in here.handles] == [1, 1]


def test_a_share_that_fails_costs_no_other_and_a_fatal_error_ends_all(here):
    scores = score(here, "refused", "a", "ccc", "bb")
    assert [isinstance(one, EngineError) for one in scores] == [
        True,
        False,
        False,
        True,
    ]  # shares: a and ccc, bb and the other
    with pytest.raises(EngineError, match="dead"):
        score(here, "dead", "a")

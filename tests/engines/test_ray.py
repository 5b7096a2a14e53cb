"""Replicas on Ray: what is answered does not depend on them, whatever becomes of them.

A cluster of two nodes on this machine. Replicas are scripted engines that can be held up, so that
what happens meanwhile does not depend on how fast the machine is.
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray_tools
from conftest import ROOT
from flaky_server import until
from ray_tools import asked, gated

from aft_factory.engines.engine import EngineError
from aft_factory.engines.ray_cluster import Cluster as Joined
from aft_factory.engines.ray_cluster import _knock, gpus_of, joined, placed
from aft_factory.engines.ray_engine import RayEngine
from aft_factory.engines.sampling import Request, Sampling
from aft_factory.errors import UsageError
from aft_factory.rank.__main__ import main as rank
from aft_factory.run.__main__ import main
from aft_factory.run.settings import RunSettings
from aft_factory.stage import replicas

pytest.importorskip("ray", reason="Ray is not installed: pip install 'aft-factory[ray]'")
RUN = ("--scripted", "--width", "3", "--layers", "1", "--quiet")
ROWS = 200
PATIENCE = 240  # seconds until a test gives a process up


def replica_pids(cluster):
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    found = [p for raylet in raylets for p in psutil.Process(raylet).children(recursive=True)]
    return {process.pid for process in found if "ray::Replica" in command_of(process)}


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def module_env():
    """No telemetry, and replicas as quick as all else: Ray would have them at nice 15."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        yield


def patiently(start):
    """Start a node; Ray gives it half a minute, which is little on a busy machine."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def cluster(module_env):
    """Two nodes, of which the second can be replaced; joined already, as that takes seconds."""
    import ray
    from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
    from ray.cluster_utils import Cluster

    register_pickle_by_value(ray_tools)  # nodes have the package, and no tests
    node = {"num_cpus": 1, "num_gpus": 1}  # of which Ray believes what it is told
    node |= {"object_store_memory": 100 * 2**20, "include_log_monitor": False}
    head = {**node, "include_dashboard": False, "no_monitor": True}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    cluster.add = lambda: patiently(lambda: cluster.add_node(**node))
    cluster.second = cluster.add()
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    unregister_pickle_by_value(ray_tools)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = (json.dumps({"id": str(i), "query": f"What is {i}?"}) for i in range(ROWS))
    (tmp_path / "rows.jsonl").write_text("\n".join(texts))
    main(["rows.jsonl", "--output", "plain.jsonl", *RUN])
    return tmp_path


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """A folder: replicas answer once `open` is in it."""
    monkeypatch.setattr(replicas, "scripted", functools.partial(gated, str(tmp_path)))
    return tmp_path


def run_on(cluster, *more):
    on = ("--ray", cluster.address, "--replicas", "2")
    assert main(["rows.jsonl", "--output", "out.jsonl", "--overwrite", *RUN, *on, *more]) == 0


def meanwhile(folder, happens):
    """Have something happen while the gate is closed, and open it; its thread."""

    def go():
        try:
            happens()
        finally:
            (folder / "open").touch()

    thread = threading.Thread(target=go)
    thread.start()
    return thread


def holders(folder):
    """Go through the processes that hold what was asked, others as these are gone."""
    known = set()
    while True:
        until(lambda: asked(folder) - known, PATIENCE)
        holder = min(asked(folder) - known)
        known.add(holder)
        yield holder


def check_same(rows):
    assert (rows / "out.jsonl").read_bytes() == (rows / "plain.jsonl").read_bytes()
    summary = json.loads((rows / "out.summary.json").read_text())
    assert summary["session"]["requests_asked"] == 2 * ROWS
    assert summary["session"]["attempts_failed"] == 0  # a lost replica takes no attempts


def told(caplog, words):
    return sum(words in record.message for record in caplog.records)


@pytest.mark.slow
def test_with_every_replica_killed_once_the_output_is_that_of_a_run_without(
    cluster, rows, gate, caplog
):
    def kill_all():
        for number, pid in enumerate(holders(rows), 1):
            os.kill(pid, signal.SIGKILL)
            until(lambda number=number: told(caplog, "is there again") == number, PATIENCE)
            if all(told(caplog, f"replica {i} of scripted is lost") for i in (0, 1)):
                return

    thread = meanwhile(rows, kill_all)
    run_on(cluster)
    thread.join()
    check_same(rows)
    until(lambda: not replica_pids(cluster), PATIENCE)


@pytest.mark.slow
def test_with_a_node_removed_the_output_is_that_of_a_run_without(cluster, rows, gate, caplog):
    def remove():
        [(raylet, *_)] = [cluster.second.all_processes["raylet"]]
        for pid in holders(rows):
            if psutil.Process(pid).ppid() == raylet.process.pid:
                break
            os.kill(pid, signal.SIGKILL)  # then it is the other one
        cluster.remove_node(cluster.second, allow_graceful=False)  # the head has room for one only

    thread = meanwhile(rows, remove)
    run_on(cluster)
    thread.join()
    cluster.second = cluster.add()
    check_same(rows)
    until(lambda: not replica_pids(cluster), PATIENCE)
    assert told(caplog, "is lost")


def kept(journal):
    """How many replies a journal has."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db,
    ):
        return db.execute("SELECT count(*) FROM replies").fetchone()[0]
    return 0


DRIVER = """
import functools, os, sys
from aft_factory.run.__main__ import main
from aft_factory.stage import replicas
import ray_tools
from ray.cloudpickle import register_pickle_by_value
register_pickle_by_value(ray_tools)
replicas.scripted = functools.partial(ray_tools.gated, os.getcwd(), 50)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on_and_its_replicas_end_with_it(cluster, rows, gate):
    words = ("rows.jsonl", "--output", "out.jsonl", *RUN)
    words += ("--ray", cluster.address, "--replicas", "2")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], env=env)
    until(lambda: kept(rows / "out.jsonl.journal"), PATIENCE)  # of 50 that are answered at once
    driver.kill()
    driver.wait()
    until(lambda: not replica_pids(cluster), PATIENCE)
    (rows / "open").touch()
    run_on(cluster)
    assert (rows / "out.jsonl").read_bytes() == (rows / "plain.jsonl").read_bytes()
    summary = json.loads((rows / "out.summary.json").read_text())
    counts = [session["requests_asked"] for session in summary["sessions"]]
    assert sum(counts) == 2 * ROWS
    assert 0 < counts[-1] < 2 * ROWS
    until(lambda: not replica_pids(cluster), PATIENCE)


@pytest.mark.slow
def test_a_reward_models_scores_are_those_of_one_without_ray(cluster, rows, tiny_reward_model):
    drafts = (f"It is {i}, " * i for i in range(1, 5))
    row = {"id": "1", "query": "What is it?", "proposals": list(drafts)}
    (rows / "drafts.jsonl").write_text(json.dumps(row))
    words = ["drafts.jsonl", "--reward-model", str(tiny_reward_model), "--quiet", "--output"]
    assert rank([*words, "plain.jsonl", "--overwrite"]) == 0
    assert rank([*words, "out.jsonl", "--ray", cluster.address, "--replicas", "2"]) == 0
    plain, out = (json.loads((rows / name).read_text()) for name in ("plain.jsonl", "out.jsonl"))
    assert out["proposals"] == plain["proposals"]
    # Each replica has a batch of its own, which floats feel.
    assert out["scores"] == pytest.approx(plain["scores"], rel=1e-5)
    until(lambda: not replica_pids(cluster), PATIENCE)


@contextlib.asynccontextmanager
async def engine(cluster, opening=replicas.scripted, count=1, gpus=0):
    async with joined(cluster.address):
        opened = await RayEngine.start(opening, count, gpus, what="a model")
        try:
            yield opened
        finally:
            await opened.close()


REQUEST = Request([{"role": "user", "content": "Hello"}], 2, Sampling(), 7)


@pytest.mark.slow
def test_a_stream_tells_the_texts_of_its_reply_and_begins_anew_with_another_replica(cluster):
    async def run():
        told = {0: "", 1: ""}

        def tell(piece):
            told[piece.index] = (told[piece.index] if piece.start else "") + piece.text

        async with engine(cluster, functools.partial(replicas.scripted, delay=3.0)) as opened:
            expected = await opened.sample(REQUEST)
            stream = asyncio.create_task(opened.stream(REQUEST, tell))
            while not any(told.values()):
                await asyncio.sleep(0.1)
            for pid in replica_pids(cluster):
                os.kill(pid, signal.SIGKILL)
            assert await stream == expected
            assert [told[0], told[1]] == [c.text for c in expected.completions]

    asyncio.run(run())


@pytest.mark.slow
def test_replicas_have_gpus_of_their_own_and_those_that_wait_for_one_hold_up_none(cluster):
    async def ask():
        async with engine(cluster, ray_tools.on_its_gpu, 3, gpus=1) as opened:
            while sum(member.hello is not None for member in opened._members) < 2:
                await asyncio.sleep(0.1)
            assert len(replica_pids(cluster)) == 2  # as there are GPUs
            return await asyncio.gather(*(opened.sample(REQUEST) for _ in range(4)))

    answers = asyncio.run(ask())
    assert {c.text for reply in answers for c in reply.completions} == {"on GPU 0"}  # of its node
    until(lambda: not replica_pids(cluster), PATIENCE)


@pytest.mark.slow
def test_what_cannot_be_loaded_is_told_once_and_an_error_of_the_engine_comes_as_it_is(cluster):
    async def fail():
        async with engine(cluster, functools.partial(asyncio.to_thread, int, "x"), 2):
            pass

    with pytest.raises(UsageError, match=r"cannot be loaded: .*invalid literal for int"):
        asyncio.run(fail())

    async def refused():
        # Its n is not what the script returns.
        async with engine(cluster) as opened:
            with pytest.raises(EngineError) as error:
                await opened.sample(Request("text", 1, None, 7))
            assert error.value.kind == "retry"
            assert (await opened.sample(REQUEST)).usage.samples == 2

    asyncio.run(refused())


CHECKED = """
import asyncio, os, psutil, sys, threading, time
from aft_factory.run.__main__ import main
from aft_factory.stage import replicas

def look():
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                if "ray::Replica" in " ".join(process.cmdline()) and process.nice() > own:
                    seen.add("nicer than the driver")
                for one in process.net_connections():
                    if one.status == "LISTEN":
                        seen.add(one.laddr.ip.removeprefix("::ffff:"))
                        if process.cmdline() and "dashboard.py" in " ".join(process.cmdline()):
                            seen.add("dashboard")
            except psutil.Error:
                pass
        time.sleep(0.2)

def placed(*given):
    seen.update({"RAY_AUTH_TOKEN"} & os.environ.keys())  # what is begun meanwhile would inherit it
    return place(*given)

seen, own = set(), psutil.Process().nice()
place, replicas.placed = replicas.placed, placed
threading.Thread(target=look, daemon=True).start()
scripted = replicas.scripted

async def chatty():
    print("said on a node")
    print("said there too", file=sys.stderr)
    return await scripted(delay=2.0)

replicas.scripted = chatty
code = main(sys.argv[1:])
left = [p.name() for p in psutil.Process().children(recursive=True) if "ray" in p.name()]
print("seen", *sorted(seen), "left", *left)

async def again():  # by what Ray has left of the first
    async with replicas.joined("local"):
        pass

asyncio.run(again())
sys.exit(code)
"""


@pytest.mark.slow
def test_a_ray_of_its_own_is_quiet_and_closed_under_uv_run_too_and_leaves_nothing(rows):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(rows / "home")}
    words = ("--output", "out.jsonl", *RUN, "--replicas", "2", "--ray", "rows.jsonl")
    command = [sys.executable, "-c", CHECKED, *words]
    # Ray looks for `uv run` among what began it; that would begin each replica, and it cannot here.
    (rows / "uv").symlink_to(sys.executable)
    (rows / "run").write_text(f"import subprocess\nraise SystemExit(subprocess.call({command!r}))")
    uv_run = [str(rows / "uv"), "run"]
    done = subprocess.run(uv_run, env=env, capture_output=True, text=True, check=True, timeout=600)
    assert done.stderr == "--scripted: no model is asked, the answers are made up\n"
    assert (
        done.stdout.splitlines()[0] == f"read {ROWS} rows: {ROWS} written to out.jsonl, 0 rejected"
    )
    assert done.stdout.splitlines()[-1] == "seen 127.0.0.1 left"
    assert not (rows / "home").exists()
    check_same(rows)


@pytest.fixture
def listening():
    """An address at which somebody answers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield "127.0.0.1:{1}".format(*server.getsockname())


async def join(address):
    async with joined(address):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """Have something happen in the place of joining a cluster."""
    import ray

    def put(init):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        for name, does in {
            "init": init,
            "nodes": list,
            "shutdown": lambda: ended.append(1),
        }.items():
            monkeypatch.setattr(ray, name, does)
        return ended

    ended = []
    return put


@pytest.mark.parametrize(("own", "starts"), [(True, 3), (False, 1)])
def test_a_ray_of_its_own_that_does_not_begin_in_time_is_begun_again(
    stand_in, listening, own, starts
):
    begun = []

    def init(*_, **__):
        begun.append(os.environ.get("RAY_AUTH_TOKEN"))
        # Or under `uv run`, Ray would begin each replica by `uv run`.
        assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
        if len(begun) < 3:
            raise TimeoutError("timed out during startup")

    stand_in(init)
    address = "local" if own else listening
    with contextlib.nullcontext() if starts == 3 else pytest.raises(UsageError, match="timed out"):
        asyncio.run(join(address))
    assert len(begun) == starts
    assert "RAY_AUTH_TOKEN" not in os.environ
    if own:  # the next one has its token: Ray would know no other
        asyncio.run(join(address))
        assert None not in begun
        assert len(set(begun)) == 1


def test_a_ray_of_its_own_that_is_stopped_while_it_begins_has_its_token_to_the_end(stand_in):
    seen = []

    def init(*_, **__):
        time.sleep(0.5)
        seen.append("RAY_AUTH_TOKEN" in os.environ)

    ended = stand_in(init)

    async def stop():
        joining = asyncio.create_task(join("local"))
        await asyncio.sleep(0.1)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining

    asyncio.run(stop())
    assert seen == [True]
    assert ended == [1]
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_where_ray_cannot_put_its_files_the_way_out_is_told(stand_in):
    def init(*_, **__):
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /long/ray/session/plasma_store")

    stand_in(init)
    with pytest.raises(UsageError, match=r"cannot start Ray: AF_UNIX .*RAY_TMPDIR .* short path"):
        asyncio.run(join("local"))


@pytest.mark.parametrize(
    ("address", "told", "problem"),
    [
        ("127.0.0.1:1", "", "error: --ray 127.0.0.1:1: no cluster answers there"),
        ("ray://127.0.0.1:10001", "", "ray job submit"),
        ("nonsense", "", "cannot join the cluster"),
        ("local", "127.0.0.1:1", "error: RAY_ADDRESS=127.0.0.1:1: no cluster answers there"),
        ("auto", "127.0.0.1:1", "error: RAY_ADDRESS=127.0.0.1:1: no cluster answers there"),
        ("auto", "http://127.0.0.1:8265", "error: RAY_ADDRESS=http://127.0.0.1:8265: for Ray's"),
    ],
)
def test_an_address_at_which_no_cluster_is_ends_the_run_at_once(rows, address, told, problem):
    words = ("rows.jsonl", "--output", "out.jsonl", *RUN, "--ray", address)
    command = [sys.executable, "-m", "aft_factory.run", *words]  # this process may be in a cluster
    env = {**os.environ, "RAY_ADDRESS": told}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_cluster_that_is_gone_is_told_at_once(tmp_path, monkeypatch):
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # none of others either
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(UsageError, match="--ray auto: no cluster answers there"):
        _knock("auto", "--ray auto")


@pytest.mark.parametrize(
    ("gpus", "size", "replicas", "expected"),
    [
        ([8, 8, 4], 1, None, (20, 1)),
        ([8, 8, 3], 4, None, (4, 4)),
        ([8], 2, 9, (9, 2)),  # more than fit now: they wait
        ([], 2, 3, (3, 2)),  # nodes are still to come
        ([0, 0], 0, None, (2, 0)),
        ([0, 0], 1, None, "the cluster has no GPU"),
        ([8, 8], 16, None, "no node has more than 8"),
    ],
)
def test_as_many_replicas_as_there_are_gpus_for(gpus, size, replicas, expected):
    if isinstance(expected, tuple):
        assert placed(Joined(gpus), size, replicas) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            placed(Joined(gpus), size, replicas)


def test_a_reward_model_gets_its_gpus_first():
    assert Joined([4, 8]).without(2).gpus == [6, 4]
    assert Joined([]).without(1).gpus == []


def test_gpus_are_those_of_one_node():
    assert gpus_of({"tensor_parallel_size": 2, "pipeline_parallel_size": 4}) == 8
    for args in ({"distributed_executor_backend": "ray"}, {"data_parallel_size": 2}):
        with pytest.raises(UsageError, match=r"--base-url|--replicas"):
            gpus_of(args)


@pytest.mark.parametrize(("size", "begins"), [(1, None), (2, "mp")])
def test_within_a_node_vllm_begins_its_processes_itself(tiny_llama, size, begins):
    settings = RunSettings(model=str(tiny_llama), engine_args={"tensor_parallel_size": size})
    loads, what, folders, served = asyncio.run(replicas._model(settings, size))
    assert loads.keywords["engine_args"].get("distributed_executor_backend") == begins
    assert "distributed_executor_backend" not in served.settings  # how, and not what
    assert (what, folders) == (str(tiny_llama), [str(tiny_llama)])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--replicas", "2", "--scripted"), "replicas: needs --ray"),
        (("--ray", "--base-url", "http://127.0.0.1:1/v1"), "ray: for a model that this command"),
        (("--ray", "--replicas", "0", "--scripted"), "replicas: expected a number from 1"),
        (("--ray", "--scripted", "--strategy", "moa", "--proposers", "a"), "of one model"),
        (("--ray", "--model", "m", "--engine-args", "data_parallel_size=2"), "is --replicas"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(rows, capsys, flags, problem):
    assert main(["rows.jsonl", "--output", "out.jsonl", *flags]) == 2
    assert problem in capsys.readouterr().err

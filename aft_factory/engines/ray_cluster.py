"""Ray: joining a cluster, or starting one on this machine; what it has to place replicas on.

A Ray of our own is closed to others: it listens on this machine's loopback only, under a token of
its own, without a dashboard. That is settled when Ray is first imported, so nothing that may import
it, such as vLLM, comes before. In a cluster that is there we are a guest: its owner decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aft_factory.errors import MissingPackage, UsageError

LOCAL, AUTO = "local", "auto"  # addresses: start one here; take what runs here
STARTS = 3  # of a Ray of our own: it gives itself half a minute, too little on a busy machine
LONGEST_CONNECT = 10.0  # seconds to wait for an address; Ray itself would take minutes
# Answers pass through memory, not through the object store, which takes this at least.
STORE = 100 * 2**20
# Ray's own switch between loopback and the network, read when Ray is imported, and its telemetry's;
# and replicas as quick as all else, which Ray would have at nice 15.
OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
# Under `uv run`, Ray would send the folder we are in to all nodes, and begin every replica by
# another `uv run` there, or try to for ever; the other one keeps it from a warning.
QUIET = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PLACE = "its files are in RAY_TMPDIR or else TMPDIR: name a short path that can be written"
TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was joined.

    Attributes:
        gpus: Of each node that is alive now.
    """

    gpus: list[int]

    def without(self, size: int) -> Cluster:
        """Return what is left of it beside something of that many GPUs."""
        gpus = sorted(self.gpus, reverse=True)
        return Cluster([max(gpus[0] - size, 0), *gpus[1:]] if gpus else [])


@contextlib.asynccontextmanager
async def joined(address: str) -> AsyncIterator[Cluster]:
    """Join a cluster, and leave it in the end; one of our own ends.

    Args:
        address: Of a cluster: host:port, or `auto` for the one that this machine is part of;
            `local` and `auto` take what RAY_ADDRESS names; else `local` starts one here.

    Raises:
        MissingPackage: If Ray is not installed.
        UsageError: If nobody answers there.
    """
    named, told = f"--ray {address}", os.environ.get("RAY_ADDRESS")
    if address in (LOCAL, AUTO) and told:
        named, address = f"RAY_ADDRESS={told}", told
    if "://" in address:
        raise UsageError(
            f"{named}: for Ray's clients and its job server, not for replicas; run the command in "
            "the cluster: ray job submit --address http://HEAD:8265 -- aft ... --ray auto"
        )
    options: dict[str, Any] = {}
    settings = QUIET | dict(os.environ)
    if address == LOCAL:
        options = {"include_dashboard": False, "object_store_memory": STORE}
        settings |= OWN
        if not os.environ.keys() & TOKENS:  # else Ray makes one, and leaves it in ~/.ray
            settings["RAY_AUTH_TOKEN"] = _token()
    with _environment(settings):
        ours = await _begin(address, named, options)
    import ray

    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster([int(resources.get("GPU", 0)) for resources in alive])
    finally:
        if ours:
            await asyncio.to_thread(ray.shutdown)


@functools.cache
def _token() -> str:
    """Return the token of all clusters that this process begins: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Have an environment, which nothing that is begun later inherits: there is a token in it."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in {*settings, *TOKENS} - before.keys():  # Ray leaves how it knows its own
            os.environ.pop(name, None)
        os.environ.update(before)


async def _begin(address: str, named: str, options: Mapping[str, Any]) -> bool:
    """Connect to a cluster; return False where this process is in one already."""
    try:
        import ray
    except ImportError:
        raise MissingPackage("replicas on Ray", "'aft-factory[ray]'") from None
    if ray.is_initialized():
        return False
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address != LOCAL:
        await asyncio.to_thread(_knock, address, named)
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
    for start in range(1, STARTS + 1):
        # In a thread, as it takes seconds and would set signal handlers in this one.
        begun = asyncio.ensure_future(asyncio.to_thread(ray.init, address, **quiet, **options))
        try:
            await asyncio.shield(begun)
            break
        except asyncio.CancelledError:  # it reads the environment till its end
            await asyncio.wait([begun])
            await asyncio.to_thread(ray.shutdown)
            raise
        except Exception as error:  # of its many kinds, none is for users to know
            if address != LOCAL:
                raise UsageError(f"{named}: cannot join the cluster: {error}") from error
            if start == STARTS:
                raise UsageError(f"{named}: cannot start Ray: {error}; {PLACE}") from error
    _hush()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray's C++ took them over, to print stacks
            signal.signal(number, signal.getsignal(number))
    return True


def _hush() -> None:
    """Keep Ray's news of dead processes off stdout: what matters is told in our own words."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # no setting of Ray's does it
        worker.print_to_stdstream = lambda *_, **__: None


def _knock(address: str, named: str) -> None:
    """Refuse an address at which nobody listens; `auto` may be that of a cluster that is gone."""
    from ray._private import services

    find = getattr(services, "canonicalize_bootstrap_address", None)
    try:
        if address == AUTO and find:
            address = find(AUTO) or AUTO
        host, colon, port = address.rpartition(":")
        if colon:
            socket.create_connection((host.strip("[]"), int(port)), LONGEST_CONNECT).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{named}: no cluster answers there: {error}; name the head's HOST:PORT, by "
            "default port 6379"
        ) from None


def gpus_of(engine_args: Mapping[str, Any], flag: str = "--engine-args") -> int:
    """Return how many GPUs vLLM takes by its engine arguments.

    Raises:
        UsageError: If it would spread over nodes.
    """
    out = "on several nodes serve it by `vllm serve`, and ask it by --base-url"
    if engine_args.get("distributed_executor_backend") == "ray":
        raise UsageError(f"{flag} distributed_executor_backend: a replica is one node's; {out}")
    if int(engine_args.get("data_parallel_size", 1)) > 1:
        raise UsageError(f"{flag} data_parallel_size: under --ray that is --replicas")
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    size = 1
    for name in names:
        size *= int(engine_args.get(name, 1))
    return size


async def on_gpus(size: int) -> int:
    """Return how many GPUs vLLM takes, which is none where its build for CPUs is installed."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
    try:
        from vllm.platforms import current_platform
    except ImportError:  # it is on the nodes that matters
        return size
    return 0 if await asyncio.to_thread(current_platform.is_cpu) else size


def placed(cluster: Cluster, size: int, replicas: int | None) -> tuple[int, int]:
    """Return how many replicas there are to be, and how many GPUs each has.

    Args:
        cluster: Where.
        size: GPUs that a replica takes.
        replicas: How many were asked for; None takes as many as there are GPUs for; where none
            is taken, one for each node.

    Raises:
        UsageError: If no node has that many, or the cluster has none at all.
    """
    if not size:
        return replicas or max(len(cluster.gpus), 1), 0
    largest = max(cluster.gpus, default=0)
    if largest and size > largest:
        raise UsageError(
            f"--ray: a replica takes {size} GPUs, and no node has more than {largest} to give; on "
            "several nodes serve it by `vllm serve`, and ask it by --base-url"
        )
    fit = sum(gpus // size for gpus in cluster.gpus)
    if replicas is None and not fit:
        raise UsageError(
            f"--ray: the cluster has no GPU to give, and a replica takes {size} (a reward model "
            "takes its own first); if nodes that have some are still to come, say --replicas N"
        )
    return replicas or fit, size

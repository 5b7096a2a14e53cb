"""A model of a run by propose-and-aggregate: queries, a driver, replicas that fail. Pure.

Knows no engine and no asyncio: time is a number, and what happens next comes from a heap.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Lengths = Callable[[int, int], list[int]]  # from a seed and n to the lengths of n samples in tokens


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: so many queries, each K drafts, L - 1 times K aggregations, one at the end."""

    queries: int
    width: int
    layers: int
    lengths: Lengths

    def samples(self, layer: int) -> int:
        """Return how many samples a layer's request asks for."""
        return 1 if layer == self.layers else self.width


@dataclass(frozen=True, slots=True)
class Cluster:
    """What answers.

    Attributes:
        replicas: How many.
        slots: Samples that each writes at a time; a run has twice as many in flight.
        step: Seconds that a token takes.
        cost: Seconds of the driver for each request.
        mean_life: Seconds until a replica fails, on average; 0 if none does.
        reload: Seconds until it is there again.
        even: Whether each lives for exactly that long, as in the checks, and not by chance.
    """

    replicas: int
    slots: int
    step: float
    cost: float
    mean_life: float = 0.0
    reload: float = 0.0
    even: bool = False

    def life(self, draw: random.Random) -> float:
        """Return how long a replica lives."""
        return self.mean_life if self.even else draw.expovariate(1 / self.mean_life)


@dataclass(slots=True)
class Told:
    """What came of it.

    Attributes:
        seconds: To the end of the last query.
        steady: The same at the pace of the middle half: without the stragglers of the end.
        busy: Share of slots that wrote, in the middle half.
        driver: Share of that time which the driver was at work.
        lost: Samples that were written in vain.
    """

    seconds: float
    steady: float
    busy: float
    driver: float
    lost: int


@dataclass(slots=True, eq=False)
class _Request:
    query: int
    layer: int
    lengths: list[int]
    left: int = 0
    at: int = 0  # which replica
    life: int = 0  # and which life of it


@dataclass(frozen=True, slots=True)
class _Sample:
    """One that is being written, in which life of its replica."""

    request: _Request
    life: int
    length: int


@dataclass(slots=True, eq=False)
class _Replica:
    life: int = 0
    up: bool = True
    running: int = 0
    load: int = 0
    waiting: deque[tuple[_Request, int]] = field(default_factory=deque)
    held: set[_Request] = field(default_factory=set)


def simulate(load: Load, cluster: Cluster) -> Told:
    """Let a run take place."""
    draw = random.Random(1)
    heap: list[tuple[float, int, str, object]] = []
    number = iter(range(1 << 62))
    replicas = [_Replica() for _ in range(cluster.replicas)]
    limit = 2 * cluster.slots * cluster.replicas
    queue: deque[_Request] = deque()
    ends: list[float] = []
    marks: list[tuple[float, float, float]] = []  # at a quarter, and at three
    now = driver_free = written = driven = 0.0
    in_flight = lost = begun = 0

    def later(when: float, what: str, about: object) -> None:
        heapq.heappush(heap, (when, next(number), what, about))

    def ask(query: int, layer: int) -> None:
        seed = query * 1000 + layer
        queue.append(_Request(query, layer, load.lengths(seed, load.samples(layer))))

    def admit() -> None:
        nonlocal in_flight, driver_free, driven
        while queue and in_flight + len(queue[0].lengths) <= limit:
            request = queue.popleft()
            in_flight += len(request.lengths)
            driver_free = max(driver_free, now) + cluster.cost
            driven += cluster.cost
            later(driver_free, "send", request)

    def send(request: _Request) -> None:
        up = [i for i, replica in enumerate(replicas) if replica.up]
        if not up:
            later(now + 1.0, "send", request)
            return
        request.at = min(up, key=lambda i: replicas[i].load)
        replica = replicas[request.at]
        request.life, request.left = replica.life, len(request.lengths)
        replica.load += request.left
        replica.held.add(request)
        replica.waiting.extend((request, length) for length in request.lengths)
        fill(replica)

    def fill(replica: _Replica) -> None:
        while replica.waiting and replica.running < cluster.slots:
            request, length = replica.waiting.popleft()
            replica.running += 1
            later(now + length * cluster.step, "written", _Sample(request, replica.life, length))

    for i in range(cluster.replicas if cluster.mean_life else 0):
        later(cluster.life(draw), "fail", i)
    while begun < min(load.queries, limit * 5 // 4):
        ask(begun, 0)
        begun += 1
    admit()
    while len(ends) < load.queries:
        now, _, what, about = heapq.heappop(heap)
        if what == "send":
            assert isinstance(about, _Request)
            send(about)
        elif what == "fail":
            assert isinstance(about, int)
            replica = replicas[about]
            gone = list(replica.held)
            lost += sum(len(request.lengths) for request in gone)
            replicas[about] = _Replica(replica.life + 1, up=False)
            for request in gone:
                later(now, "send", request)
            later(now + cluster.reload, "up", about)
        elif what == "up":
            assert isinstance(about, int)
            replicas[about].up = True
            later(now + cluster.life(draw), "fail", about)
        else:
            assert isinstance(about, _Sample)
            request, life, length = about.request, about.life, about.length
            replica = replicas[request.at]
            if life != replica.life or life != request.life:
                continue  # its replica has failed meanwhile
            written += length * cluster.step
            replica.running -= 1
            replica.load -= 1
            request.left -= 1
            fill(replica)
            if request.left:
                continue
            replica.held.discard(request)
            in_flight -= len(request.lengths)
            if request.layer < load.layers:
                ask(request.query, request.layer + 1)
            else:
                ends.append(now)
                if len(ends) in (load.queries // 4, load.queries * 3 // 4):
                    marks.append((now, written, driven))
                if begun < load.queries:
                    ask(begun, 0)
                    begun += 1
            admit()
    (start, written_0, driven_0), (end, written_1, driven_1) = marks
    span = end - start
    busy = (written_1 - written_0) / span / (cluster.slots * cluster.replicas)
    return Told(now, 2 * span, busy, (driven_1 - driven_0) / span, lost)

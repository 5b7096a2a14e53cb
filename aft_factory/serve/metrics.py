"""What Prometheus reads of a server, in a registry of its own: vLLM has the global one."""

from __future__ import annotations

import re
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aft_factory.asking.limiter import Limiter
from aft_factory.inference.outcome import Outcome

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
KINDS = ("prompt", "cached", "completion")


class Metrics:
    """Counts requests, their time and what they took."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            *("aft_requests", "Requests that ended.", ["variant", "status"]), registry=registry
        )
        self._seconds = Histogram(
            *("aft_request_seconds", "Time of a request.", ["variant"]),
            registry=registry,
            buckets=SECONDS,
        )
        self._first = Histogram(
            *("aft_time_to_first_byte_seconds", "Until an answer begins.", ["variant"]),
            registry=registry,
            buckets=SECONDS,
        )
        self._tokens = Counter(
            *("aft_tokens", "Tokens read and written.", ["kind", "layer"]), registry=registry
        )
        self._events = Counter(
            *("aft_events", "Uses of a policy for drafts.", ["event"]), registry=registry
        )
        self._in_flight = Gauge(
            "aft_samples_in_flight", "Samples with the model.", registry=registry
        )
        self._waiting = Gauge("aft_waiting", "Requests to the model that wait.", registry=registry)

    def watch(self, limiter: Limiter) -> None:
        """Read what is in flight from a limiter."""
        self._in_flight.set_function(lambda: limiter.taken)
        self._waiting.set_function(lambda: limiter.waiting)

    def ended(self, variant: str, status: str, seconds: float, first: float | None) -> None:
        """Count a request: of which variant, how it ended, and its times."""
        self._requests.labels(variant, status).inc()
        self._seconds.labels(variant).observe(seconds)
        if first is not None:
            self._first.labels(variant).observe(first)

    def took(self, outcome: Outcome) -> None:
        """Count the tokens and events of a query."""
        for row in outcome.usage:
            for kind in KINDS:
                self._tokens.labels(kind, row["layer"]).inc(row[kind] or 0)
        for event in outcome.events:
            self._events.labels(re.sub(r"\d+", "N", event["event"])).inc()

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        content: Any = generate_latest(self.registry)
        return bytes(content)

"""A call of a Ray actor: its result, and what a person needs of an error of Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from typing import Any


async def result(ref: Any) -> Any:
    """Wait for a call, and return its result as it was packed; give it up with who waits."""
    import ray

    try:
        answer = await ref
        return pickle.loads(answer) if isinstance(answer, bytes) else answer
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            ray.cancel(ref)
        raise


def words_of(error: Exception) -> str:
    """Return what a person needs of Ray's many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [repr(error)])[-1][:300]

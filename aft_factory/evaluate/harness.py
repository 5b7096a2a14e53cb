"""A harness's own command, which asks its judge through us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from aft_factory.errors import UsageError
from aft_factory.evaluate.judge import Judge
from aft_factory.network import is_key, without_proxies
from aft_factory.stage.guard import guarding


def run_harness(
    name: str,
    command: Sequence[str],
    judge: Judge,
    where: Path,
    log: Path,
    environment: Mapping[str, str],
) -> str:
    """Run a harness's own command until it ends, or until its judge fails it.

    Args:
        name: Of the harness.
        command: To run.
        judge: That it asks.
        where: The folder to run it in.
        log: Where what it says is kept.
        environment: Added to ours.

    Returns:
        What it says.

    Raises:
        UsageError: If it fails.
    """
    with (
        judge.serving() as url,
        log.open("wb") as out,
        guarding(signal.SIGKILL, patience=0) as enter,
    ):
        # The names that the versions of OpenAI's client know.
        names = {"OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "OPENAI_API_KEY": "none"}
        inherited = {name: text for name, text in os.environ.items() if not is_key(text)}
        env = without_proxies({**inherited, **names, **environment})
        env.pop("OPENAI_API_KEYS", None)
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=where,
            env=env,
            start_new_session=True,
            preexec_fn=enter,
        )
        try:
            assert child.stdin is not None
            with contextlib.suppress(OSError), child.stdin as stdin:
                stdin.write(b"\n")  # FastChat waits for Enter
            while judge.failure is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.1)
                    break
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if judge.failure is not None:
        raise UsageError(f"{name}: the judge {judge.model}: {judge.failure}")
    with log.open("rb") as stream:
        said = stream.read().decode(errors="replace")
    if child.returncode:
        last = said.strip().splitlines()[-1:]
        raise UsageError(f"{name} ended with {child.returncode}: {''.join(last)} ({log})")
    return said

"""A real vLLM server of a tiny model, for several test files."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flaky_server import until
from reward_tools import free_port


@contextlib.contextmanager
def vllm_server_of(model: Path, folder: Path, *flags: str) -> Iterator[str]:
    """A vLLM server that calls the model `tiny` and logs into the folder. Yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    # One process less to start, and nothing to compile.
    command += ["--distributed-executor-backend", "uni", "--enforce-eager", "--dtype", "float32"]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*command, *flags],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        said = log.read_text(errors="replace")[-3000:]
        assert server.poll() is None, f"vLLM did not start:\n{said}"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        return False

    try:
        until(answers, 400)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):  # it died by itself
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

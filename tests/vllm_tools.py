"""A real vLLM server of a tiny model, for several test files."""

import contextlib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flaky_server import until
from ready_tools import Ready
from reward_tools import free_port


def start_vllm(ready: Ready, model: Path, folder: Path, *flags: str, lasting: bool = False):
    """Start a vLLM server that calls the model `tiny` and logs into the folder.

    Returns:
        The program, and its URL, at which it answers.
    """
    port = free_port()
    arguments = ["--model", model, "--served-model-name", "tiny"]
    arguments += ["--host", "127.0.0.1", "--port", port]
    # Nothing to compile.
    arguments += ["--enforce-eager", "--dtype", "float32", *flags]
    log = folder / "log"
    module = "vllm.entrypoints.openai.api_server"
    server = ready.start(module, arguments, log, lasting=lasting)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        said = log.read_text(errors="replace")[-3000:]
        assert server.poll() is None, f"vLLM did not start:\n{said}"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        return False

    until(answers, 400)
    return server, url


@contextlib.contextmanager
def vllm_server_of(ready: Ready, model: Path, folder: Path, *flags: str) -> Iterator[str]:
    """Have a vLLM server. Yields its URL."""
    server, url = start_vllm(ready, model, folder, *flags)
    try:
        yield url
    finally:
        server.end()

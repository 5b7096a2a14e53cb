"""The second half of `make demo`: propose-and-aggregate with the model that the first half trained.

Merges the AFT adapter, lets the real vLLM answer held-out questions, kills the run halfway as a
power cut would, and runs the same command again, which goes on where the first one was. Then serves
the model, and asks it one question.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

EXPORT = """\
model_name_or_path: {model}
adapter_name_or_path: {adapter}
finetuning_type: lora
template: {template}
export_dir: {merged}
export_device: cpu
"""


@dataclass(frozen=True, slots=True)
class Asking:
    """How the trained model is asked: settings of a run and of vLLM."""

    questions: int
    width: int
    layers: int
    max_tokens: int
    dtype: str

    def flags(self) -> list[str]:
        """Flags of `aft run` and `aft serve`."""
        flags = ["--width", str(self.width), "--layers", str(self.layers)]
        flags += ["--max-tokens", str(self.max_tokens)]
        # Small enough for a laptop's CPU; none of it is needed on a GPU.
        engine = ("max_model_len=4096", "enforce_eager=true", "max_num_seqs=32")
        for argument in (*engine, f"dtype={self.dtype}"):
            flags += ["--engine-args", argument]
        return flags


def merge(model: Path, adapter: Path, template: str, output: Path) -> Path:
    """Merge an adapter with the real `llamafactory-cli`; return the folder of the whole model."""
    merged = output / "merged"
    config = output / "export.yaml"
    config.write_text(EXPORT.format(model=model, adapter=adapter, template=template, merged=merged))
    log = output / "export.log"
    print(f"$ llamafactory-cli export {config}    (its output: {log})")
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "export", str(config)]
    with log.open("wb") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"the export failed; the whole log: {log}")
    return merged


def answer(model: Path, queries: Path, asking: Asking, output: Path) -> Path:
    """Answer queries by propose-and-aggregate: killed once, resumed; return the answers' file."""
    answers = output / "answers.jsonl"
    command = [sys.executable, "-m", "aft_factory.run", str(queries), "--output", str(answers)]
    command += ["--model", str(model), "--keep-drafts", *asking.flags()]
    print(f"$ {' '.join(command).replace(sys.executable, 'python')}")
    requests = asking.questions * (asking.layers + 1)
    log = output / "run.log"
    with log.open("wb") as stream:
        # A group of its own, so that the engine's processes die with it.
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment(), start_new_session=True
        )
        while process.poll() is None and answered(answers) < requests // 2:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run was not killed halfway; the whole log: {log}")
    print(f"killed (kill -9) with {answered(answers)} of {requests} requests answered; again:")
    print("$ the same command")
    subprocess.run(command, check=True, env=environment())
    return answers


def answered(answers: Path) -> int:
    """Count the requests in the journal of a run that may be under way."""
    import sqlite3

    journal = Path(f"{answers}.journal")
    if not journal.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM replies").fetchone()[0])
    except sqlite3.OperationalError:  # it is just being made
        return 0


def environment() -> dict[str, str]:
    """On a CPU, vLLM takes a share of the memory for its cache, if nothing is said: say 1 GB."""
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"} | os.environ


def read_aloud(answers: Path) -> None:
    """Print one query with its drafts and its aggregation."""
    row = json.loads(answers.open().readline())
    print("\nOne question:")
    texts = [("query", row["query"])]
    for layer in row["layers"][:-1]:
        name = "draft" if layer["layer"] == 0 else f"layer {layer['layer']}, draft"
        texts += [(f"{name} {draft['slot'] + 1}", draft["text"]) for draft in layer["drafts"]]
    texts += [("aggregation", row["response"]), ("reference", row["reference"])]
    for name, text in texts:
        print(textwrap.indent(f"{name}:\n{textwrap.indent(text.strip(), '    ')}", "  "))


def serve(model: Path, question: str, asking: Asking, output: Path) -> None:
    """Serve the model, ask it one question over HTTP, and end the server as its keeper would."""
    port = 8017
    command = [sys.executable, "-m", "aft_factory.serve", "--model", str(model)]
    command += ["--port", str(port), *asking.flags()]
    print(f"$ {' '.join(command).replace(sys.executable, 'python')}")
    url, log = f"http://127.0.0.1:{port}", output / "serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment())
    try:
        while not is_ready(f"{url}/health"):
            if server.poll() is not None:
                raise SystemExit(f"the server did not start; the whole log: {log}")
            time.sleep(0.2)
        body = {"model": "aft", "messages": [{"role": "user", "content": question}]}
        headers = {"Content-Type": "application/json"}
        print(f"$ curl {url}/v1/chat/completions -d '{json.dumps(body)}'")
        asked = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(asked, timeout=300) as response:
            answer = json.load(response)
    finally:
        server.terminate()
        server.wait()
    print(f"its answer: {answer['choices'][0]['message']['content'][:200]!r} ...")
    print(f"what all drafts and layers took: {answer['usage']}")


def is_ready(url: str) -> bool:
    """Tell whether a server says that it is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # it does not listen yet, or loads its model
        return False

"""`aft eval` in tests: small local copies of benchmarks, and a model that answers as told."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aft_factory.engines.engine import EngineError
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.evaluate.__main__ import main

MMLU = [  # question, choices, answer, subject
    ("How much is 2 + 2?", ["3", "4", "5", "6"], 1, "abstract_algebra"),
    ("How much is 3 * 3?", ["9", "8", "7", "6"], 0, "abstract_algebra"),
    ("What is the capital of France?", ["Rome", "Paris", "Oslo", "Bern"], 1, "global_facts"),
]


def write_rows(path, rows):
    """Write JSON Lines; return the path as a text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mmlu_rows():
    """Rows as cais/mmlu has them, all subjects in one file."""
    names = ("question", "choices", "answer", "subject")
    return [dict(zip(names, row, strict=True)) for row in MMLU]


def arc_rows():
    """The same as allenai/ai2_arc has rows; some of its labels are digits."""
    return [
        {
            "id": f"Q{number}",
            "question": question,
            "choices": {"text": choices, "label": list("1234" if number else "ABCD")},
            "answerKey": ("1234" if number else "ABCD")[answer],
        }
        for number, (question, choices, answer, _) in enumerate(MMLU)
    ]


def gsm8k_rows(count):
    """Problems whose answer is their number."""
    return [
        {"question": f"Problem {number}?", "answer": f"It is so.\n#### {number}"}
        for number in range(count)
    ]


def asked(request):
    """What the user said last."""
    return request.prompt[-1]["content"]


def answering(monkeypatch, script):
    """Have `--scripted` answer by a function of the request; return what it is asked."""
    requests = []

    def texts(request):
        requests.append(request)
        found = script(request)
        return found if isinstance(found, EngineError) else [found] * request.n

    def engine(own=texts, **options):  # a dry run has a script of its own
        return ScriptedEngine(own, **options)

    monkeypatch.setattr("aft_factory.stage.engines.ScriptedEngine", engine)
    return requests


def evaluate(folder, *arguments):
    """Run `aft eval ... --scripted`; return its exit code and results."""
    output = folder / "out"
    code = main([*arguments, "--scripted", "--quiet", "--output", str(output)])
    return code, json.loads((output / "results.json").read_text(encoding="utf-8"))


def metrics(results):
    """Return the values by benchmark and metric."""
    return {
        one["benchmark"]: {metric["metric"]: metric["value"] for metric in one["metrics"]}
        for one in results["benchmarks"]
    }


class Asked(list):
    """The bodies a judge was asked by, and the keys it was shown."""

    def __init__(self):
        super().__init__()
        self.keys_seen = set()


@contextlib.contextmanager
def judging(reply, refusal=400):
    """A judge's server: `reply` makes a choice of a body, or None to fail; yields URL and bodies."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            asked.keys_seen.add(self.headers["Authorization"])
            choice = reply(body)
            content = {"error": {"message": "the judge is ill"}}
            if choice is not None:
                message = {"role": "assistant", "content": choice.pop("content")}
                one = {"index": 0, "finish_reason": "stop", "message": message, **choice}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                content = {"id": "x", "object": "chat.completion", "created": 0}
                content |= {"model": body["model"], "choices": [one], "usage": usage}
            data = json.dumps(content).encode()
            self.send_response(refusal if choice is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            with contextlib.suppress(OSError):  # who asked was killed
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()

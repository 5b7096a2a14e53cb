#!/usr/bin/env python3
"""A small OpenAI-compatible server on 127.0.0.1 that behaves as real ones have been seen to.

    python server.py PORT MODE [LOG.jsonl]

LOG receives every request. The modes are in MODES below; README.md says what a user expects of each.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODES = [
    "good",
    "v1only",
    "bare_array",
    "list_forbidden",
    "no_list",
    "small_context",
    "max_completion_tokens",
    "strict",
    "exclusive",
    "no_system",
    "think",
    "think_cut",
    "reasoning_only",
    "reasoning_cut",
    "parts",
    "stream_only",
    "event_stream",
    "one_choice",
    "one_only",
    "no_quota",
    "model_length",
    "half_emoji",
    "not_a_number",
    "null_usage",
    "tool_calls",
]


def choice(index, text, reason="stop", **message):
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, **message},
        "text": text,
        "finish_reason": reason,
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, message, status=400, **more):
        self.send(status, {"error": {"message": message, "type": "invalid_request_error", **more}})

    def note(self, entry):
        if LOG:
            LOG.write(json.dumps(entry) + "\n")

    def do_GET(self):
        self.note({"GET": self.path})
        model = {"id": "m", "object": "model", "owned_by": "someone"}
        if MODE == "small_context":
            model["max_model_len"] = 4096
        if MODE == "v1only" and not self.path.startswith("/v1/"):
            return self.send(404, {"detail": "nothing here"})
        if MODE == "no_list":
            return self.send(404, {"error": {"message": "no such path"}})
        if MODE == "list_forbidden":
            return self.send(403, {"error": {"message": "this key may not list models"}})
        if MODE == "bare_array":
            return self.send(200, [model, {"id": "other", "object": "model"}])
        self.send(200, {"object": "list", "data": [model]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.note({"POST": self.path, "body": body})
        n, has = body.get("n") or 1, body.get
        usage = {"prompt_tokens": 10, "completion_tokens": 5 * n, "total_tokens": 10 + 5 * n}

        def answer(choices, usage=usage):
            self.send(
                200,
                {
                    "id": "c",
                    "object": "chat.completion",
                    "model": "m",
                    "choices": choices,
                    "usage": usage,
                },
            )

        if MODE == "v1only" and not self.path.startswith("/v1/"):
            return self.send(404, {"detail": "nothing here"})
        if MODE == "max_completion_tokens":
            for field, fine in (("max_tokens", None), ("top_p", None), ("temperature", 1)):
                if has(field) not in (None, fine):
                    return self.refuse(
                        f"{field} is not taken by this model",
                        param=field,
                        code="unsupported_parameter",
                    )
        if MODE == "strict":
            known = {
                "model",
                "messages",
                "temperature",
                "top_p",
                "max_tokens",
                "stop",
                "stream",
                "random_seed",
            }
            extra = [
                {"type": "extra_forbidden", "loc": ["body", f]} for f in body if f not in known
            ]
            if extra:
                return self.send(
                    422,
                    {
                        "object": "error",
                        "message": {"detail": extra},
                        "type": "invalid_request_error",
                    },
                )
        if MODE == "exclusive" and "temperature" in body and "top_p" in body:
            return self.refuse("give temperature or top_p, not both")
        if MODE == "no_system" and any(m["role"] == "system" for m in has("messages") or ()):
            return self.send(
                400,
                {
                    "object": "error",
                    "message": "the template has no system role",
                    "type": "BadRequestError",
                    "code": 400,
                },
            )
        if MODE == "one_only" and n != 1:
            return self.refuse("n must be 1")
        if MODE == "small_context" and (has("max_tokens") or 0) > 4000:
            return self.refuse(
                "max_tokens and the prompt are longer than the context of 4096 tokens"
            )
        if MODE == "stream_only" and not has("stream"):
            return self.refuse("this model only streams")
        if MODE in ("stream_only", "event_stream"):
            parts = [
                {"choices": [{"index": 0, "delta": {"content": w}, "finish_reason": None}]}
                for w in ("The answer ", "is 42.")
            ]
            parts.append(
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
            )
            data = (
                b"".join(b"data: " + json.dumps(p).encode() + b"\n\n" for p in parts)
                + b"data: [DONE]\n\n"
            )
            return self.send(200, data, "text/event-stream")
        if MODE == "no_quota":
            return self.send(
                429,
                {
                    "error": {
                        "message": "the quota is used up; see billing",
                        "type": "insufficient_quota",
                        "code": "insufficient_quota",
                    }
                },
            )
        if MODE == "half_emoji":
            return self.send(
                200,
                b'{"choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Well done \\ud83d"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}',
            )
        if MODE == "not_a_number":
            return self.send(
                200,
                b'{"choices": [{"index": 0, "finish_reason": "stop", "logprobs": {"token_logprobs": [-Infinity, NaN]}, "message": {"role": "assistant", "content": "The answer is 42."}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}',
            )
        thought = "First idea: 41? No, 6 times 7."
        texts = {
            "think": lambda i: choice(i, f"<think>\n{thought}\n</think>\n\nThe answer is 42."),
            "think_cut": lambda i: choice(i, f"<think>\n{thought} But then 17", "length"),
            "reasoning_only": lambda i: choice(i, None, "stop", reasoning_content=thought),
            "reasoning_cut": lambda i: choice(i, None, "length", reasoning=thought),
            "parts": lambda i: choice(
                i,
                [
                    {"type": "thinking", "thinking": [{"type": "text", "text": thought}]},
                    {"type": "text", "text": "The answer is 42."},
                ],
            ),
            "model_length": lambda i: choice(
                i, "Cut in the mid", "model_length" if (has("seed") or 0) % 2 else "MAX_TOKENS"
            ),
            "tool_calls": lambda i: choice(
                i,
                None,
                "tool_calls",
                tool_calls=[
                    {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            ),
        }
        make = texts.get(
            MODE, lambda i: choice(i, f"Draft {(has('seed') or 0) + i}: the answer is 42.")
        )
        answer(
            [make(i) for i in range(1 if MODE == "one_choice" else n)],
            None if MODE == "null_usage" else usage,
        )


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in MODES:
        sys.exit(f"usage: server.py PORT MODE [LOG]; modes: {' '.join(MODES)}")
    MODE = sys.argv[2]
    LOG = open(sys.argv[3], "a", buffering=1) if len(sys.argv) > 3 else None  # noqa: SIM115
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

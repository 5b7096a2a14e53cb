"""A stand-in for a reward model's server, for several test files."""

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def http_server(answer, listing=None, context=None, **entry) -> Iterator[str]:
    """A server of which any path gives `answer(body)`: status, headers and text. Yields its URL.

    `entry` changes what it says of its one model, `listing` all that it says: a body, or a status
    and a text; `context` is that of TLS.
    """
    listing = listing or {"data": [{"id": "rm", "max_model_len": 100, **entry}]}
    status, listed = listing if isinstance(listing, tuple) else (200, json.dumps(listing))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(status, {}, listed)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(*answer(json.loads(body)))

        def _send(self, status, headers, text):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(text))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256  # all may come at once

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # of clients that hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'' if context is None else 's'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def logits(*values: float) -> str:
    """Return vLLM's answer of `/classify`."""
    return json.dumps({"data": [{"probs": values}]})

"""A small hub of data sets: the part of its interface that `datasets` asks, for several test files."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

Tree = dict[str, bytes]  # the files of a revision, by their paths


@dataclass
class Hub:
    """A hub that runs.

    Attributes:
        sets: By the name of a data set, its revisions, `main` among them.
        url: Where it is.
        read: How often each file was read, in whole or part.
    """

    sets: dict[str, dict[str, Tree]]
    url: str = ""
    read: Counter[str] = field(default_factory=Counter)

    def environment(self, home: str) -> dict[str, str]:
        """What sends `datasets` here, and nowhere else."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}


def sha(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@contextlib.contextmanager
def hub_of(sets: dict[str, dict[str, Tree]]) -> Iterator[Hub]:
    """A hub with these data sets."""
    hub = Hub(sets)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlsplit(self.path).path).removeprefix("/api").removeprefix("/datasets/")
            name = next((name for name in sets if f"{path}/".startswith(f"{name}/")), None)
            if name is None:
                return self._no("RepoNotFound")
            what, _, rest = path[len(name) + 1 :].partition("/")
            revision, _, file = rest.partition("/")
            named = revision or "main"
            tree = next((t for key, t in sets[name].items() if named in (key, sha(key))), None)
            if tree is None:
                return self._no("RevisionNotFound")
            self.commit = next(sha(key) for key, t in sets[name].items() if t is tree)
            if what == "tree":
                inside = f"{file}/" if file else ""
                found = [path for path in _paths(tree) if path.startswith(inside)]
                if "recursive=true" not in self.path.lower():
                    found = [path for path in found if "/" not in path[len(inside) :]]
                return self._json([_entry(path, tree) for path in found])
            if what == "paths-info":
                said = self.rfile.read(int(self.headers["Content-Length"])).decode()
                return self._json([_entry(path, tree) for path in _paths(tree) if path in said])
            if what == "resolve":
                return self._file(file, tree)
            siblings = [{"rfilename": path} for path in tree]
            return self._json({"id": name, "sha": self.commit, "siblings": siblings})

        do_HEAD = do_POST = do_GET

        def _file(self, file, tree):
            if file not in tree:
                return self._no("EntryNotFound")
            data, status, headers = tree[file], 200, {}
            if given := self.headers.get("Range"):
                start, _, end = given.removeprefix("bytes=").partition("-")
                headers["Content-Range"] = f"bytes {given[6:]}/{len(data)}"
                data, status = data[int(start) : int(end or len(data)) + 1], 206
            if self.command == "GET":
                hub.read[file] += 1
            self._send(status, data, headers | {"ETag": f'"{_oid(tree[file])}"'})

        def _json(self, value):
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _no(self, code):
            self.commit = ""
            self._send(404, b"", {"X-Error-Code": code})

        def _send(self, status, data, headers):
            self.send_response(status)
            own = {"Content-Length": str(len(data)), "X-Repo-Commit": self.commit}
            for name, value in (own | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # of clients that hang up
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _paths(tree: Tree) -> list[str]:
    folders = {path.rsplit("/", 1)[0] for path in tree if "/" in path}
    return sorted({*tree, *folders})


def _entry(path: str, tree: Tree) -> dict:
    if path not in tree:
        return {"type": "directory", "oid": sha(path), "size": 0, "path": path}
    return {"type": "file", "oid": _oid(tree[path]), "size": len(tree[path]), "path": path}


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()

"""The page: one file that asks nobody, written as its queries come.

    head    a content policy that allows nothing but this style and this script, by their hashes
    chunks  queries as JSON, compressed, some hundred thousand characters each
    index   of each query what the list needs; and what the head of the page tells
    script  the files beside this one

A text of a model is only ever JSON: compressed, or with `<` escaped; the script puts it on the page
by `textContent`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from aft_factory.records.files import read_text

HERE = Path(__file__).parent
SCRIPTS = ("text.js", "words.js", "list.js", "query.js", "head.js", "main.js")
CHUNK = 400_000  # characters of JSON: unpacked in some milliseconds
MOST_BYTES = 400_000_000  # of a page: what browsers open


class Page:
    """A page that is being written.

    Args:
        file: Where to.
        most: Queries that it takes.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.full: str | None = None
        self._file = file
        self._most = most
        self._chunk: list[str] = []
        self._size = self._chunks = 0
        self._index: list[Sequence[Any]] = []
        style = read_text(HERE / "page.css")
        self._script = "\n".join(read_text(HERE / name) for name in SCRIPTS)
        policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src '{_hash(self._script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        )
        self._write(
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>aft report</title>\n<style>{style}</style>\n<body>\n"
            "<noscript>This page is read with JavaScript; it loads nothing from anywhere."
            "</noscript>\n"
        )

    @property
    def queries(self) -> int:
        """How many it has."""
        return len(self._index)

    def add(self, query: Mapping[str, Any], listed: Sequence[Any]) -> None:
        """Add a query, unless the page is full.

        Args:
            query: All of it.
            listed: What the list needs of it.
        """
        if self.full is None and self.queries >= self._most:
            self.full = f"{self._most:,} queries"
        elif self.full is None and self._file.tell() >= MOST_BYTES:
            self.full = f"{MOST_BYTES // 10**6} MB"
        if self.full is not None:
            return
        self._index.append([*listed, self._chunks, len(self._chunk)])
        text = json.dumps(query)  # in ASCII: halves of surrogate pairs are escaped, and U+2028
        self._chunk.append(text)
        self._size += len(text)
        if self._size >= CHUNK:
            self._end_chunk()

    def end(self, head: Mapping[str, Any]) -> None:
        """Write the rest.

        Args:
            head: What the head of the page tells.
        """
        self._end_chunk()
        index = json.dumps({"head": head, "queries": self._index}, separators=(",", ":"))
        escaped = index.replace("<", "\\u003c")
        self._write(
            f'<script type="application/json" id="index">{escaped}</script>\n'
            f"<script>{self._script}</script>\n</body>\n</html>\n"
        )

    def _end_chunk(self) -> None:
        if self._chunk:
            data = zlib.compress(f"[{','.join(self._chunk)}]".encode(), 6)
            text = base64.b64encode(data).decode()
            self._write(f'<script type="text/plain" id="chunk{self._chunks}">{text}</script>\n')
            self._chunks += 1
            self._chunk, self._size = [], 0

    def _write(self, text: str) -> None:
        self._file.write(text.encode())


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

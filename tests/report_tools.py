"""Runs to report on, and what a page of them holds."""

import base64
import json
import re
import zlib

from asking_tools import command, write_lines

from aft_factory.report.__main__ import main

# What would leave its place if it were not text, and what cannot be seen.
HOSTILE = [
    "</script><script>window.pwned = 1</script> <!-- <script> x",
    "a\u2028b\u2029c \x00\x01\x1b[31mred\x7f \u202eright to left\u202c",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 <img src=x onerror='window.pwned = 1'> &amp;",
    "half a pair: \ud83d and a whole one: \U0001f600",
]


def run(monkeypatch, capsys, rows, *flags, script=None, output="out.jsonl"):
    """Run `aft run` on rows in this folder."""
    source = write_lines(_path("in.jsonl"), rows)
    return command(monkeypatch, capsys, script, source, output, *flags)


def report(capsys, *words):
    """Run `aft report`; return (code, stdout, stderr)."""
    capsys.readouterr()
    code = main([*words, "--output", "page.html", "--overwrite", "--quiet"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def page():
    """Return what the page's data hold: (head, queries, the page as it stands)."""
    text = _path("page.html").read_text(encoding="ascii")
    [index] = re.findall(r'id="index">(.*?)</script>', text)
    content = json.loads(index)
    chunks = [
        json.loads(zlib.decompress(base64.b64decode(data)))
        for data in re.findall(r'<script type="text/plain" id="chunk\d+">(.*?)</script>', text)
    ]
    queries = [chunks[listed[-2]][listed[-1]] for listed in content["queries"]]
    return content["head"], queries, text


def _path(name):
    from pathlib import Path

    return Path(name)

"""Runs to report on, and what a page of them holds."""

import base64
import importlib.util
import json
import re
import shutil
import zlib
from contextlib import contextmanager

import pytest
from asking_tools import command, write_lines

from aft_factory.report.__main__ import main

# What would leave its place if it were not text, and what cannot be seen.
HOSTILE = [
    "</script><script>window.pwned = 1</script> <!-- <script> x",
    "a\u2028b\u2029c \x00\x01\x1b[31mred\x7f \u202eright to left\u202c \u200b\U000e0041",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 <img src=x onerror='window.pwned = 1'> &amp;",
    "half a pair: \ud83d and a whole one: \U0001f600",
]


CHROMIUM = shutil.which("chromium")
QUIET = "--no-sandbox --disable-gpu --disable-dev-shm-usage"
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="drives a browser: apt-get install chromium; pip install playwright",
)


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


@contextmanager
def opened(at="", **context):
    """The page in a browser that must have nothing to complain of."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        page = browser.new_context(**context).new_page()
        told = []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url))
        page.goto(f"{_path('page.html').absolute().as_uri()}{at}")
        page.wait_for_selector("article")
        assert told.pop(0).startswith("file:")
        yield page
        assert told == []
        assert page.evaluate("window.pwned") is None
        browser.close()


def _path(name):
    from pathlib import Path

    return Path(name)

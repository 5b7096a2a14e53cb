"""Benchmark of `aft report`: what a page of many queries takes to make, to open and to search.

    python benchmarks/report.py                     # 10,000 queries of 11 drafts, some minutes
    python benchmarks/report.py --queries 1000 --json report.json

A scripted run of K=5, L=2 whose drafts are GSM8K's worked solutions, so that every draft is read
for its answer. CPU time of a process of its own, without its imports; opening and searching in
headless Chromium, where playwright and that are there. Goals: a page opens within a second, a
search in all texts ends within ten.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOLUTIONS = Path(__file__).parents[1] / "examples" / "data" / "gsm8k_solutions.jsonl"
GOAL_OPEN, GOAL_SEARCH = 1.0, 10.0  # seconds
CHROMIUM = shutil.which("chromium")


def make_run(folder: Path, queries: int) -> None:
    """Leave the output of a run in a folder."""
    from aft_factory.engines.sampling import Request
    from aft_factory.engines.scripted import ScriptedEngine
    from aft_factory.run.__main__ import main as run
    from aft_factory.stage import engines

    rows = [json.loads(line) for line in SOLUTIONS.read_text(encoding="utf-8").splitlines()]
    texts = [one["response"] for row in rows for one in row["proposals"]]
    words = [word for text in texts for word in text.split()]

    def script(request: Request) -> list[str]:
        drawn = [random.Random(request.seed + i) for i in range(request.n)]
        return [f"{' '.join(own.choices(words, k=40))}\n{own.choice(texts)}" for own in drawn]

    with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
        for number in range(queries):
            row = rows[number % len(rows)]
            asked = {"query": f"{row['query']} ({number})", "reference": row["reference"]}
            file.write(json.dumps({"id": f"q{number:05}", **asked}) + "\n")

    def engine(own: Any = script, **options: Any) -> ScriptedEngine:  # a dry run has its own
        return ScriptedEngine(own, **options)

    engines.ScriptedEngine = engine  # type: ignore[assignment, attr-defined]
    flags = ["--scripted", "--width", "5", "--layers", "2", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert run([str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), *flags]) == 0


def measure_here(folder: Path) -> None:
    """Make the page in this process and print what it took as JSON."""
    from aft_factory.report.__main__ import main as report

    cpu = time.process_time()
    words = [str(folder / "out.jsonl"), "--output", str(folder / "page.html"), "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert report([*words, "--quiet"]) == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": time.process_time() - cpu, "peak_mib": peak}))


def open_page(page_file: Path) -> dict[str, float]:
    """Open the page and search it; return seconds, and the MB of its script's memory."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags.append("--enable-precise-memory-info")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.goto("about:blank")
        began = time.perf_counter()
        page.goto(page_file.absolute().as_uri())
        page.wait_for_selector("article")
        page.locator(".row").first.wait_for()
        opened = time.perf_counter() - began
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        page.check("input[type=checkbox]")
        began = time.perf_counter()
        page.fill("input[type=search]", "no such words anywhere")
        page.locator(".told", has_text="0 of").wait_for(timeout=300_000)
        searched = time.perf_counter() - began
        browser.close()
    return {"open": opened, "heap_mb": heap, "search": searched}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--queries", type=int, default=10_000, help="queries of the run (default: 10000)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    add("--here", type=Path, help=argparse.SUPPRESS)  # how it calls itself
    args = parser.parse_args(argv)
    if args.here:
        measure_here(args.here)
        return 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_run(folder, args.queries)
        command = [sys.executable, __file__, "--here", place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        page = folder / "page.html"
        results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        results |= {"queries": args.queries, "page_mb": page.stat().st_size / 1e6}
        if CHROMIUM is not None and importlib.util.find_spec("playwright") is not None:
            results |= open_page(page)
    print("\n".join(f"{name:10} {value:10.2f}" for name, value in results.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    slow = [
        f"{name}: {results[name]:.1f} s, not {goal:.0f}"
        for name, goal in (("open", GOAL_OPEN), ("search", GOAL_SEARCH))
        if results.get(name, 0) > goal
    ]
    print("\n".join(f"goal missed: {one}" for one in slow) or "all goals met")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())

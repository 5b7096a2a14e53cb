"""Memory and rows a second of `python -m aft_factory.run` by input size, without a model.

Each size in a process of its own, with the scripted engine: what is measured is the command, its
journal and its files. Used by `runner.py --memory`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from uf_rows import INSTRUCTION_LENGTHS, Texts

SIZES = (1_000, 10_000, 100_000)
MOST_GROWTH = 1.1


def write_queries(path: Path, count: int) -> None:
    texts = Texts(42)
    with path.open("wb") as stream:
        for i in range(count):
            query = texts.text(INSTRUCTION_LENGTHS).strip() or "?"
            row = {"id": f"q{i}", "query": query}
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Run the command on so many rows; return seconds and its peak memory in MiB."""
    source, output = folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl"
    write_queries(source, rows)
    command = [sys.executable, "-m", "aft_factory.run", str(source), "--output", str(output)]
    start = time.perf_counter()
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen([*command, "--scripted", "--quiet"], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "said.txt").read_text())
    with output.open("rb") as lines:
        assert sum(1 for _ in lines) == rows, "rows are missing"
    return {
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def measure_memory() -> tuple[dict[str, Any], list[str]]:
    """Measure all sizes; return the numbers and a sentence for each goal missed."""
    results: dict[str, Any] = {}
    print("| rows | peak MiB | rows/s |\n|--:|--:|--:|")
    for rows in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            taken = measure(rows, Path(folder))
        results[str(rows)] = taken
        print(f"| {rows} | {taken['peak_mib']:.0f} | {taken['rows_per_second']:.0f} |", flush=True)
    few, many = (results[str(rows)]["peak_mib"] for rows in (SIZES[0], SIZES[-1]))
    if many <= MOST_GROWTH * few:
        return results, []
    return results, [
        f"memory grows with the rows: {few:.0f} MiB at {SIZES[0]}, {many:.0f} MiB at {SIZES[-1]}"
    ]

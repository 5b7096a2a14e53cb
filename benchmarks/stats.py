"""Benchmark of `python -m aft_factory.stats`: rows a second and memory, without and with tokens.

    python benchmarks/stats.py                                  # 64,000 rows of 8 KB, 2 minutes
    python benchmarks/stats.py --tokenizer DIR --json stats.json  # and tokens, by that tokenizer

Synthetic UltraFeedback rows as the converter writes them, in JSON Lines, each run in a process of
its own; imports are timed apart. Numbers are those of the best turn. Goals: 64,000 rows within 20
seconds without a tokenizer, and memory that hardly grows: at most 100 bytes a row.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uf_rows import write_rows

GOAL_SECONDS, GOAL_ROWS, MOST_BYTES_A_ROW = 20.0, 64_000, 100


def measure_here(argv: Sequence[str]) -> None:
    """Run the command in this process and print what it took as JSON."""
    started = time.perf_counter()
    from aft_factory.stats.__main__ import main as stats

    if "--tokenizer" in argv:
        import transformers  # noqa: F401 - some seconds, whatever the rows

    imported, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        assert stats([*argv, "--quiet"]) == 0
    taken = {"wall": time.perf_counter() - imported, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"imports": imported - started, **taken, "peak_mib": peak}))


def measure(*argv: str) -> dict[str, float]:
    """Run the command in a fresh process."""
    command = [sys.executable, __file__, "--here", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"stats failed:\n{done.stdout}{done.stderr}")
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def make_records(path: Path, rows: int) -> None:
    """Write records as the converter makes them of synthetic UltraFeedback rows."""
    from aft_factory.convert.__main__ import main as convert

    raw = path.with_suffix(".raw.jsonl")
    write_rows(raw, rows)
    with contextlib.redirect_stdout(io.StringIO()):
        assert convert(["ultrafeedback", str(raw), "--output", str(path), "--quiet"]) == 0
    raw.unlink()


def benchmark(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure and print the table; return its numbers."""
    few, many = folder / "few.jsonl", folder / "many.jsonl"
    make_records(few, args.rows // 8)
    make_records(many, args.rows)
    print(f"{args.rows} records, {many.stat().st_size / 1e6:.0f} MB", flush=True)
    cases: dict[str, list[str]] = {"estimated": []}
    if args.tokenizer is not None:
        cases["tokens of the default sample"] = ["--tokenizer", args.tokenizer]
    results: dict[str, Any] = {"rows": args.rows, "bytes": many.stat().st_size}
    print(f"{'':30} {'seconds':>8} {'CPU s':>8} {'rows/s':>8} {'MiB, an 8th':>12} {'MiB':>6}")
    for name, flags in cases.items():
        runs = [measure(str(many), *flags) for _ in range(args.repeats)]
        wall, cpu = min(run["wall"] for run in runs), min(run["cpu"] for run in runs)
        peak_few, peak = measure(str(few), *flags)["peak_mib"], runs[0]["peak_mib"]
        speed = args.rows / wall
        print(f"{name:30} {wall:8.1f} {cpu:8.1f} {speed:8.0f} {peak_few:12.0f} {peak:6.0f}")
        results[name] = {"wall": wall, "cpu": cpu, "peak_mib_few": peak_few, "peak_mib": peak}
    return results


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    missed, rows, taken = [], results["rows"], results["estimated"]
    if (seconds := taken["wall"] / rows * GOAL_ROWS) > GOAL_SECONDS:
        missed.append(f"{GOAL_ROWS} rows take {seconds:.1f} s, not {GOAL_SECONDS:.0f}")
    growth = (taken["peak_mib"] - taken["peak_mib_few"]) * 2**20 / (rows - rows // 8)
    if growth > MOST_BYTES_A_ROW:
        missed.append(f"memory grows by {growth:.0f} bytes a row")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=GOAL_ROWS, help=f"rows to count (default: {GOAL_ROWS})")
    add("--repeats", type=int, default=2, help="turns (default: 2)")
    add("--tokenizer", metavar="DIR_OR_NAME", help="measure with this one as well")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    add("--here", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # how it calls itself
    args = parser.parse_args(argv)
    if args.here:
        measure_here(args.here)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = benchmark(args, Path(folder))
    missed = missed_goals(results)
    if args.json:
        text = json.dumps(results | {"missed": missed}, indent=2) + "\n"
        args.json.write_text(text, encoding="utf-8")
    print("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

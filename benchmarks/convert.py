"""Benchmark of the converter: rows a second beside `datasets.map` and bare JSON, and its memory.

    python benchmarks/convert.py                      # 64,000 rows of 13 KB, about 4 minutes
    python benchmarks/convert.py --rows 8000 --repeats 2 --json convert.json

Contenders, each in a process of its own, in turns, on the same synthetic UltraFeedback rows:

* `sharegpt`, `aggregation`: `python -m aft_factory.convert ultrafeedback` with that target;
* `datasets`: `load_dataset("json")`, `map` with the functions `sharegpt` calls, `to_json`;
* `orjson`: reads and writes every line and does nothing else.

Imports are not timed. Numbers are those of each contender's best turn. Ratios are of CPU time, the
process's own over all its threads, which a busy machine disturbs less than wall time; rows a second
of wall time stand beside it. Goals: `sharegpt` at least 5 times as fast as `datasets`, both targets
at most twice the time of `orjson`, and memory that does not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from uf_rows import write_rows

Run = Callable[[Path, Path], object]  # input file, output file
LEAST_SPEED_UP, MOST_OVER_ORJSON, MOST_GROWTH = 5.0, 2.0, 1.1


def converter(target: str) -> Run:
    """Our command, in process."""
    from aft_factory.convert.__main__ import main as convert

    def run(source: Path, output: Path) -> None:
        paths = [str(source), "--output", str(output)]
        assert convert(["ultrafeedback", *paths, "--target", target, "--quiet"]) == 0

    return run


def with_datasets() -> Run:
    """The same rows by `datasets`, in one process, with an empty cache."""
    import datasets

    from aft_factory.convert.targets import to_sharegpt
    from aft_factory.convert.ultrafeedback import read_ultrafeedback
    from aft_factory.prompts.markers import known_markers
    from aft_factory.prompts.selection import PAPER, select
    from aft_factory.records.columns import USUAL_COLUMNS
    from aft_factory.records.record import Row

    datasets.disable_progress_bars()

    def convert(row: Row) -> Row:
        record = read_ultrafeedback(row, USUAL_COLUMNS, Counter())
        return to_sharegpt(select(record, PAPER), PAPER, known_markers())

    def run(source: Path, output: Path) -> None:
        table = datasets.load_dataset("json", data_files=str(source), split="train")
        table.map(convert, remove_columns=table.column_names).to_json(str(output))

    return run


def copy_by_orjson() -> Run:
    """The least work there can be: parse every line and write it again."""

    def run(source: Path, output: Path) -> None:
        with source.open("rb") as lines, output.open("wb") as out:
            for line in lines:
                out.write(orjson.dumps(orjson.loads(line)) + b"\n")

    return run


CONTENDERS: dict[str, Callable[[], Run]] = {
    "orjson": copy_by_orjson,
    "sharegpt": lambda: converter("sharegpt"),
    "aggregation": lambda: converter("aggregation"),
    "datasets": with_datasets,
}


def measure_here(name: str, source: Path, output: Path) -> None:
    """Run one contender in this process and print what it took as JSON."""
    run = CONTENDERS[name]()
    wall, cpu = time.perf_counter(), time.process_time()
    run(source, output)
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**taken, "peak_mib": peak}))


def measure(name: str, source: Path, folder: Path) -> dict[str, float]:
    """Run one contender in a fresh process; its output stays in the folder as `NAME.jsonl`."""
    output = folder / f"{name}.jsonl"
    output.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--contender", name, str(source), str(output)]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        env = os.environ | {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def same_rows(one: Path, other: Path) -> bool:
    """Tell whether two JSON Lines files hold equal rows in equal order."""
    with one.open("rb") as ours, other.open("rb") as theirs:
        return all(orjson.loads(a) == orjson.loads(b) for a, b in zip(ours, theirs, strict=True))


def benchmark(rows: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure all contenders in turns and return the numbers behind the table."""
    source, few = folder / "rows.jsonl", folder / "few.jsonl"
    size = write_rows(source, rows)
    write_rows(few, rows // 8)
    print(f"{rows} rows of {size / rows:.0f} bytes on average, {size / 1e6:.0f} MB", flush=True)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(repeats):
        for name in CONTENDERS:
            taken[name].append(measure(name, source, folder))
            print(f"  turn {turn + 1}, {name}: {taken[name][-1]}", file=sys.stderr, flush=True)
    assert same_rows(folder / "sharegpt.jsonl", folder / "datasets.jsonl"), "not the same work"

    results: dict[str, Any] = {"rows": rows, "bytes": size, "repeats": repeats}
    heads = ("rows/s (CPU)", "rows/s (wall)", "x datasets", "time / orjson")
    print("\n{:12} {:>13} {:>14} {:>11} {:>14}".format("", *heads))
    cpu = {name: min(run["cpu"] for run in runs) for name, runs in taken.items()}
    for name, runs in taken.items():
        numbers = {
            "rows_per_cpu_second": rows / cpu[name],
            "rows_per_second": rows / min(run["wall"] for run in runs),
            "speed_up_over_datasets": cpu["datasets"] / cpu[name],
            "time_over_orjson": cpu[name] / cpu["orjson"],
        }
        print("{:12} {:13.0f} {:14.0f} {:11.1f} {:14.2f}".format(name, *numbers.values()))
        results[name] = numbers
    few_peak, peak = measure("sharegpt", few, folder)["peak_mib"], taken["sharegpt"][0]["peak_mib"]
    print(f"\npeak memory: {few_peak:.0f} MiB at {rows // 8} rows, {peak:.0f} MiB at {rows} rows")
    return results | {"peak_mib": {"few": few_peak, "all": peak}}


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    missed = []
    if (speed_up := results["sharegpt"]["speed_up_over_datasets"]) < LEAST_SPEED_UP:
        missed.append(f"sharegpt is {speed_up:.1f} x datasets.map, not {LEAST_SPEED_UP}")
    for target in ("sharegpt", "aggregation"):
        if (time_over := results[target]["time_over_orjson"]) > MOST_OVER_ORJSON:
            missed.append(f"{target} takes {time_over:.2f} x orjson, not {MOST_OVER_ORJSON}")
    if results["peak_mib"]["all"] > MOST_GROWTH * results["peak_mib"]["few"]:
        missed.append("memory grows with the rows")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=64_000, help="rows to convert (default: 64000)")
    add("--repeats", type=int, default=3, help="turns of all contenders (default: 3)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    add("--contender", nargs=3, help=argparse.SUPPRESS)  # how it calls itself: NAME INPUT OUTPUT
    args = parser.parse_args(argv)
    if args.contender:
        name, source, output = args.contender
        measure_here(name, Path(source), Path(output))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = benchmark(args.rows, args.repeats, Path(folder))
    missed = missed_goals(results)
    if args.json:
        args.json.write_text(
            json.dumps(results | {"missed": missed}, indent=2) + "\n", encoding="utf-8"
        )
    print("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

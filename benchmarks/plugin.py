"""Benchmark of the plugin: what it costs every start of Python, and a training's preprocessing.

    python benchmarks/plugin.py                       # about 6 minutes
    python benchmarks/plugin.py --rows 400 --repeats 3 --starts 50 --json plugin.json

* Start-up: `python -c pass` in two empty virtual environments, in one of them with
  `aft_factory_autoload.pth`, in turns. Goal: at most 2 ms more.
* Preprocessing: LLaMA-Factory's `get_dataset` on records (`"formatting": "aggregation"`) and on the
  same rows written as ShareGPT by our converter, in turns, each time with an empty cache and with
  equal tokens as the result. Goal: at most 1.05 times the time, where every row fits.
* The same at `cutoff_len` 2048, where LLaMA-Factory cuts queries off and the plugin fits proposals:
  what fitting costs, without a goal.

Times are CPU time, of the started process or of this one, which a busy machine disturbs less than
wall time; wall time stands beside it. Of starts the median difference counts, of preprocessing the
best turn at each fifth of the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from uf_rows import ultrafeedback_rows, write_rows

ROOT = Path(__file__).parents[1]
MOST_MS, MOST_OVER_SHAREGPT = 2.0, 1.05
CUTOFFS = {"roomy": 100_000, "tight": 2048}
TARGETS = ("aggregation", "sharegpt")
PARTS = 5  # of the rows: short turns, of which more go undisturbed


def start_up(starts: int, folder: Path) -> dict[str, float]:
    """Return what the .pth file adds to a start of Python, in ms: medians of the pairs."""
    pythons = {}
    for name in ("without", "with"):
        venv.create(folder / name, with_pip=False, symlinks=True)
        pythons[name] = folder / name / "bin" / "python"
    (packages,) = (folder / "with" / "lib").glob("python*/site-packages")
    shutil.copy(ROOT / "aft_factory_autoload.pth", packages)

    taken: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for turn in range(starts + 1):
        for name, python in pythons.items():
            one = _start(python)
            if turn:  # the first one only warms the files up
                taken[name].append(one)
    pairs = list(zip(taken["with"], taken["without"], strict=True))
    added = {key: statistics.median(a[key] - b[key] for a, b in pairs) for key in ("cpu", "wall")}
    plain = {key: statistics.median(one[key] for one in taken["without"]) for key in added}
    return {
        "added_cpu_ms": 1000 * added["cpu"],
        "added_wall_ms": 1000 * added["wall"],
        "start_cpu_ms": 1000 * plain["cpu"],
        "start_wall_ms": 1000 * plain["wall"],
    }


def _start(python: Path) -> dict[str, float]:
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": wall}


def preprocessing(rows: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return the times of records over those of ShareGPT, with room and without."""
    _prepare(rows // PARTS, folder)
    results: dict[str, Any] = {}
    for name, cutoff in CUTOFFS.items():
        best = {target: {"cpu": 0.0, "wall": 0.0} for target in TARGETS}
        lengths: list[int] = []
        turns = repeats if name == "roomy" else max(1, repeats // 3)
        for part in range(PARTS):
            times: dict[str, list[dict[str, float]]] = {target: [] for target in TARGETS}
            tokens: dict[str, list[list[int]]] = {}
            for turn in range(turns):
                for target in TARGETS if turn % 2 else reversed(TARGETS):
                    dataset = f"{target}_{part}"
                    taken, tokens[target] = _preprocess(dataset, cutoff, folder)
                    times[target].append(taken)
                    print(f"  {name} {dataset}: {taken}", file=sys.stderr, flush=True)
            if name == "roomy" and tokens["aggregation"] != tokens["sharegpt"]:
                raise SystemExit("records and ShareGPT gave different tokens")
            for target, key in product(TARGETS, ("cpu", "wall")):
                best[target][key] += min(one[key] for one in times[target])
            lengths += [len(row) for row in tokens["aggregation"]]
        results[name] = {
            "cutoff_len": cutoff,
            "turns": turns,
            "longest_row": max(lengths),
            "mean_row": statistics.mean(lengths),
            "seconds": {target: best[target]["cpu"] for target in TARGETS},
            **{key: best["aggregation"][key] / best["sharegpt"][key] for key in ("cpu", "wall")},
        }
    return results


def _prepare(rows: int, folder: Path) -> None:
    """Make the data sets and a tiny model with a tokenizer of Llama 3's kind."""
    from aft_factory.convert.__main__ import main as convert

    for part in range(PARTS):
        write_rows(folder / "rows.jsonl", rows, seed=part)
        for target in TARGETS:
            output = str(folder / f"{target}_{part}.jsonl")
            options = ["--target", target, "--output", output, "--register", str(folder), "--quiet"]
            with contextlib.redirect_stdout(None):
                assert convert(["ultrafeedback", str(folder / "rows.jsonl"), *options]) == 0
    texts = folder / "texts.txt"
    texts.write_text("\n".join(str(row) for row in ultrafeedback_rows(100, seed=PARTS)))
    script = str(ROOT / "examples" / "tiny_model.py")
    command = [sys.executable, script, "llama3", str(folder / "model"), "--texts", str(texts)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _preprocess(
    dataset: str, cutoff: int, folder: Path
) -> tuple[dict[str, float], list[list[int]]]:
    """Let LLaMA-Factory load and tokenize a data set; return the time and the tokens."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    with tempfile.TemporaryDirectory(dir=folder) as scratch, _quiet():
        model_args, data_args, training_args, *_ = get_train_args(
            {
                "model_name_or_path": str(folder / "model"),
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "lora",
                "dataset_dir": str(folder),
                "dataset": dataset,
                "template": "aft_llama3",
                "cutoff_len": cutoff,
                "cache_dir": scratch,
                "output_dir": str(folder / "out"),
                "report_to": "none",
                "log_level": "error",
                "use_cpu": True,
            }
        )
        loaded = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
        wall, cpu = time.perf_counter(), time.process_time()
        module = get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
        taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        ids = list(module["train_dataset"]["input_ids"])
    return taken, ids


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep LLaMA-Factory's example rows, logs and bars away."""
    import datasets

    datasets.disable_progress_bars()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    missed = []
    if (added := results["start_up"]["added_cpu_ms"]) > MOST_MS:
        missed.append(f"a start of Python takes {added:.2f} ms longer, not {MOST_MS}")
    if (over := results["preprocessing"]["roomy"]["cpu"]) > MOST_OVER_SHAREGPT:
        missed.append(f"preprocessing takes {over:.3f} x ShareGPT, not {MOST_OVER_SHAREGPT}")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=2000, help="rows to preprocess (default: 2000)")
    add("--repeats", type=int, default=9, help="turns of preprocessing (default: 9)")
    add("--starts", type=int, default=200, help="starts of Python (default: 200)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args(argv)

    os.environ.update(HF_HUB_OFFLINE="1", LLAMAFACTORY_VERBOSITY="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        start = start_up(args.starts, Path(folder))
        print(
            f"start-up: {start['added_cpu_ms']:+.2f} ms of CPU time ({start['added_wall_ms']:+.2f} "
            f"ms of wall time) to {start['start_cpu_ms']:.1f} ms, median of {args.starts} pairs",
            flush=True,
        )
        pre = preprocessing(args.rows, args.repeats, Path(folder))
    for result in pre.values():
        print(
            f"preprocessing {args.rows} records at cutoff_len {result['cutoff_len']}: "
            f"{result['cpu']:.3f} x ShareGPT (wall {result['wall']:.3f}), "
            f"best of {result['turns']} turns; rows of {result['mean_row']:.0f} tokens on average, "
            f"at most {result['longest_row']}"
        )
    results = {"rows": args.rows, "start_up": start, "preprocessing": pre}
    missed = missed_goals(results)
    if args.json:
        args.json.write_text(json.dumps(results | {"missed": missed}, indent=2) + "\n")
    print("\n".join(f"goal missed: {sentence}" for sentence in missed) or "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

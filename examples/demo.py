"""The demo behind `make demo`: AFT on a tiny model, on CPU, without any download.

    python examples/demo.py --output demo_output

Real rows (GSM8K questions with four model solutions each) are converted, the real LLaMA-Factory
trains an SFT and an AFT adapter on them, and their losses are set side by side (the paper's
figure 6, left, in small). Then the real vLLM answers held-out questions with the AFT model by
propose-and-aggregate, is killed halfway and resumes, and our server is asked one (`demo_run.py`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_run import answer, merge, serve, show
from tiny_model import make_tiny_model

from aft_factory.convert.__main__ import main as convert

ROWS = Path(__file__).parent / "data" / "gsm8k_solutions.jsonl"
TRAINING_ROWS = 200  # the rest stays unseen, for questions to the trained model
QUESTIONS = 24  # of them
CUTOFF = 1024

# The paper's recipe in small: rank 8, cosine, 10% warm-up. Embedding and head are trained too, as
# the weights under the adapters are random here and hold nothing to adapt.
TRAINING = """\
model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
additional_target: embed_tokens,lm_head
dataset_dir: {data}
dataset: {dataset}
template: aft_llama3
cutoff_len: {cutoff}
output_dir: {output}
per_device_train_batch_size: 8
learning_rate: 3.0e-3
lr_scheduler_type: cosine
warmup_ratio: 0.1
num_train_epochs: 2
logging_steps: 1
include_num_input_tokens_seen: non_padding
save_strategy: "no"
report_to: none
use_cpu: true
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished training: its loss by step and how much it read."""

    name: str
    folder: Path
    rows: int
    tokens: int
    losses: list[float]


def train(name: str, dataset: str, output: Path) -> Run:
    """Train one adapter with the real `llamafactory-cli`, in a process of its own."""
    folder = output / name
    config = output / f"{name}.yaml"
    config.write_text(
        TRAINING.format(
            model=output / "model",
            data=output / "data",
            dataset=dataset,
            cutoff=CUTOFF,
            output=folder,
        )
    )
    log = output / f"{name}.log"
    print(f"$ llamafactory-cli train {config}    (its output: {log})")
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", str(config)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(output / "cache"), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        while process.poll() is None:
            time.sleep(1)
            show_progress(folder / "trainer_log.jsonl")
    if process.returncode:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise SystemExit(
            f"training {name} failed with exit code {process.returncode}; the whole log: {log}"
        )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    rows = sum(1 for _ in (output / "data" / f"{dataset}.jsonl").open())
    print()
    return Run(
        name, folder, rows, int(steps[-1]["num_input_tokens_seen"]), [s["loss"] for s in steps]
    )


def show_progress(log: Path) -> None:
    """Print the last line of LLaMA-Factory's own progress file."""
    lines = log.read_text().splitlines() if log.exists() else []
    if lines and sys.stderr.isatty():
        last = json.loads(lines[-1])
        print(
            f"\r  step {last['current_steps']}/{last['total_steps']}  loss {last.get('loss')} ",
            end="",
            file=sys.stderr,
        )


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw the loss curves into one PNG, with the numbers beside it as CSV."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for run in runs:
        axes.plot(range(1, len(run.losses) + 1), run.losses, label=run.name.upper())
    axes.set(xlabel="step", ylabel="training loss", title="Training loss, tiny model")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    with path.with_suffix(".csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", *(run.name for run in runs)])
        writer.writerows(
            [step, *losses]
            for step, losses in enumerate(zip(*(run.losses for run in runs), strict=True), start=1)
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo_output"), help="folder for everything it makes"
    )
    output: Path = parser.parse_args(argv).output.resolve()
    started = time.monotonic()
    for name in ("model", "data", "cache", "sft", "aft", "merged"):
        shutil.rmtree(output / name, ignore_errors=True)
    for old in output.glob("answers.*"):
        old.unlink()
    (output / "data").mkdir(parents=True)

    print("1. A tiny Llama of random weights, and a BPE tokenizer trained on the demo's own texts")
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    texts = [text for row in rows for text in (row["query"], row["aggregation"])]
    from transformers.utils import logging

    logging.disable_progress_bar()
    make_tiny_model("llama3", output / "model", texts, hidden=128, context=4096)

    print(f"\n2. Convert {TRAINING_ROWS} real rows: query, four proposals, aggregation")
    source = [
        "proposals",
        str(ROWS),
        "--limit",
        str(TRAINING_ROWS),
        "--register",
        str(output / "data"),
    ]
    fit = ["--tokenizer", str(output / "model"), "--cutoff-len", str(CUTOFF)]
    for target, name in (("sft", "demo_sft"), ("aggregation", "demo_aft")):
        arguments = [
            *source,
            *fit,
            "--target",
            target,
            "--output",
            str(output / "data" / f"{name}.jsonl"),
        ]
        print(f"$ python -m aft_factory.convert {' '.join(arguments)}")
        if convert([*arguments, "--overwrite", "--quiet"]):
            return 1

    print(
        "\n3. Train both with LLaMA-Factory (LoRA): the same queries and targets, "
        "without and with proposals"
    )
    runs = [train("sft", "demo_sft", output), train("aft", "demo_aft", output)]

    plot(runs, output / "loss.png")
    print(f"\n{'run':<5}{'rows':>6}{'tokens':>10}{'first loss':>12}{'last loss':>11}   adapter")
    for run in runs:
        print(
            f"{run.name.upper():<5}{run.rows:>6}{run.tokens:>10}"
            f"{run.losses[0]:>12.3f}{run.losses[-1]:>11.3f}   {run.folder}"
        )
    print(f"loss curves: {output / 'loss.png'} (numbers: loss.csv)")

    print(f"\n4. Propose-and-aggregate with vLLM on {QUESTIONS} held-out questions: K=3, L=2")
    held_out = output / "data" / "held_out.jsonl"
    questions = rows[TRAINING_ROWS : TRAINING_ROWS + QUESTIONS]
    held_out.write_text("".join(json.dumps({"query": row["query"]}) + "\n" for row in questions))
    merged = merge(output / "model", output / "aft", output)
    show(answer(merged, held_out, output))

    print("\n5. The same model behind our server, asked one question as any client of OpenAI's API")
    serve(merged, questions[0]["query"], output)
    print(f"\n{time.monotonic() - started:.0f} s in all")
    print(
        "The model is tiny and its weights started at random: "
        "what it writes is not meant to be good."
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    raise SystemExit(main())

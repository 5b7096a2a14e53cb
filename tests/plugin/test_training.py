"""Real trainings by `llamafactory-cli` on tiny models. Run: pytest tests/plugin/test_training.py"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import demo_rows
from llamafactory_tools import write_dataset

from aft_factory.plugin.trained import serving_with
from aft_factory.prompts.prelude import made_by
from aft_factory.prompts.tokenizer import resolve_chat_template

pytestmark = pytest.mark.slow

CLI = str(Path(sys.executable).parent / "llamafactory-cli")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts torchrun by its name


def cli(folder: Path, command: str, config: dict, **environment) -> str:
    """Run one llamafactory-cli command with a YAML (JSON is YAML) and return its output."""
    path = write_config(folder, command, config)
    done = subprocess.run(
        [CLI, command, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "PATH": PATH} | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def write_config(folder: Path, command: str, config: dict) -> Path:
    path = folder / f"{command}.yaml"
    path.write_text(json.dumps(config))
    return path


def quick_cli(ready, folder: Path, command: str, config: dict) -> str:
    """Do the same in a process that has imported LLaMA-Factory."""
    path = write_config(folder, command, config)
    code, said = ready.run("llamafactory.cli", [command, path], folder / f"{command}.log")
    assert code == 0, said[-4000:]
    return said


def settings(folder: Path, model: Path, dataset: str, **options) -> dict:
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset_dir": str(folder),
        "dataset": dataset,
        "template": "aft_llama3",
        "cutoff_len": 1024,
        "output_dir": str(folder / "adapter"),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    } | options


def losses(folder: Path) -> list[float]:
    lines = (folder / "adapter" / "trainer_log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_llama):
    """A training on records by two ranks, with preprocessing workers: (folder, output)."""
    folder = tmp_path_factory.mktemp("training")
    write_dataset(folder, "drafts", demo_rows()[:24])
    more = {"preprocessing_num_workers": 2, "ddp_timeout": 600, "cutoff_len": 512}
    config = settings(folder, tiny_llama, "drafts", **more)
    return folder, cli(folder, "train", config, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")


def test_an_adapter_trains_on_two_ranks_under_torchrun_with_preprocessing_workers(training):
    folder, output = training
    assert len(losses(folder)) == 12
    assert losses(folder)[-1] < losses(folder)[0]
    assert "num_proc=2" in output
    assert output.count("aft-factory: shortened") == 1  # however many ranks and workers


def test_the_merged_model_carries_our_chat_template(training, tiny_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, output = training
    merged = folder / "adapter_merged"
    # By the command that the training told, once, at its end.
    told = output.partition(f"aft-factory: trained {folder / 'adapter'}; next:\n")[2].splitlines()
    assert output.count("; next:\n") == 1
    assert told[1:3] == [
        f"  {shlex.join(serving_with(str(merged)))}",
        f"  aft run queries.jsonl --output answers.jsonl --tokenizer {merged} "
        "--base-url http://localhost:8000/v1",
    ]
    _, *words = shlex.split(told[0])
    assert words[words.index("--template") + 1] == "aft_llama3"
    subprocess.run([CLI, *words], check=True, capture_output=True, timeout=600)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    # The very text that the training saved; it breaks the markers of this very tokenizer.
    saved = (folder / "adapter" / "chat_template.jinja").read_text(encoding="utf-8")
    assert tokenizer.chat_template == resolve_chat_template("auto", tokenizer) == saved
    assert made_by(saved) == "aft_llama3"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], proposals=["a", "b"], tokenize=False
    )
    assert "Responses from models:\n1. a\n2. b<|eot_id|>" in text
    assert AutoModelForCausalLM.from_pretrained(merged).num_parameters() > 0


def test_the_sft_baseline_trains(tmp_path, tiny_llama, ready_llamafactory):
    rows = [
        {
            "conversations": [
                {"from": "human", "value": row["query"]},
                {"from": "gpt", "value": row["reference"]},
            ]
        }
        for row in demo_rows()[:24]
    ]
    write_dataset(tmp_path, "baseline", rows, formatting="sharegpt")
    config = settings(tmp_path, tiny_llama, "baseline", template="llama3")
    output = quick_cli(ready_llamafactory, tmp_path, "train", config)
    assert "aft-factory: trained" not in output  # it is no aggregation data
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]

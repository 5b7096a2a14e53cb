"""What tests need of the real LLaMA-Factory: its own loading and tokenizing, in process."""

import json
from pathlib import Path


def write_dataset(folder: Path, name: str, rows: list[dict], **entry) -> None:
    """Write rows as JSON Lines and add an entry to the folder's dataset_info.json."""
    (folder / f"{name}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    info = folder / "dataset_info.json"
    entries = json.loads(info.read_text()) if info.exists() else {}
    entries[name] = {"file_name": f"{name}.jsonl", "formatting": "aggregation"} | entry
    info.write_text(json.dumps(entries))


def tokenize(
    folder: Path, dataset: str, model: Path, *, template="aft_llama3", cutoff_len=100_000, **options
):
    """Return LLaMA-Factory's tokenizer and its rows of input_ids and labels for training."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, *_ = get_train_args(
        {
            "model_name_or_path": str(model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "dataset_dir": str(folder),
            "dataset": dataset,
            "template": template,
            "cutoff_len": cutoff_len,
            "output_dir": str(folder / "out"),
            "report_to": "none",
            "use_cpu": True,
            **options,
        }
    )
    module = load_tokenizer(model_args)
    chat = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    stage = options.get("stage", "sft")
    data = get_dataset(chat, model_args, data_args, training_args, stage=stage, **module)
    return module["tokenizer"], list(data["train_dataset"])


def prompt_ids(row: dict) -> list[int]:
    """The part of a tokenized row that is not trained on."""
    return [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100
    ]


def trained_ids(row: dict) -> list[int]:
    """The part of a tokenized row that is trained on."""
    return [label for label in row["labels"] if label != -100]

"""Rows as LLaMA-Factory trains on them: its own loading and tokenizing, our plugin in it.

Nothing is tokenized here. The rows drawn of each training set are written to a folder of their own,
with the set's own entry of dataset_info.json, and read from there as a training would.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from aft_factory.engines.target_loss import Row
from aft_factory.errors import RecordError, UsageError, needing, suggest
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.columns import Columns
from aft_factory.records.files import read_text
from aft_factory.records.record import content_id, record_from_row
from aft_factory.records.tables import read_rows

INFO = "dataset_info.json"
VERBOSITY = "LLAMAFACTORY_VERBOSITY"


def entry_of(data: str, folder: Path | None, ablation: str | None) -> dict[str, Any]:
    """Return the entry of a training set: one of the folder's, or that of a file of records.

    Raises:
        UsageError: If it is neither, or the ablation is of another format.
    """
    entries: Mapping[str, Any] = {}
    if folder is not None:
        try:
            entries = json.loads(read_text(folder / INFO))
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder / INFO}: cannot be read: {error}") from None
    if data in entries:
        entry = dict(entries[data])
        if folder is None or "file_name" not in entry:
            raise UsageError(f"{data}: expected an entry with file_name; name the file itself")
        entry["file_name"] = str((folder / entry["file_name"]).absolute())
    elif Path(data).exists():
        entry = {"file_name": str(Path(data).absolute()), "formatting": "aggregation"}
    else:
        known = f"; {suggest(data, entries)}" if entries else "; --dataset-dir names one of sets"
        raise UsageError(f"{data}: no such file and no such training set{known}")
    if ablation is not None:
        if entry.get("formatting") != "aggregation":
            raise UsageError(f"ablation: {data} is not of the formatting `aggregation`")
        entry["aggregation"] = {**entry.get("aggregation", {}), "ablation": ablation}
    return entry


def drawn(entry: Mapping[str, Any], count: int) -> list[Any]:
    """Return rows of a training set, drawn by their ids: the same queries of sets of equal ids.

    Raises:
        UsageError: If there is none, or a line is no row, at which a training would end.
    """
    columns = Columns.from_mapping(dict(entry.get("columns") or {})) if _is_ours(entry) else None

    def keyed() -> Iterator[tuple[bytes, int, Any]]:
        for number, line in enumerate(read_rows(entry["file_name"])):
            if line.problem is not None:
                raise UsageError(f"{line.place}: {line.problem}")
            yield _key(line.value, columns), number, line.value

    chosen = heapq.nsmallest(count, keyed(), key=lambda one: one[:2]) if count else list(keyed())
    if not chosen:
        raise UsageError(f"{entry['file_name']}: no rows")
    return [value for _, _, value in sorted(chosen, key=lambda one: one[1])]


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return entry.get("formatting") == "aggregation"


def _key(row: Any, columns: Columns | None) -> bytes:
    name = str(row.get("id") or "") if isinstance(row, dict) else ""
    if not name:
        try:
            record = record_from_row(row, columns) if columns else record_from_row(row)
            name = content_id(record.messages, [])
        except RecordError:  # such as a layout of its own
            name = orjson.dumps(row, default=str).decode()
    return hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()


def encoded(
    sets: Mapping[str, tuple[Mapping[str, Any], list[Any]]],
    *,
    model: Pretrained,
    template: str,
    cutoff_len: int,
) -> dict[str, list[Row]]:
    """Return the ids and labels of training sets, as LLaMA-Factory makes them.

    Args:
        sets: By name, the entry of dataset_info.json and the rows.
        model: Whose tokenizer it takes, and how it is loaded.
        template: LLaMA-Factory's name of the chat template.
        cutoff_len: Most tokens of a row.

    Raises:
        MissingPackage: If LLaMA-Factory is not installed.
        UsageError: If it cannot read or tokenize a set.
    """
    from aft_factory.plugin.autoload import install

    install()
    found = {}
    with tempfile.TemporaryDirectory() as place, _set_aside(Path(place)):
        for number, (name, (entry, rows)) in enumerate(sets.items()):
            folder = Path(place) / str(number)
            folder.mkdir()
            lines = b"".join(orjson.dumps(row, default=str) + b"\n" for row in rows)
            (folder / "rows.jsonl").write_bytes(lines)
            info = {"rows": {**entry, "file_name": "rows.jsonl"}}
            (folder / INFO).write_text(json.dumps(info), encoding="utf-8")
            arguments = {
                "model_name_or_path": model.name,
                "model_revision": model.options.get("revision") or "main",
                "trust_remote_code": bool(model.options.get("trust_remote_code")),
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "lora",
                "dataset_dir": str(folder),
                "dataset": "rows",
                "template": template,
                "cutoff_len": cutoff_len,
                "output_dir": str(folder / "out"),
                "report_to": "none",
                "use_cpu": True,
            }
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it shows an example
                    found[name] = _tokenized(arguments)
            except (AttributeError, TypeError):
                raise
            except Exception as error:  # it raises anything for data that it cannot read
                raise UsageError(f"{name}: LLaMA-Factory cannot tokenize it: {error}") from error
            if not any(row.targets for row in found[name]):
                raise UsageError(f"{name}: no row that can be trained on")
    return found


def _tokenized(arguments: dict[str, Any]) -> list[Row]:
    with needing("a perplexity", '"aft-factory[train]"'):
        from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer
    model, data, training, *_ = get_train_args(arguments)
    module = load_tokenizer(model)
    chat = get_template_and_fix_tokenizer(module["tokenizer"], data)
    rows = get_dataset(chat, model, data, training, stage="sft", **module)["train_dataset"]
    return [Row(row["input_ids"], row["labels"]) for row in rows]


@contextlib.contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Have LLaMA-Factory warn only, and `datasets` cache there rows that were drawn for this alone.

    Both are as before afterwards: a training that this process starts tells its steps.
    """
    with needing("a perplexity", '"aft-factory[train]"'):
        import datasets
    cache = datasets.config.HF_DATASETS_CACHE
    verbosity = os.environ.get(VERBOSITY)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    os.environ.setdefault(VERBOSITY, "WARN")
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = cache
        if verbosity is None:
            os.environ.pop(VERBOSITY, None)

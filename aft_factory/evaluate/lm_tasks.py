"""lm-eval's task files: over local data, and which others there are of the same data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.evaluate.benchmarks import BENCHMARKS, Benchmark
from aft_factory.records.record import Row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import read_rows


def localised(benchmark: Benchmark, manager: Any, data: str, folder: Path) -> Path:
    """Write task files that are lm-eval's, but read a local copy of their data.

    Args:
        benchmark: Which.
        manager: Knows lm-eval's own files.
        data: The copy: one row a question, with the columns of the original.
        folder: Where to write.

    Raises:
        UsageError: If the rows do not tell which of several tasks they belong to.
    """
    import yaml

    own = manager.task_index
    names = _leaves(benchmark.task, own)
    if len(names) > 1 and benchmark.rows_by is None:
        raise UsageError(f"data: {benchmark.name} is {len(names)} tasks; name one of them")
    by = {str(config_of(own, name).get("dataset_name")): name for name in names}
    split = _scored(config_of(own, names[0]))
    rows: dict[str, list[Row]] = defaultdict(list)
    for line in read_rows(data, split=split):
        if line.problem is not None or not isinstance(line.value, dict):
            raise UsageError(f"{line.place}: {line.problem or 'expected an object'}")
        name = names[0]
        if benchmark.rows_by is not None:
            part = str(line.value.get(benchmark.rows_by))
            if part not in by:
                raise UsageError(
                    f"{line.place}: {benchmark.rows_by}: expected one of "
                    f"{', '.join(sorted(by)[:3])}, ..., got {part!r}"
                )
            name = by[part]
        rows[name].append(line.value)
    if not rows:
        raise UsageError(f"{data}: no rows")
    made = folder / "tasks" / benchmark.name
    made.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        copy = made / f"{name}.jsonl"
        with TableWriter(copy, overwrite=True) as table:
            for row in found:
                table.write(row)
        config = config_of(own, name)
        split = _scored(config)
        shown = config.get("num_fewshot")
        if shown and not (config.get("fewshot_config") or {}).get("samples"):
            # lm-eval would take them from the questions themselves, answers and all
            raise UsageError(
                f"data: {name} shows {shown} examples of a split that a local copy has not; leave "
                "--data out, or write a task file of your own (--include)"
            )
        local = {
            "include": str(own[name].yaml_path),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(copy.absolute())}},
            # of other splits there is no copy
            **{key: None for key in _SPLITS if config.get(key) not in (None, split)},
        }
        (made / f"{name}.yaml").write_text(yaml.safe_dump(local), encoding="utf-8")
    if 1 < len(names) != len(rows):  # a group of those that have rows
        group = {"include": str(own[benchmark.task].yaml_path), "task": list(rows)}
        (made / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return made


def is_one(name: str, index: Any) -> bool:
    """Tell whether a task is there that needs no other: neither a group nor a tag."""
    entry = index.get(name)
    return (
        entry is not None
        and entry.yaml_path is not None
        and not isinstance(config_of(index, name).get("task"), list)
    )


def _scored(config: Mapping[str, Any]) -> str:
    """Return the split that a task asks about."""
    return str(config.get("test_split") or config.get("validation_split"))


def shows_the_questions(config: Any) -> bool:
    """Tell whether the examples of a task are drawn from what it asks, the question itself too.

    Without a split for them lm-eval takes the first that there is, and leaves the question out only
    where the file says that they are of the test split.
    """
    own = config.fewshot_config
    given = own is not None and (getattr(own, "samples", None) or getattr(own, "split", None))
    if not config.num_fewshot or config.fewshot_split or given:
        return False
    asked = config.test_split or config.validation_split
    return bool((config.training_split or config.validation_split or config.test_split) == asked)


_SPLITS = ("training_split", "validation_split", "fewshot_split")


def near(name: str, manager: Any) -> str:
    """Return the generative tasks of the data that a task is about, ours first."""
    index = manager.task_index
    config = config_of(index, name)
    first = name.split("_")[0]
    ours = [own for own in BENCHMARKS if own.split("_")[0] == first]
    same = [
        other
        for other, entry in index.items()
        if other.startswith(first)
        and entry.yaml_path is not None
        and "task" in (found := config_of(index, other))
        and found.get("output_type") == "generate_until"
        and found.get("dataset_path") == config.get("dataset_path")
    ]
    return ", ".join([*ours, *sorted(same, key=len)][:3])


def config_of(index: Any, name: str) -> dict[str, Any]:
    """Return what the file of a task says."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, Any] = load_yaml(index[name].yaml_path, resolve_func=False)
    return found


def _leaves(name: str, index: Any) -> list[str]:
    """Return the tasks of a group or a tag, or the task itself."""
    entry = index[name]
    if entry.tags and entry.yaml_path is None:
        return [leaf for tag in sorted(entry.tags) for leaf in _leaves(tag, index)]
    task = config_of(index, name).get("task")
    if isinstance(task, list):
        return [leaf for one in task for leaf in _leaves(one, index)]
    return [name]

"""The steps of a pipeline, from its file, each checked by what its own command declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.pipeline.step import COMMANDS, Step
from aft_factory.pipeline.training import TrainStep
from aft_factory.stage.declaring import declared
from aft_factory.stage.yaml_file import read_yaml

KEYS = ("folder", "allow_failed", "stages")
STAGES = (*COMMANDS, "train")
MISPLACED = "allow_failed holds for all stages; put it at the top of the file, beside `stages`"


def read_pipeline(path: Path) -> list[Step]:
    """Read the steps of a file.

    Raises:
        UsageError: With everything that is wrong with it.
    """
    content = read_yaml(path)
    problems = [f"unknown key {key!r}; {suggest(key, KEYS)}" for key in content if key not in KEYS]
    folder = content.get("folder", ".")
    if not isinstance(folder, str):
        problems.append(f"folder: expected a path, got {folder!r}")
        folder = "."
    allowed = content.get("allow_failed", 0.0)
    if type(allowed) not in (int, float) or not 0 <= allowed <= 1:
        problems.append(f"allow_failed: expected a share from 0 to 1, got {allowed!r}")
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        problems.append("stages: expected a list such as `- sample: {input: prompts.jsonl, ...}`")
        stages = []
    steps: list[Step] = []
    before: str | None = None
    for number, entry in enumerate(stages, start=1):
        place = f"stages[{number}]"
        if not isinstance(entry, dict) or len(entry) != 1:
            problems.append(f"{place}: expected one stage and its settings, got {entry!r}")
            continue
        [(stage, settings)] = entry.items()
        if stage not in STAGES:
            problems.append(f"{place}: unknown stage {stage!r}; {suggest(str(stage), STAGES)}")
            continue
        if not isinstance(settings, dict):
            problems.append(f"{place}.{stage}: expected settings, got {settings!r}")
            continue
        if "allow_failed" in settings:
            problems.append(f"{place}.{stage}: {MISPLACED}")
        files = _files_of(stage)
        settings = {"input": before} | {
            key: _inside(folder, value) if key in files else value
            for key, value in settings.items()
            if key != "allow_failed"
        }
        kind = Step if stage in COMMANDS else TrainStep
        step, found = kind(number, stage, settings, allowed).checked()
        problems += [f"{place}.{stage}: {problem}" for problem in found]
        steps.append(step)
        before = settings.get("output", before)
    if not problems:
        problems = _clashes(steps)
    if problems:
        raise UsageError(*(f"{path}: {problem}" for problem in dict.fromkeys(problems)))
    return steps


def _files_of(stage: str) -> set[str]:
    """Return the settings of a stage that name files a pipeline moves rows through."""
    kinds = COMMANDS[stage].kinds if stage in COMMANDS else ()
    return {"input", *(name for name, one in declared(*kinds).items() if one.writes)}


def _inside(folder: str, value: Any) -> Any:
    """A bare file name stands for a file in the pipeline's folder."""
    bare = isinstance(value, str) and Path(value).name == value
    return str(Path(folder) / value) if bare else value


def _clashes(steps: list[Step]) -> list[str]:
    """Tell which steps would write one file, so that neither could be kept."""
    problems = []
    writers: dict[str, Step] = {}
    for step in steps:
        clashes = []
        for place, name in step.leaves.places().items():
            other = writers.setdefault(place, step)
            if other is not step:
                clashes.append(
                    f"{step.place}: {name} is written by {other.place} already; name another file"
                )
        problems += clashes[:1]  # another name for this one is another for those beside it
    return problems


def check_ready(steps: list[Step]) -> None:
    """Check that what no step makes is there, before the first one starts.

    Raises:
        UsageError: With everything that is missing.
    """
    problems = []
    made: set[Path] = set()
    for step in steps:
        if (missing := step.missing(made)) is not None:
            problems.append(f"{step.place}: {missing}")
        made |= {path.resolve() for path in (*step.leaves.outputs, *step.leaves.traces)}
    if problems:
        raise UsageError(*problems)

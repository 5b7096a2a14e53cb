"""The steps of a pipeline, from its file, each checked by its own command's parser."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aft_factory.aggregate import __main__ as aggregate
from aft_factory.aggregate.aggregating import DEFAULT_MODEL, AggregateSettings
from aft_factory.convert import arguments as convert
from aft_factory.convert.__main__ import build_conversion
from aft_factory.errors import UsageError, suggest
from aft_factory.pipeline.flags import to_flags
from aft_factory.rank import __main__ as rank
from aft_factory.rank.ranking import RankSettings
from aft_factory.records.rejects import rejects_path
from aft_factory.records.tables import read_rows
from aft_factory.run import __main__ as run
from aft_factory.sample import __main__ as sample
from aft_factory.sample.drawing import SampleSettings
from aft_factory.stage.command_line import read_settings
from aft_factory.stage.declaring import read_yaml
from aft_factory.stage.output import summary_path
from aft_factory.stats import __main__ as stats

WRITES = ("output", "rejects", "journal", "task_output", "json", "plot")
KEYS = ("folder", "allow_failed", "stages")
CLI = "llamafactory-cli"


@dataclass(frozen=True, slots=True)
class Command:
    """How a stage's command reads its arguments.

    Attributes:
        build_parser: Returns its parser.
        read: From parsed arguments to settings; raises UsageError with all that is wrong.
    """

    build_parser: Callable[[], argparse.ArgumentParser]
    read: Callable[[argparse.Namespace], Any]


def _convert_settings(args: argparse.Namespace) -> argparse.Namespace:
    convert.check_arguments(args)
    build_conversion(without_tokenizer(args))
    return args


def without_tokenizer(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of a conversion that loads nothing and fits nothing."""
    return argparse.Namespace(**(vars(args) | {"tokenizer": None, "cutoff_len": None}))


# Which model aggregates by default, its command decides; here it only has to be one.
_AGGREGATOR = [("defaults", {"model": DEFAULT_MODEL})]
ASKING = {
    "sample": Command(sample.build_parser, lambda a: read_settings(a, SampleSettings)),
    "rank": Command(rank.build_parser, lambda a: read_settings(a, RankSettings)),
    "aggregate": Command(
        aggregate.build_parser,
        lambda a: read_settings(a, AggregateSettings, _AGGREGATOR),
    ),
    "run": Command(run.build_parser, run.run_settings),
}
COMMANDS = {
    "convert": Command(convert.build_parser, _convert_settings),
    **ASKING,
    "stats": Command(stats.build_parser, lambda args: args),
}
STAGES = (*COMMANDS, "train")


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a pipeline.

    Attributes:
        number: From 1.
        stage: Its name.
        settings: As in the file, but with paths resolved and `input` filled in.
        flags: That say the settings to its command.
        read: What the command reads from them: its settings or arguments, defaults included; of
            `train`, the content of LLaMA-Factory's file.
        allow_failed: The pipeline's: which share of the rows may be without an answer as the engine
            failed, and the next stage still begins.
    """

    number: int
    stage: str
    settings: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    read: Any = field(default=None, compare=False)
    allow_failed: float = 0.0

    @property
    def input(self) -> str:
        """What it reads."""
        return str(self.settings["input"])

    @property
    def outputs(self) -> list[Path]:
        """What it writes, the main one first; nothing where it only prints."""
        if self.stage == "train":
            return [Path(self.read["output_dir"])]
        names = ("output", "task_output", "json", "plot")
        return [Path(self.settings[name]) for name in names if name in self.settings]

    @property
    def traces(self) -> list[Path]:
        """What it leaves beside its outputs: rejects, summary and journal."""
        if self.stage not in ("convert", *ASKING) or "output" not in self.settings:
            return []
        output = self.outputs[0]
        defaults = {"rejects": rejects_path(output)}
        if self.stage in ASKING:
            defaults |= {"journal": Path(f"{output}.journal"), "": summary_path(output)}
        return [Path(self.settings.get(name) or path) for name, path in defaults.items()]

    def reading(self, source: Path) -> Step:
        """Return the same step with another input."""
        return replace(self, settings={**self.settings, "input": str(source)})

    def command(self, *more: str) -> list[str]:
        """Return the command that does it."""
        if self.stage == "train":
            beside = Path(sys.executable).with_name(CLI)
            program = str(beside) if beside.exists() else CLI
            return [program, "train", self.settings["config"], *more]
        layout = [self.settings.get("source", "proposals")] if self.stage == "convert" else []
        arguments = [*layout, self.input, *self.flags, *more]
        return [sys.executable, "-m", f"aft_factory.{self.stage}", *arguments]

    def __str__(self) -> str:
        """Its command, for a person to read or to run."""
        program = CLI if self.stage == "train" else "python"
        return shlex.join([program, *self.command()[1:]])


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
        settings = {"input": before} | {
            key: _inside(folder, value) if key in ("input", *WRITES) else value
            for key, value in settings.items()
        }
        step, found = _checked(Step(number, stage, settings, allow_failed=allowed))
        problems += [f"{place}.{stage}: {problem}" for problem in found]
        steps.append(step)
        if stage != "train":
            before = settings.get("output", before)
    if not problems:
        problems = _clashes(steps)
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in dict.fromkeys(problems)))
    return steps


def _inside(folder: str, value: Any) -> Any:
    """A bare file name stands for a file in the pipeline's folder."""
    bare = isinstance(value, str) and Path(value).name == value
    return str(Path(folder) / value) if bare else value


def _checked(step: Step) -> tuple[Step, list[str]]:
    """Return a step with its flags, and all that is wrong with it."""
    if step.stage == "train":
        return _checked_training(step)
    problems = []
    settings = {key: value for key, value in step.settings.items() if key != "input"}
    source = step.settings["input"]
    if not isinstance(source, str):
        problems.append("input is missing" if source is None else f"input: got {source!r}")
        source = "missing"
    if "output" not in settings and step.stage != "stats":
        problems.append("output is missing")
        settings = {"output": "missing.jsonl"} | settings
    positionals = [source]
    if step.stage == "convert":
        layout = settings.pop("source", "proposals")
        if layout not in convert.SOURCES:
            problems.append(f"source: unknown {layout!r}; {suggest(str(layout), convert.SOURCES)}")
            layout = "proposals"
        positionals = [layout, source]
    command = COMMANDS[step.stage]
    flags, wrong = to_flags(command.build_parser(), positionals, settings)
    problems += wrong
    read: Any = None
    try:
        read = command.read(command.build_parser().parse_args([*positionals, *flags]))
    except UsageError as error:
        problems += [] if wrong else str(error).splitlines()  # or it may miss what is left out
    problems += [
        f"{key}: cannot be emptied here; take it out of {settings.get('config')}"
        for key, value in settings.items()
        if value in ([], {}) and getattr(read, key, None)
    ]
    return replace(step, flags=tuple(flags), read=read), problems


def _checked_training(step: Step) -> tuple[Step, list[str]]:
    known = ("config", "input")
    problems = [f"unknown key {k!r}; {suggest(k, known)}" for k in step.settings if k not in known]
    config = step.settings.get("config")
    if not isinstance(config, str):
        return step, [*problems, "config is missing: a YAML file of LLaMA-Factory's"]
    try:
        training = read_yaml(Path(config))
    except UsageError as error:
        return step, [*problems, str(error)]
    if not isinstance(training.get("output_dir"), str):
        problems.append(f"{config}: output_dir is missing; a folder for what is trained")
    return replace(step, read=training), problems


def _clashes(steps: list[Step]) -> list[str]:
    """Tell which steps would write one file, so that neither could be kept."""
    problems = []
    writers: dict[Path, Step] = {}
    for step in steps:
        clashes = []
        for path in (*step.outputs, *step.traces):
            other = writers.setdefault(path.resolve(), step)
            if other is not step:
                clashes.append(
                    f"stages[{step.number}].{step.stage}: {path} is written by "
                    f"stages[{other.number}].{other.stage} already; name another file"
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
        place = f"stages[{step.number}].{step.stage}"
        if step.stage == "train":
            if shutil.which(step.command()[0]) is None:
                problems.append(f"{place}: needs {CLI}; install it with: pip install llamafactory")
            continue
        if Path(step.input).resolve() not in made:
            try:
                read_rows(step.input)
            except UsageError as error:
                problems.append(f"{place}: input {error}")
        made |= {
            Path(value).resolve()
            for key, value in step.settings.items()
            if key in WRITES and isinstance(value, str)
        }
        made |= {rejects_path(path).resolve() for path in step.outputs[:1]}
    if problems:
        raise UsageError("\n".join(problems))

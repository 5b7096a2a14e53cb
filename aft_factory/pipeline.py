"""`python -m aft_factory.pipeline FILE.yaml`: stages in order, from one file, each resumable.

    folder: data/on_policy          # of all files that are named without one
    stages:
      - sample: {input: prompts.jsonl, output: sampled.jsonl, model: meta-llama/Llama-3.1-8B}
      - rank: {output: ranked.jsonl, top_k: 5}
      - aggregate: {output: aft.jsonl}
      - train: {config: examples/aft_llama.yaml}

A stage reads what the one before it wrote, unless it names its `input`. What is done is not done
again: beside each output stands a file that says which settings and which input it was made from. A
stage that was killed goes on from its journal. Each stage is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from aft_factory.console import guarded
from aft_factory.errors import RecordError, UsageError, suggest
from aft_factory.files import write_whole
from aft_factory.records import Row, record_from_row
from aft_factory.settings import read_yaml
from aft_factory.tables import TableWriter, read_rows

ASKING = ("sample", "rank", "aggregate", "run")  # they tell with --dry-run what they would ask
STAGES = ("convert", *ASKING, "stats", "train")
PATHS = ("input", "output", "rejects", "journal", "task_output", "register", "json", "plot")
EXAMPLES = """\
examples:
  # everything, or what is left of it
  python -m aft_factory.pipeline examples/pipeline_on_policy_llama.yaml

  # which stages, how many requests, how many tokens?
  python -m aft_factory.pipeline examples/pipeline_on_policy_llama.yaml --dry-run
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a pipeline.

    Attributes:
        number: From 1.
        stage: Its name.
        settings: Of the stage, paths resolved, `input` and `output` included.
    """

    number: int
    stage: str
    settings: Mapping[str, Any]

    @property
    def output(self) -> Path | None:
        """What it writes."""
        name = self.settings.get("output")
        return None if name is None else Path(name)

    def command(self, *more: str) -> list[str]:
        """Return the command that does it."""
        settings = dict(self.settings)
        if self.stage == "train":
            beside = Path(sys.executable).with_name("llamafactory-cli")
            program = str(beside) if beside.exists() else "llamafactory-cli"
            return [program, "train", str(settings["config"])]
        head = [sys.executable, "-m", f"aft_factory.{self.stage}"]
        if self.stage == "convert":
            head.append(str(settings.pop("source", "proposals")))
        head.append(str(settings.pop("input")))
        for key, value in settings.items():
            head += _flag(key, value)
        return [*head, *more]


def _flag(key: str, value: Any) -> list[str]:
    name = f"--{key.replace('_', '-')}"
    match value:
        case None | False:
            return []
        case True:
            return [name]
        case list():
            return [name, *map(str, value)]
        case dict():
            pairs = [f"{k}={_scalar(v)}" for k, v in value.items()]
            return [part for pair in pairs for part in (name, pair)]
        case _:
            return [f"{name}={value}"]  # a value may begin with a dash


def _scalar(value: Any) -> str:
    """As YAML, which is how KEY=VALUE is read; JSON is YAML."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def read_pipeline(path: Path) -> list[Step]:
    """Read the steps of a file.

    Raises:
        UsageError: With everything that is wrong with it.
    """
    content = read_yaml(path)
    problems = [
        f"unknown key {key!r}; {suggest(key, ('folder', 'stages'))}"
        for key in content
        if key not in ("folder", "stages")
    ]
    folder = Path(content.get("folder") or ".")
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
        settings = {
            key: _inside(folder, value) if key in PATHS else value
            for key, value in settings.items()
        }
        settings = {"input": before} | settings
        if stage == "train":
            if "config" not in settings:
                problems.append(f"{place}.train: config is missing: a YAML file of LLaMA-Factory's")
        else:
            if settings["input"] is None:
                problems.append(f"{place}.{stage}: input is missing")
            if "output" not in settings and stage != "stats":
                problems.append(f"{place}.{stage}: output is missing")
            before = settings.get("output", before)
        steps.append(Step(number, stage, settings))
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return steps


def _inside(folder: Path, value: Any) -> Any:
    """A bare file name stands for a file in the pipeline's folder."""
    return str(folder / value) if isinstance(value, str) and Path(value).name == value else value


def fingerprint(step: Step) -> str:
    """Name what a step's output is made from: its settings and the state of the files it reads."""
    state = []
    for key in ("input", "config", "model", "adapter", "reward_model"):
        path = Path(str(step.settings.get(key)))
        files = sorted(path.iterdir()) if path.is_dir() else [path] * path.is_file()
        stats = [(file.name, file.stat()) for file in files]
        state.append([key, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])
    data = orjson.dumps([step.stage, dict(step.settings), state], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def marker(step: Step, path: Path) -> Path:
    """Return the file that says what a step's output was made from."""
    if step.output is not None:
        return Path(f"{step.output}.done")
    return path.with_name(f".{path.stem}.{step.number}-{step.stage}.done")


def is_done(step: Step, path: Path) -> bool:
    """Tell whether a step's output is there, made from what would be used now."""
    kept = marker(step, path)
    there = step.output is None or step.output.exists()
    return there and kept.exists() and kept.read_text() == fingerprint(step)


def run_steps(path: Path) -> int:
    """Do what is not done yet; stop at the first stage that fails, with its exit code."""
    steps = read_pipeline(path)
    for step in steps:
        title = f"[{step.number}/{len(steps)}] {step.stage}"
        if is_done(step, path):
            print(f"{title}: done before", flush=True)
            continue
        # The journal keeps what was paid for; only the file written from it is replaced.
        more = ["--overwrite"] if step.stage in ("convert", *ASKING) else []
        print(f"{title}: {shown(step)}", flush=True)
        state = fingerprint(step)
        code = subprocess.run(step.command(*more), check=False).returncode
        if code:
            print(
                f"stopped at stage {step.number}, {step.stage} (exit code {code}); "
                "the same command goes on from here",
                file=sys.stderr,
            )
            return code if code > 0 else 128 - code
        write_whole(marker(step, path), state.encode())
    return 0


def shown(step: Step) -> str:
    """Return a step's command for a person to read or to run."""
    return shlex.join(step.command()).replace(shlex.quote(sys.executable), "python", 1)


def dry_run(path: Path) -> int:
    """Print every stage and what it would ask, on stand-ins for files that are not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        rehearsed: Path | None = None
        for step in read_pipeline(path):
            print(f"\n[{step.number}] {shown(step)}", flush=True)
            if step.stage in ("train", "stats"):
                continue
            source = Path(str(step.settings["input"]))
            if not source.exists() and rehearsed is not None:
                source = rehearsed
                print("    (its input is not there yet: reckoned with one of the same rows)")
            if step.stage in ASKING:
                trial = Step(step.number, step.stage, {**step.settings, "input": str(source)})
                code = subprocess.run(trial.command("--dry-run", "--quiet"), check=False).returncode
                if code:
                    return code
            rehearsed = Path(folder) / f"{step.number}.jsonl"
            with TableWriter(rehearsed) as table:
                for row in stand_ins(step, str(source)):
                    table.write(row)
    return 0


def stand_ins(step: Step, source: str) -> Iterator[Row]:
    """Go through the rows of an input as a stage would leave them, with filler for its texts."""
    settings = step.settings
    filler = "0" * 4 * int(settings.get("draft_tokens", 512))
    for line in read_rows(source):
        try:
            record = record_from_row(line.value)
        except RecordError:
            continue
        row = record.to_row() | {"scores": None, "proposal_models": None}
        if step.stage == "sample":
            row["proposals"] = [filler] * int(settings.get("samples", 10))
        elif step.stage == "rank":
            row["proposals"] = record.proposals[: int(settings.get("top_k", 5))]
        elif step.stage == "aggregate":
            row["aggregation"] = filler
        yield row


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.pipeline",
        description="Run stages in order, from one file; each goes on where it was.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="YAML: folder, and stages with their settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell stages, requests and tokens to expect"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: that of the stage that failed, or 0."""
    args = build_parser().parse_args(argv)
    return guarded(lambda: (dry_run if args.dry_run else run_steps)(args.file), lines=True)


if __name__ == "__main__":
    sys.exit(main())

"""The cells of a reproduction: its steps in order, each a command of ours or a gate between them.

Knows which files each leaves; that they are there is what makes a cell done. All that a seed leaves
is in a folder of its own, pipelines and trainings as files that can be run by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from sums import SPLITS, Row, Sums, make_sets, make_splits
from verdicts import Gate, training_gate, vote_gate

from aft_factory.errors import UsageError, suggest
from aft_factory.evaluate.results import FILE, read_results
from aft_factory.inference.answers import is_correct
from aft_factory.records.files import read_text
from aft_factory.records.replacing import write_whole
from aft_factory.stage.yaml_file import read_yaml

HERE = Path(__file__).parent
SETS = ("aft_on", "aft_off", "pseudo", "without_proposals")
AGGREGATES = ("aft_on", "aft_off")  # what the gate on training is about
TASK = "aft_sums"
TRAINING = {
    "stage": "sft",
    "do_train": True,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "num_train_epochs": 1.0,
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 1,
    "include_num_input_tokens_seen": "non_padding",
    "report_to": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A file such as 135m.yaml, with cells.yaml under it."""

    template: str
    task: dict[str, Any]
    rows: dict[str, int]
    seeds: list[int]
    models: dict[str, dict[str, Any]]
    inferences: dict[str, dict[str, Any]]
    asked: list[str]  # of these, on the test questions
    claims: list[list[str]]
    training: dict[str, Any]
    ask: dict[str, Any]
    cutoff_len: int
    plots: list[str]
    make: list[str] = field(default_factory=list)
    model: str | None = None
    reward: dict[str, Any] = field(default_factory=dict)
    width: int = 5
    margin: float = 0.02  # of the gate on votes
    gates: str = "stop"


def read_scale(path: Path) -> Scale:
    """Read a scale; of the models of cells.yaml it may name those that it has.

    Raises:
        UsageError: With what is wrong with it.
    """
    content = read_yaml(HERE / "cells.yaml") | {}
    for key, value in read_yaml(path).items():
        if key not in Scale.__slots__:
            raise UsageError(f"{path}: unknown key {key!r}; {suggest(key, Scale.__slots__)}")
        if key == "models":
            for name in value:
                if name not in content[key]:
                    raise UsageError(f"{path}: {key}: {name!r}; {suggest(name, content[key])}")
            value = {name: one for name, one in content[key].items() if name in value}
        content[key] = value
    if not content.get("reward"):
        content["asked"] = [name for name in content["asked"] if name != "best_of_5"]
    try:
        scale = Scale(**content)
    except TypeError as error:
        raise UsageError(f"{path}: {error}") from None
    for model, one in scale.models.items():  # in this order they are trained
        needed = {"sft", *(("aft_on", "sft_queries") if "as_many" in one else ())}
        if missing := needed - set(list(scale.models)[: list(scale.models).index(model) + 1]):
            raise UsageError(f"{path}: models: {model} takes {', '.join(sorted(missing))} before")
    return scale


@dataclass(frozen=True, slots=True)
class Cell:
    """A step.

    Attributes:
        name: What it is called.
        command: The program and its arguments, if it is one.
        before: Writes what the command reads.
        is_done: Whether there is nothing to do; a pipeline finds that out by itself.
        gate: What is decided, if it is a gate.
    """

    name: str
    command: Sequence[str] = ()
    before: Callable[[], object] = lambda: None
    is_done: Callable[[], bool] = lambda: False
    gate: Callable[[], Gate] | None = None


def aft(command: str, *arguments: object) -> list[str]:
    """Return a command of ours."""
    return [sys.executable, "-m", f"aft_factory.{command}", *map(str, arguments)]


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of settings."""
    write_whole(path, yaml.safe_dump(dict(content), sort_keys=False).encode())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON Lines."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_rows(path: Path) -> list[Row]:
    """Read JSON Lines."""
    lines = read_text(path).split("\n")  # what a model wrote may hold U+2028, which ends none
    return [json.loads(line) for line in lines if line]


@dataclass(frozen=True, slots=True)
class Chain:
    """All that one seed takes: rows, trainings, gates, evaluations.

    Attributes:
        scale: Which.
        base: The model that all are trained from, a folder or a name.
        folder: Of this seed.
        seed: Of rows, trainings and samples.
    """

    scale: Scale
    base: str
    folder: Path
    seed: int

    def cells(self) -> Iterator[Cell]:
        """Go through its cells."""
        yield Cell(self.name("rows"), before=self.make_rows)
        yield self.pipeline("sft", [self.convert("plain", target="sft")], "sft")
        yield self.evaluation("sft", "plain", "gate")
        yield self.evaluation("sft", "vote_5", "gate")
        yield Cell(self.name("gate: does a vote beat greedy?"), gate=self.vote_gate)
        asked = self.asks("sft") | {"chat": True, "samples": self.scale.width, "temperature": 0.7}
        sample = {"sample": {"input": "more.jsonl", "output": "drafts.jsonl", **asked}}
        yield self.pipeline("drafts", [self.convert("more", target="sft"), sample])
        yield Cell(self.name("sets"), before=self.make_sets)
        for model in self.scale.models:
            if model != "sft":
                without = {"without_proposals": True} if model == "without_proposals" else {}
                own = [self.convert(model, **without)] if model in SETS else []
                yield self.pipeline(model, own, model)
            if model in AGGREGATES:
                yield self.evaluation(model, "aggregate", "gate")
                gate = partial(self.training_gate, model)
                yield Cell(self.name(f"gate: has {model} learned to aggregate?"), gate=gate)
        for model in self.scale.models:
            for inference in self.scale.asked:
                yield self.evaluation(model, inference)

    def name(self, what: str) -> str:
        """Return the name of a cell."""
        return f"seed {self.seed}: {what}"

    def make_rows(self) -> None:
        """Write the questions of all splits."""
        splits = make_splits(Sums(**self.scale.task), self.scale.rows, self.seed)
        for split in SPLITS:
            write_rows(self.folder / f"{split}.jsonl", splits[split])

    def make_sets(self) -> None:
        """Write the rows that are to teach aggregation."""
        questions, drafted = (
            read_rows(self.folder / f"{name}.jsonl") for name in ("more", "drafts")
        )
        task = Sums(**self.scale.task)
        for name, rows in make_sets(task, questions, drafted, self.scale.width, self.seed).items():
            write_rows(self.folder / f"{name}.jsonl", rows)

    def convert(self, name: str, **more: Any) -> dict[str, Any]:
        """Return the stage that makes a training set of rows."""
        own: dict[str, Any] = {"source": "proposals"}
        own |= {"input": f"{name}.jsonl", "output": f"{name}.train.jsonl"}
        own |= {"register": str(self.folder), "name": name, "tokenizer": self.base}
        return {"convert": own | {"cutoff_len": self.scale.cutoff_len, **more}}

    def pipeline(self, name: str, stages: list[dict[str, Any]], model: str = "") -> Cell:
        """Return the cell that runs stages, and trains a model in the end."""
        path, config = self.folder / f"{name}.pipeline.yaml", self.folder / f"{model}.train.yaml"
        train = [{"train": {"config": str(config)}}] if model else []

        def before() -> None:
            if model:
                write_yaml(config, self.training(model))
            write_yaml(path, {"folder": str(self.folder), "stages": [*stages, *train]})

        what = f"train {model}" if model else "drafts of sft"
        return Cell(self.name(what), aft("pipeline", path), before)

    def training(self, model: str) -> dict[str, Any]:
        """Return the settings of a training."""
        one = self.scale.models[model]
        own: dict[str, Any] = {"model_name_or_path": self.base, "template": self.scale.template}
        own |= {"dataset_dir": str(self.folder), "dataset": ",".join(one["rows"])}
        own |= {"cutoff_len": self.scale.cutoff_len, "output_dir": str(self.folder / model)}
        if (what := one.get("as_many")) is not None:
            own["max_steps"] = self.steps(what)
        return TRAINING | own | {"seed": self.seed} | self.scale.training

    def steps(self, what: str) -> int:
        """Return how many steps on plain rows are as many steps, or tokens, as aft_on took."""
        aft_on, plain = self.state("aft_on"), self.state("sft_queries")
        if what == "steps":
            return int(aft_on["global_step"])
        of_step: float = plain["num_input_tokens_seen"] / plain["global_step"]
        return max(1, round(float(aft_on["num_input_tokens_seen"]) / of_step))

    def state(self, model: str) -> Any:
        """Return what LLaMA-Factory tells of a training."""
        return json.loads(read_text(self.folder / model / "trainer_state.json"))

    def asks(self, model: str) -> dict[str, Any]:
        """Return the settings that name a trained model and how it is asked."""
        if self.scale.ask.get("scripted"):
            return self.scale.ask
        trained = str(self.folder / model)
        if self.scale.training["finetuning_type"] == "lora":
            return self.scale.ask | {"model": self.base, "adapter": trained}
        return self.scale.ask | {"model": trained}

    def place(self, model: str, inference: str, split: str = "test") -> Path:
        """Return the folder of an evaluation."""
        return self.folder / "evals" / f"{'gate-' if split == 'gate' else ''}{model}-{inference}"

    def evaluation(self, model: str, inference: str, split: str = "test") -> Cell:
        """Return the cell of an evaluation; drafts are kept in one journal for all of a model."""
        place = self.place(model, inference, split)
        config = place.with_name(f"{place.name}.yaml")
        settings = dict(self.scale.inferences[inference])
        reward = self.scale.reward if settings.get("strategy") == "best_of_n" else {}
        common = {"include": [str(HERE / "tasks")], "keep_drafts": True, "split_samples": True}
        common |= {"seed": self.seed, "journal": str(place.with_name(f"{split}-{model}.sqlite"))}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        words += ["--data", f"{TASK}={self.folder / split}.jsonl", "--overwrite", "--quiet"]
        return Cell(
            self.name(f"{'gate: ' if split == 'gate' else ''}{model}, {inference}"),
            aft("evaluate", TASK, "--output", place, "--config", config, *words),
            lambda: write_yaml(config, common | self.asks(model) | reward),
            lambda: is_answered(place),
        )

    def right(self, model: str, inference: str, split: str = "test") -> list[float]:
        """Return of each question whether lm-eval found the answer right."""
        where = self.place(model, inference, split) / TASK / f"seed{self.seed}" / "samples.jsonl"
        rows = sorted(read_rows(where), key=lambda row: int(row["doc_id"]))
        return [float(row["exact_match"]) for row in rows]

    def answers(self, model: str, inference: str, split: str = "test") -> list[Row]:
        """Return what was answered, with its drafts."""
        return read_rows(self.place(model, inference, split) / "answers.jsonl")

    def copied(self, model: str, inference: str, split: str = "test") -> float:
        """Return the share of answers that are one of their drafts, word by word."""
        rows = self.answers(model, inference, split)
        same = [row["response"].strip() in [text.strip() for text in drafts(row)] for row in rows]
        return sum(same) / len(same)

    def vote_gate(self) -> Gate:
        """Decide whether there is anything to aggregate."""
        greedy, vote = (self.right("sft", name, "gate") for name in ("plain", "vote_5"))
        return vote_gate(greedy, vote, self.scale.margin)

    def training_gate(self, model: str) -> Gate:
        """Decide whether a model has learned to aggregate."""
        rows = self.answers(model, "aggregate", "gate")
        right = [[is_correct(text, row["answer"]) for text in drafts(row)] for row in rows]
        gate = training_gate(right, [is_correct(row["response"], row["answer"]) for row in rows])
        copied = f"; {self.copied(model, 'aggregate', 'gate'):.0%} of all are one draft, copied"
        return Gate(gate.passed, gate.text + copied)


def drafts(row: Row) -> list[str]:
    """Return the drafts that an answer was made from."""
    return [draft["text"] for layer in row["layers"][:-1] for draft in layer["drafts"]]


def is_answered(place: Path) -> bool:
    """Tell whether an evaluation is there, with every answer; what has none is asked again."""
    return (place / FILE).exists() and not any(
        count for one in read_results(place)["benchmarks"] for count in one["missing"]
    )

"""The settings of `python -m aft_factory.convert`, and what cannot be meant by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aft_factory.convert.register import dataset_entry
from aft_factory.convert.sources import SOURCES
from aft_factory.convert.targets import TARGETS
from aft_factory.prompts.selection import Aggregation
from aft_factory.records import rejects
from aft_factory.stage.declaring import argument, setting, switch, written
from aft_factory.stage.leaves import Entry, Leaves
from aft_factory.stage.reading import AGGREGATOR, FORMATS, INPUTS, ReadSettings, at_least, refused
from aft_factory.stage.shard import shard_path
from aft_factory.stage.tokenizing import TokenizerSettings

# What rows without proposals cannot mean.
OF_PROPOSALS = (
    *("template", "max_proposals", "shuffle_proposals", "min_proposals", "mix_plain"),
    *("without_proposals", "seed"),
)


@dataclass(frozen=True, slots=True)
class ConvertSettings(TokenizerSettings, ReadSettings):
    """What is converted to what; see the help texts."""

    source: str = argument("proposals", "layout of the input rows", choices=SOURCES)
    input: list[str] = argument([], f"what to convert ({INPUTS})", "INPUT")
    output: Path | None = written(f"file to write ({FORMATS}); optional with --preview")
    target: str = setting("aggregation", "what to write", choices=TARGETS)
    template: str = setting("paper", AGGREGATOR)
    max_proposals: int | None = setting(None, "keep the first K proposals of a row", "K")
    shuffle_proposals: bool = switch("shuffle the proposals of each row, by --seed and its id")
    min_proposals: int | None = setting(
        None, "give each row a width of its own, from this to --max-proposals (augmentation)", "K"
    )
    mix_plain: float = setting(
        0.0,
        "write this share of the rows with proposals once more without them, so that plain answers "
        "stay strong (such as 0.2)",
        "SHARE",
    )
    without_proposals: bool = switch(
        "leave all proposals out: query -> aggregation (the paper's ablation)"
    )
    seed: int = setting(42, "of the shuffle")
    truthfulqa: Literal["keep", "drop"] = setting(
        "keep", "rows taken from TruthfulQA (ultrafeedback)"
    )
    tokenizer: str | None = setting(
        None, "measure rows with this tokenizer instead of estimating", "DIR_OR_NAME"
    )
    cutoff_len: int | None = setting(
        None, "shorten proposals so that every row fits N tokens (needs --tokenizer)", "N"
    )
    chat_template: str = setting(
        "auto",
        "to measure with: llama3, mistral, own (the tokenizer's), one of its names or a path",
    )
    rejects: Path | None = written(
        "file for rows that could not be used (default: OUTPUT.rejects.jsonl)"
    )
    register: Path | None = setting(
        None, "add the output to that folder's dataset_info.json", "DATASET_DIR"
    )
    name: str | None = setting(None, "name of the entry (default: the output's name)")
    preview: int = setting(0, "print N rendered conversations", "N")
    overwrite: bool = switch("replace an existing output or entry")
    strict: bool = switch("exit with 1 if any row was rejected")
    quiet: bool = switch("no progress bar")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = ReadSettings.problems(self)
        problems += at_least(self, ("cutoff_len", 1), ("preview", 0))
        if self.output is None and not self.preview:
            problems.append("--output is missing (it is optional only with --preview)")
        problems += self.tokenizer_problems(self.tokenizer)
        if self.cutoff_len is not None and self.tokenizer is None:
            problems.append("--cutoff-len counts tokens; name the --tokenizer to count with")
        problems += [
            f"--{name.replace('_', '-')}: rows of --target sft have no proposals; leave it out"
            for name in OF_PROPOSALS
            if self.target == "sft" and name in self.by_flag and getattr(self, name)
        ]
        if self.shard is not None and self.output and self.output.suffix == ".parquet":
            problems.append(
                f"--output {self.output}: a shard is not written as Parquet, which gives rows back "
                "otherwise; name a .jsonl, `aft merge` writes any format"
            )
        if self.register is not None and self.output is None:
            problems.append("--register needs --output")
        if self.name is not None and self.register is None:
            problems.append("--name names the entry that --register adds; pass both")
        if set(self.column) - {"ignore"} and self.source != "proposals":
            problems.append(
                f"--column: the layouts of {self.source} are known, it takes only ignore=NAME"
            )
        return problems + refused(self.options)

    def options(self) -> Aggregation:
        """Return which proposals are taken, and under which aggregator prompt.

        Raises:
            UsageError: With everything that is wrong with them.
        """
        return Aggregation(
            template=self.template,
            max_proposals=self.max_proposals,
            shuffle_proposals=self.shuffle_proposals,
            seed=self.seed,
            ablation="without_proposals" if self.without_proposals else "none",
            min_proposals=self.min_proposals,
            mix_plain=self.mix_plain,
        )

    @property
    def rejects_path(self) -> Path | None:
        """Where rejects go; nowhere if nothing is written."""
        if self.rejects is not None or self.output is None:
            return self.rejects
        return rejects.rejects_path(self.output)

    @property
    def shard_path(self) -> Path | None:
        """Where a shard leaves what `aft merge` needs beside its rows."""
        return shard_path(self.output) if self.shard is not None and self.output else None

    @property
    def entry(self) -> Entry | None:
        """What is added to `dataset_info.json`, if anything is; never a part of what is merged."""
        if self.register is None or self.output is None or self.shard is not None:
            return None
        name = self.output.stem if self.name is None else self.name
        return dataset_entry(self.register, name, self.output, self.target, self.template)

    def leaves(self) -> Leaves:
        """Tell what a conversion leaves."""
        outputs = [path for path in (self.output,) if path is not None]
        traces = [path for path in (self.rejects_path, self.shard_path) if path is not None]
        return Leaves(outputs, traces, self.entry)

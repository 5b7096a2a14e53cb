"""The settings of `python -m aft_factory.template`, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aft_factory.prompts.selection import PAPER
from aft_factory.stage.declaring import argument, setting, switch, written
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.reading import AGGREGATOR, Settings
from aft_factory.stage.tokenizing import TokenizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSettings(TokenizerSettings, Settings):
    """What is made, and where it goes; see the help texts."""

    source: str | None = argument(
        None,
        "a model's folder or hub name, a .jinja file, or a template of LLaMA-Factory by its name",
        "SOURCE",
    )
    template: str = setting(PAPER.template, AGGREGATOR)
    tokenizer: str | None = setting(
        None, "whose control tokens to break (default: SOURCE's or --write's)", "DIR_OR_NAME"
    )
    thinking: str | None = setting(
        None,
        "whether the model thinks where no request says (`enable_thinking`, `thinking`)",
        choices=("on", "off"),
    )
    write: Path | None = written(
        "write it into a model's folder, which keeps a copy of its files", "DIR"
    )
    undo: bool = switch("put back the files of the folder SOURCE as they were")
    check: bool = switch("judge the chat template of SOURCE as it is; exit code 1 if it fails")
    table: bool = switch(
        "list LLaMA-Factory's templates and what is exact of their twins, in Markdown"
    )
    yaml: bool = switch("print `custom_chat_template: ...`, for LLaMA-Factory's v1 engine")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        ways = [self.write is not None, self.undo, self.check, self.yaml, self.table]
        if sum(ways) > 1:
            return ["--write, --undo, --check, --yaml, --table: give one of them"]
        if (self.source is None) != self.table:
            return ["SOURCE is missing" if self.source is None else "--table takes no SOURCE"]
        if self.undo and not Path(self.source or "").is_dir():
            return [f"--undo: {self.source} is no folder"]
        if self.write is not None and not self.write.is_dir():
            return [f"--write {self.write}: no such folder"]
        return []

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        return Leaves([] if self.write is None else [self.write / "chat_template.jinja"])

"""What a conversion came to: a failure where every row lacks the same, else what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.summary import Summary
from aft_factory.errors import UsageError
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.prompts.selection import PAPER
from aft_factory.records.rejects import Rejects
from aft_factory.stage.following import following, in_pipeline, merging

OTHERS = " (or aft_ before another template)"
MADE_BY = {"sample": "sampled", "aggregate": "aggregated"}


def check_found(settings: ConvertSettings, summary: Summary, rejects: Rejects) -> None:
    """Refuse a file of which no row has proposals, or what it is to be trained on.

    Raises:
        UsageError: Tells the columns of its rows, and how to name the one that is meant.
    """
    if settings.output is None or settings.target == "sft":
        return
    name, source = settings.input[0], settings.source
    bare = 0 < summary.written == summary.bare
    if bare and summary.unread and not settings.without_proposals:
        told = _sentence(summary, "proposals", "proposals")
        raise UsageError(f"{told}, or sample some: {_command('sample', name, settings.column)}")
    if summary.read == rejects.by_field.get("aggregation", (0, ""))[0] > 0:
        told = _sentence(summary, "an aggregation to train on", "aggregation", source=source)
        first = str(settings.output) if source != "proposals" else name
        raise UsageError(f"{told} make them: {_command('aggregate', first, settings.column)}")


def _sentence(summary: Summary, what: str, field: str, *, source: str = "proposals") -> str:
    told = f"none of the {summary.read} rows has {what}"
    if source != "proposals":
        return f"{told}, as {source} has none: convert without --register to records first, then"
    columns = f"the first has the columns: {summary.columns[1]}"
    either = "" if field == "proposals" else ", or"
    return f"{told}; {columns}. Name theirs (--column {field}=NAME){either}"


def _command(name: str, source: str, columns: Mapping[str, str]) -> str:
    made = f"{MADE_BY[name]}.jsonl"
    output = Path(source).with_name(made) if Path(source).suffix else made
    named = [f"--column={field}={column}" for field, column in columns.items()]
    return shlex.join(["aft", name, source, "--output", str(output), *named])


def next_steps(
    settings: ConvertSettings, summary: Summary, chat: str | None, *, merged: bool
) -> list[str]:
    """Return what was made and what comes next, in lines.

    Args:
        settings: Of the conversion.
        summary: What it did.
        chat: The chat template to train with; None where it is none of ours.
        merged: Whether it was done in shards: then no one command registers it.
    """
    output, entry = settings.output, settings.entry
    if output is not None and settings.shard is not None:
        later = (
            [] if settings.register is None else ["a part is not registered, but what is merged"]
        )
        return [*later, *merging(output, settings.shard)]
    if output is None or not summary.written:
        return []
    if entry is not None:
        names = f"dataset_dir: {entry.file.parent}, dataset: {entry.name}"
        kind = "sft" if settings.target == "sft" else "aft"
        registered = f"registered as {entry.name!r} in {entry.file}; train with {names}, template:"
        if chat is None:
            return [f"{registered} {_twin('T', settings.template)}, T being that of your model"]
        template = _twin(chat, settings.template)
        others = "" if settings.tokenizer or settings.chat_template == chat else OTHERS
        return [
            f"{registered} {shlex.quote(template)}{others}",
            *following(
                *("llamafactory-cli", "train", f"examples/{kind}_{chat.rstrip('0123456789')}.yaml"),
                *(f"dataset_dir={entry.file.parent}", f"dataset={entry.name}"),
                f"template={template}",
            ),
        ]
    if summary.bare == summary.written and settings.target != "sft":
        made = output.with_name("sampled.jsonl")
        return following("aft", "sample", output, "--output", made)
    if settings.target == "aggregation" and summary.untrainable:
        made = output.with_name("aggregated.jsonl")
        return [summary.told_untrainable, *following("aft", "aggregate", output, "--output", made)]
    if in_pipeline() or merged:
        return []
    registering = f"--register {shlex.quote(str(output.parent))} --overwrite"
    return [f"next: the same command with {registering} makes it a data set of LLaMA-Factory's"]


def _twin(chat: str, asked: str) -> str:
    """Return the twin of a chat template, which carries the rows' own aggregator prompt."""
    suffix = "" if asked == PAPER.template else f"_{asked}"
    if not (TEMPLATES / "aggregate" / f"{asked}.jinja").is_file():
        suffix = f":{asked}"
    return f"aft_{chat}{suffix}"

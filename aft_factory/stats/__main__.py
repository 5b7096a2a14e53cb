"""The command `python -m aft_factory.stats`: parse, call, print."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import Aggregation
from aft_factory.prompts.tokenizer import resolve_chat_template
from aft_factory.records.replacing import check_writable, replacing, write_report
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.following import following, merging
from aft_factory.stage.plotting import need_matplotlib
from aft_factory.stage.progress import progress_bar
from aft_factory.stage.reading import check_paths
from aft_factory.stage.shard import ShardFile, shard_path
from aft_factory.stats.counts import Counts, ranked, tokens_dict
from aft_factory.stats.plot import write_histogram
from aft_factory.stats.report import CHUNK, TokenCounts, describe
from aft_factory.stats.settings import StatsSettings

EXAMPLES = """\
examples:
  # rows, proposals, estimated lengths, duplicates, scores
  aft stats data/my_aft.jsonl

  # tokens of the rows as they will be trained on, in 1000 of them
  aft stats data/my_aft.jsonl --tokenizer meta-llama/Llama-3.1-8B

  # of every row; all numbers as JSON, and lengths.png, lengths.svg and lengths.csv
  aft stats data/my_aft.jsonl --tokenizer meta-llama/Llama-3.1-8B \\
      --sample 0 --json stats.json --plot lengths.png
"""


def count(settings: StatsSettings) -> int:
    """Count, print the text and write what was asked for; return the exit code."""
    check_paths([settings.input], settings.outputs)
    for _, path in settings.outputs:
        check_writable(path, overwrite=settings.overwrite)
    if settings.plot is not None:
        need_matplotlib("--plot")
    template, tokens = load_template(settings.template), None
    if settings.tokenizer is not None:
        tokenizer = settings.loaded(settings.tokenizer)
        chat = resolve_chat_template(settings.chat_template, tokenizer)
        fitter = Fitter(tokenizer, chat, None, template)
        tokens = TokenCounts(fitter, Aggregation(template=settings.template), settings.sample)
    beside = None
    if settings.shard is not None and settings.json is not None:
        made_by = [template.fingerprint, *([] if tokens is None else [fitter.fingerprint])]
        beside = ShardFile.of(settings.json, settings, [settings.input], made_by)
    counts = Counts(settings.columns(), settings.template)
    with settings.shown([settings.input], "read", quiet=settings.quiet) as lines:
        for line in lines:
            record = counts.read_line(line)
            if tokens is not None and record is not None:
                tokens.add(record)
    if tokens is not None:
        shown = {"unit": f" x {CHUNK} rows", "desc": "tokens"}
        for chunk in progress_bar(tokens.rest(), quiet=settings.quiet, **shown):
            tokens.measure(chunk)
        counts.measured, counts.refused = tokens.lengths, tokens.refused
    return tell(settings, counts, beside)


def tell(settings: StatsSettings, counts: Counts, beside: ShardFile | None = None) -> int:
    """Print what was counted and write what was asked for; return 0, or 1 (no usable row in all).

    Args:
        settings: Of the command.
        counts: Of all rows, or of those of a shard.
        beside: Of a shard whose numbers are written: what it is made from.
    """
    numbers = {"file": settings.input, "shard": settings.shard, **counts.to_dict()}
    lengths = counts.tokens
    if settings.tokenizer is not None:
        lengths, rows = counts.measured, counts.measured.parts["query"].total
        how = "all" if rows == counts.usable else f"{rows} of {counts.usable}"
        numbers["tokens"] = tokens_dict(lengths, f"counted in {how} rows by {settings.tokenizer}")
        numbers["tokens"] |= {"refused": counts.refused.total(), "refusals": ranked(counts.refused)}
    if settings.json is not None:
        with contextlib.ExitStack() as until:
            if beside is not None:
                with replacing(shard_path(settings.json), until) as aside:
                    aside.write_bytes(beside.data(counts.to_json(settings.taken())))
            write_report(settings.json, numbers)
    if settings.plot is not None:
        write_histogram(settings.plot, lengths.parts, numbers["tokens"]["how"])
    show("\n".join([describe(numbers), *next_step(settings, counts, numbers)]))
    return 0 if counts.usable or settings.shard is not None else 1


def next_step(settings: StatsSettings, counts: Counts, numbers: dict[str, Any]) -> list[str]:
    """Return what comes next, by what the rows lack; nothing where their columns are unusual."""
    empty, file = numbers["empty"], settings.input
    if settings.shard is not None:
        of_all = settings.tokenizer is None or not settings.sample  # a sample is not joined
        return merging(settings.json, settings.shard) if settings.json and of_all else []
    if settings.column or not counts.usable:
        return []
    if empty["rows_without_proposals"] == counts.usable:
        return following("aft", "sample", file, "--output", "sampled.jsonl")
    if empty["aggregations"] == counts.usable:
        return following("aft", "aggregate", file, "--output", "aggregated.jsonl")
    words = ("aft", "convert", "proposals", file, "--output", "train.jsonl", "--register", ".")
    return [] if file == "train.jsonl" else following(*words)


COMMAND = PlainCommand(
    name="stats",
    description="Tell what is in a file of records.",
    examples=EXAMPLES,
    settings=StatsSettings,
    do=count,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

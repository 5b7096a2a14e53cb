"""The files of a conversion and its account, where rows are converted or shards are merged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence

from aft_factory.convert.converting import DEFAULT_CUTOFF
from aft_factory.convert.next_steps import check_found, next_steps
from aft_factory.convert.register import check_registration, register
from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.shard import found
from aft_factory.convert.summary import Summary
from aft_factory.records.record import told_beside
from aft_factory.records.rejects import Rejects
from aft_factory.records.replacing import replacing
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.console import show
from aft_factory.stage.reading import check_paths
from aft_factory.stage.shard import ShardFile, shard_path

Fill = Callable[[TableWriter | None, Rejects], Summary]
MOST_KINDS = 10  # of reasons that are shown
AT_RISK = {  # by target: what becomes of rows that are longer than cutoff_len
    "aggregation": "The plugin shortens their proposals to fit. Without it (--target sharegpt) "
    "LLaMA-Factory cuts them, and the query is lost first, unless --tokenizer and --cutoff-len "
    "fit them here.",
    "sharegpt": "LLaMA-Factory cuts them, and the query is lost first. Pass --tokenizer and "
    "--cutoff-len to fit them here, or train by the plugin (--target aggregation), which does.",
    "sft": "LLaMA-Factory cuts them; they have no proposals that could be shortened. Raise "
    "cutoff_len, or leave them out with --tokenizer and --cutoff-len.",
}


def check_files(settings: ConvertSettings, reads: Sequence[str]) -> None:
    """Refuse files that cannot be meant or written, before work starts.

    Args:
        settings: What is written.
        reads: What is read.
    """
    output, entry = settings.output, settings.entry
    writes = [("--output", output), ("--rejects", settings.rejects_path)]
    writes += [("what merging needs", settings.shard_path)]
    check_paths(reads, [*writes, ("--register", None if entry is None else entry.file)])
    if entry is not None and output is not None:
        check_registration(entry, output, overwrite=settings.overwrite)


def write_files(
    settings: ConvertSettings, fill: Fill, chat: str | None, beside: ShardFile | None = None
) -> tuple[Summary, Rejects]:
    """Write output, rejects, and the entry or what merging needs.

    The output appears last: where it is, all is there, and where it is not, the same command is
    given once more. Only of the whole it can be said that it lacks something, so the output of a
    shard is there in any case.

    Args:
        settings: Of the conversion.
        fill: Gives rows and rejects.
        chat: The chat template to train with, where it is known.
        beside: Of a shard: what it is made from.
    """
    output, overwrite = settings.output, settings.overwrite
    with contextlib.ExitStack() as until, contextlib.ExitStack() as stack:
        table = None
        if output is not None:
            table = stack.enter_context(TableWriter(output, overwrite=overwrite))
        replace = overwrite or settings.rejects is None
        rejects = stack.enter_context(
            Rejects(settings.rejects_path, overwrite=replace, until=until)
        )
        if table is not None and beside is not None:
            table.digest = hashlib.blake2b(digest_size=16)
        summary = fill(table, rejects)
        if table is not None and beside is not None:
            with replacing(shard_path(table.path), until) as aside:
                aside.write_bytes(beside.data(found(summary, table, rejects, chat)))
        elif table is not None:
            check_found(settings, summary, rejects)
            if summary.is_empty:  # nothing is to be in the way
                table.withdraw()
            elif settings.entry is not None and summary.written:
                register(settings.entry, table.path)
    return summary, rejects


def tell(
    settings: ConvertSettings,
    summary: Summary,
    rejects: Rejects,
    chat: str | None,
    previews: Sequence[str] = (),
    *,
    merged: bool = False,
) -> int:
    """Print the account; return 0, or 1 (nothing written, or rejects and --strict)."""
    text = [*previews, describe(settings, summary, rejects)]
    text += next_steps(settings, summary, chat, merged=merged)
    with contextlib.suppress(BrokenPipeError):  # the exit code is another matter
        show("\n".join(text))
    lost = settings.strict and summary.rejected
    return 1 if lost or (summary.is_empty and settings.shard is None) else 0


def describe(settings: ConvertSettings, summary: Summary, rejects: Rejects) -> str:
    """Return the summary for a person: counts that reconcile, what was cut, what is at risk."""
    output, notes = settings.output, summary.noted()
    is_left = output and (settings.shard is not None or not summary.is_empty)
    place = f" to {output}" if is_left else ""
    would = "" if output else "would be "
    counts = f"{summary.written} {would}written{place}, {summary.rejected} rejected"
    text = [f"read {summary.read} rows: {counts}"]
    if summary.plain:
        text.append(f"  {summary.plain} rows written once more without proposals (--mix-plain)")
    if summary.rejected:
        text[0] += f" ({rejects.path})" if rejects.path else ""
        ranked = sorted(rejects.by_kind.items(), key=lambda item: -item[1][0])
        shown = ranked[:MOST_KINDS]
        text += [f"  {count} x {name}: {first}" for (name, _), (count, first) in shown]
        if others := summary.rejected - sum(count for _, (count, _) in shown):
            text.append(f"  {others} x other reasons, each with its row among the rejects")
    if notes and summary.rejected:
        text.append("only told, and no reason to reject a row:")
    text += [f"  {count} x {note}" for note, count in notes]
    if summary.beside:
        text.append(told_beside(summary.beside))
    if summary.with_history and settings.target != "aggregation":
        text.append(
            f"warning: {summary.with_history} rows hold earlier answers. Set mask_history: true in "
            "the training's settings, or stock LLaMA-Factory trains on these answers as well"
        )
    if settings.cutoff_len is not None:
        share = summary.tokens_removed / max(summary.tokens_before, 1)
        text.append(
            f"fitted to {settings.cutoff_len} tokens: {summary.cut_proposals} proposals shortened "
            f"in {summary.cut_rows} rows ({summary.tokens_removed} tokens, {share:.1%} of these "
            "rows); no query, instruction or target was cut"
        )
    elif summary.over:
        share = summary.over / summary.written
        how = "measured" if settings.tokenizer else "estimated; --tokenizer measures"
        text.append(
            f"warning: {share:.1%} of rows ({summary.over}) are longer than {DEFAULT_CUTOFF} "
            f"tokens ({how}), LLaMA-Factory's default cutoff_len (examples/ have 4096). "
            f"{AT_RISK[settings.target]}"
        )
    return "\n".join(text)

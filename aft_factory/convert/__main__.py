"""The command `python -m aft_factory.convert`: parse, call, print."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from aft_factory.convert import converting
from aft_factory.convert.converting import Conversion, Summary, build_conversion, rehearse
from aft_factory.convert.next_steps import check_found, next_steps
from aft_factory.convert.register import check_registration, register
from aft_factory.convert.settings import ConvertSettings
from aft_factory.records.record import Record, told_beside
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.reading import check_paths

EXAMPLES = """\
examples:
  # UltraFeedback's own completions as off-policy proposals, from the hub
  aft convert ultrafeedback openbmb/UltraFeedback --output uf.jsonl

  # a training file for LLaMA-Factory with the plugin, every row fitted to 4096 tokens
  aft convert proposals drafts.jsonl --output data/my_aft.jsonl \\
      --tokenizer meta-llama/Llama-3.1-8B --cutoff-len 4096 --register data

  # the same for stock LLaMA-Factory, and a look at two conversations
  aft convert proposals drafts.jsonl --target sharegpt \\
      --output data/my_aft.jsonl --preview 2

  # the SFT baseline: query -> best response
  aft convert ultrafeedback uf.parquet --target sft --output data/my_sft.jsonl
"""
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


def convert(settings: ConvertSettings) -> int:
    """Convert, and print the summary; return 0, or 1 (nothing written, or rejects and --strict)."""
    output, overwrite, entry = settings.output, settings.overwrite, settings.entry
    rejects_path = settings.rejects_path
    writes = [("--output", output), ("--rejects", rejects_path)]
    check_paths(settings.input, [*writes, ("--register", None if entry is None else entry.file)])
    conversion = build_conversion(settings)
    if entry is not None and output is not None:
        check_registration(entry, output, overwrite=overwrite)

    previews: list[str] = []

    def keep_preview(record: Record) -> None:
        if len(previews) < settings.preview:
            previews.append(
                converting.preview(record, settings.target, conversion.options, conversion.markers)
            )

    # The output appears last: where it is, all is there, and where it is not, the same command is
    # given once more.
    with contextlib.ExitStack() as until, contextlib.ExitStack() as stack:
        table = None
        if output is not None:
            table = stack.enter_context(TableWriter(output, overwrite=overwrite))
        replace_rejects = overwrite or settings.rejects is None
        rejects = stack.enter_context(Rejects(rejects_path, overwrite=replace_rejects, until=until))
        reading = settings.shown(settings.input, "convert", quiet=settings.quiet)
        summary = conversion.run(stack.enter_context(reading), table, rejects, keep_preview)
        check_found(settings, conversion, summary, rejects)
        if table is not None and summary.is_empty:  # nothing is to be in the way
            table.withdraw()
        if entry is not None and output is not None and summary.written:
            register(entry, output)
    text = [*previews, describe(summary, conversion, rejects, output)]
    text += next_steps(settings, summary, conversion.fitter)
    with contextlib.suppress(BrokenPipeError):  # the exit code is another matter
        show("\n".join(text))
    lost = settings.strict and summary.rejected
    return 1 if lost or summary.is_empty else 0


def describe(
    summary: Summary, conversion: Conversion, rejects: Rejects, output: Path | None
) -> str:
    """Return the summary for a person: counts that reconcile, what was cut, what is at risk."""
    place = f" to {output}" if output and not summary.is_empty else ""
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
    if summary.notes and summary.rejected:
        text.append("only told, and no reason to reject a row:")
    text += [f"  {count} x {note}" for note, count in summary.notes.most_common()]
    if summary.beside:
        text.append(told_beside(summary.beside))
    if summary.with_history and conversion.target != "aggregation":
        text.append(
            f"warning: {summary.with_history} rows hold earlier answers. Set mask_history: true in "
            "the training's settings, or stock LLaMA-Factory trains on these answers as well"
        )
    fitter, cutoff = conversion.fitter, conversion.cutoff
    if fitter is not None and fitter.limit is not None:
        share = summary.tokens_removed / max(summary.tokens_before, 1)
        text.append(
            f"fitted to {cutoff} tokens: {summary.cut_proposals} proposals shortened in "
            f"{summary.cut_rows} rows ({summary.tokens_removed} tokens, {share:.1%} of these "
            "rows); no query, instruction or target was cut"
        )
    elif summary.over:
        share = summary.over / summary.written
        how = "measured" if fitter else "estimated; --tokenizer measures"
        text.append(
            f"warning: {share:.1%} of rows ({summary.over}) are longer than {cutoff} tokens "
            f"({how}), LLaMA-Factory's default cutoff_len (examples/ have 4096). "
            f"{AT_RISK[conversion.target]}"
        )
    return "\n".join(text)


COMMAND = PlainCommand(
    name="convert",
    description="Turn UltraFeedback, sampled proposals and the like into training files.",
    examples=EXAMPLES,
    settings=ConvertSettings,
    do=convert,
    rehearse=rehearse,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

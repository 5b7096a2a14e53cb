"""The command `python -m aft_factory.convert`: parse, call, print."""

from __future__ import annotations

import sys

from aft_factory.convert.converting import build_conversion, preview, rehearse
from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.shard import begun
from aft_factory.convert.summary import Summary
from aft_factory.convert.writing import check_files, tell, write_files
from aft_factory.records.record import Record
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.command import PlainCommand

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


def convert(settings: ConvertSettings) -> int:
    """Convert, and print the summary; return 0, or 1 (nothing written, or rejects and --strict)."""
    check_files(settings, settings.input)
    conversion = build_conversion(settings)
    chat = conversion.chat(settings.chat_template)
    beside = begun(settings, conversion)
    previews: list[str] = []

    def keep_preview(record: Record) -> None:
        if len(previews) < settings.preview:
            previews.append(preview(record, conversion))

    def fill(table: TableWriter | None, rejects: Rejects) -> Summary:
        with settings.shown(settings.input, "convert", quiet=settings.quiet) as lines:
            return conversion.run(lines, table, rejects, keep_preview)

    return tell(settings, *write_files(settings, fill, chat, beside), chat, previews)


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

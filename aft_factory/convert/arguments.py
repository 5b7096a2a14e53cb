"""The arguments of `python -m aft_factory.convert`: which there are, and what cannot be meant."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from aft_factory.convert.converting import ReadRow
from aft_factory.convert.proposals import read_proposals
from aft_factory.convert.targets import TARGETS
from aft_factory.convert.ultrafeedback import read_ultrafeedback
from aft_factory.errors import UsageError
from aft_factory.records import rejects

SOURCES: dict[str, ReadRow] = {"ultrafeedback": read_ultrafeedback, "proposals": read_proposals}

EXAMPLES = """\
examples:
  # UltraFeedback's own completions as off-policy proposals, from the hub
  python -m aft_factory.convert ultrafeedback openbmb/UltraFeedback --output uf.jsonl

  # a training file for LLaMA-Factory with the plugin, every row fitted to 4096 tokens
  python -m aft_factory.convert proposals drafts.jsonl --output data/my_aft.jsonl \\
      --tokenizer meta-llama/Llama-3.1-8B --cutoff-len 4096 --register data

  # the same for stock LLaMA-Factory, and a look at two conversations
  python -m aft_factory.convert proposals drafts.jsonl --target sharegpt \\
      --output data/my_aft.jsonl --preview 2

  # the SFT baseline: query -> best response
  python -m aft_factory.convert ultrafeedback uf.parquet --target sft --output data/my_sft.jsonl
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags are named as the options they set."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.convert",
        description="Turn UltraFeedback, sampled proposals and the like into training files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", choices=SOURCES, help="layout of the input rows")
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file (.jsonl, .json, .gz, .zst, .parquet), `datasets` folder or hub name",
    )
    add(
        "--output",
        type=Path,
        help="file to write (.jsonl, .json, .gz, .zst, .parquet); optional with --preview",
    )
    add(
        "--target",
        choices=TARGETS,
        default="aggregation",
        help="what to write (default: aggregation)",
    )
    add(
        "--template",
        default="paper",
        help="aggregator prompt: paper, moa, release or the path of a .jinja file",
    )
    add("--max-proposals", type=int, metavar="K", help="keep the first K proposals of a row")
    add(
        "--shuffle-proposals",
        action="store_true",
        help="shuffle the proposals of each row, by --seed and its id",
    )
    add(
        "--min-proposals",
        type=int,
        metavar="K",
        help="give each row a width of its own, from this to --max-proposals (augmentation)",
    )
    add(
        "--mix-plain",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="write this share of the rows with proposals once more without them, so that plain "
        "answers stay strong (such as 0.2)",
    )
    add(
        "--without-proposals",
        action="store_true",
        help="leave all proposals out: query -> aggregation (the paper's ablation)",
    )
    add("--seed", type=int, default=42, help="of the shuffle (default: 42)")
    add(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="read a field from another column, such as proposals=drafts",
    )
    add(
        "--truthfulqa",
        choices=("keep", "drop"),
        default="keep",
        help="rows taken from TruthfulQA (ultrafeedback)",
    )
    add(
        "--split",
        default="train",
        help="split of a hub data set or saved DatasetDict (default: train)",
    )
    add(
        "--tokenizer",
        metavar="DIR_OR_NAME",
        help="measure rows with this tokenizer instead of estimating",
    )
    add(
        "--cutoff-len",
        type=int,
        metavar="N",
        help="shorten proposals so that every row fits N tokens (needs --tokenizer)",
    )
    add(
        "--chat-template",
        default="auto",
        help="to measure with: llama3, mistral, own (the tokenizer's) or a path (default: auto)",
    )
    add(
        "--rejects",
        type=Path,
        help="file for rows that could not be used (default: OUTPUT.rejects.jsonl)",
    )
    add(
        "--register",
        type=Path,
        metavar="DATASET_DIR",
        help="add the output to that folder's dataset_info.json",
    )
    add("--name", help="name of the entry (default: the output's name)")
    add("--limit", type=int, metavar="N", help="read only the first N rows")
    add("--preview", type=int, default=0, metavar="N", help="print N rendered conversations")
    add("--overwrite", action="store_true", help="replace an existing output or entry")
    add("--strict", action="store_true", help="exit with 1 if any row was rejected")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, above all to write over an input.

    Raises:
        UsageError: With the first problem found.
    """
    for flag, value, least in (
        ("--cutoff-len", args.cutoff_len, 1),
        ("--limit", args.limit, 1),
        ("--preview", args.preview, 0),
    ):
        if value is not None and not least <= value <= sys.maxsize:
            raise UsageError(f"{flag}: expected a number from {least}, got {value}")
    if args.output is None and not args.preview:
        raise UsageError("--output is missing (it is optional only with --preview)")
    if args.cutoff_len is not None and args.tokenizer is None:
        raise UsageError("--cutoff-len counts tokens; name the --tokenizer to count with")
    if args.target == "sft":
        for flag, given in (
            ("--min-proposals", args.min_proposals is not None),
            ("--mix-plain", args.mix_plain),
        ):
            if given:
                raise UsageError(f"{flag}: rows of --target sft have no proposals; leave it out")
    if args.register is not None and args.output is None:
        raise UsageError("--register needs --output")
    if args.name is not None and args.register is None:
        raise UsageError("--name names the entry that --register adds; pass both")
    if args.column and args.source != "proposals":
        raise UsageError(
            f"--column: the layouts of {args.source} are known, only proposals takes it"
        )
    info = args.register and args.register / "dataset_info.json"
    places: dict[str, str] = {}
    for flag, path in (
        ("--output", args.output),
        ("--rejects", rejects_path(args)),
        ("--register", info),
    ):
        if path is not None and places.setdefault(os.path.realpath(path), flag) != flag:
            raise UsageError(
                f"{flag} and {places[os.path.realpath(path)]} would write one file: {path}"
            )
    for name in args.inputs:
        if os.path.realpath(name) in places:
            flag = places[os.path.realpath(name)]
            raise UsageError(f"{flag} would replace the input {name}; name another file")


def rejects_path(args: argparse.Namespace) -> Path | None:
    """Return where rejects go; nowhere if nothing is written."""
    if args.rejects is not None or args.output is None:
        return args.rejects  # type: ignore[no-any-return]
    return rejects.rejects_path(args.output)


def column_names(args: argparse.Namespace) -> dict[str, str]:
    """Read `--column FIELD=NAME`.

    Raises:
        UsageError: If there is no equals sign.
    """
    names = {}
    for text in args.column:
        field, equals, name = text.partition("=")
        if not equals:
            raise UsageError(f"--column {text}: expected FIELD=NAME, such as proposals=drafts")
        names[field] = name
    return names

"""A record file as a data set on the Hugging Face hub, `python -m aft_factory.push`.

Reads any table whose rows are records; makes a folder of Parquet shards and a card (README.md), and
uploads it, or leaves it on disk with --dry-run. Nothing is uploaded before the folder is whole.
Columns of the input that records do not know stand in `meta`, and become public with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aft_factory.card import DATA_FILES, LICENCES, Card, escape, public_record
from aft_factory.console import guarded
from aft_factory.convert.arguments import column_names
from aft_factory.counts import Counts
from aft_factory.errors import AftError, MissingPackage, UsageError, suggest
from aft_factory.files import named
from aft_factory.records import Columns, Row
from aft_factory.settings import read_yaml
from aft_factory.tables import TableWriter, read_rows

EXAMPLES = """\
examples:
  # look at the folder first; nothing is uploaded
  python -m aft_factory.push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --dry-run my_aft

  # upload, with how it was made
  python -m aft_factory.push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --private \\
      --settings out.summary.json --source "Prompts of UltraFeedback (MIT)."
"""
ROWS = 50_000  # of a shard: some 100 MB of UltraFeedback's length
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.push",
        description="Publish a file of records as a data set, with a card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "input",
        metavar="FILE",
        help="records (.jsonl, .json, .gz, .zst, .parquet, `datasets` folder or hub name)",
    )
    add("repository", metavar="OWNER/NAME", help="data set on the hub; made if there is none")
    add("--license", required=True, metavar="ID", help="such as apache-2.0, cc-by-4.0, other")
    add("--license-link", metavar="URL", help="text of the licence, for --license other")
    add("--source", metavar="TEXT", help="where the data come from, for the card (Markdown)")
    add("--settings", type=Path, metavar="FILE", help="YAML or JSON file to show in the card")
    add("--language", action="append", default=[], metavar="CODE", help="such as en; repeatable")
    add("--dry-run", type=Path, metavar="FOLDER", help="make the folder there, upload nothing")
    add("--private", action="store_true", help="only for you and your organisation")
    add("--token", help="of the hub (default: the one you are logged in with)")
    add("--skip-unusable", action="store_true", help="leave out rows that are no records")
    add(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="read a field from another column, such as proposals=drafts",
    )
    add("--split", default="train", help="of a hub data set or saved DatasetDict (default: train)")
    add("--limit", type=int, metavar="N", help="read only the first N rows")
    add("--shard-rows", type=int, default=ROWS, metavar="N", help=f"default: {ROWS}")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 (usage, or the hub refused), 130."""
    args = build_parser().parse_args(argv)
    return guarded(lambda: run(args), "interrupted; the data set is not complete")


def run(args: argparse.Namespace) -> int:
    """Make the folder; then upload it, or leave it where it was asked for."""
    check(args)
    # Of a file only its name: the rest of the path is nobody's business.
    name = Path(args.input).name if Path(args.input).exists() else args.input
    card = Card(
        repository=args.repository,
        licence=args.license,
        source=args.source or escape(name),
        settings=None if args.settings is None else read_settings(args.settings),
        licence_link=args.license_link,
        language=tuple(args.language),
    )
    if args.license not in LICENCES:
        print(
            f"warning: {args.license!r} is no licence of the hub's list known here; "
            f"{suggest(args.license, LICENCES)}",
            file=sys.stderr,
        )
    api = None if args.dry_run is not None else hub_api(args.token)
    with new_folder(args.dry_run) as folder:
        numbers = write_data(args, folder)
        text = card.render(numbers).encode("utf-8", errors="replace")
        (folder / "README.md").write_bytes(text)
        if api is not None:
            url = upload(api, folder, args.repository, private=args.private, quiet=args.quiet)
    rows = numbers["rows"]
    place = url if api is not None else args.dry_run
    print(f"{rows['usable']} of {rows['read']} rows in {place}")
    if api is None:
        print(f"what an upload makes public of them, all texts aside:\n{card.exposed(numbers)}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before any work.

    Raises:
        UsageError: With the first problem found.
    """
    if not args.license.strip() or args.license != args.license.strip():
        raise UsageError("--license: name the licence of the data, such as cc-by-4.0 or other")
    if not re.fullmatch(r"[\w.+-]+", args.license, re.ASCII):
        raise UsageError(f"--license {args.license!r}: expected an identifier such as cc-by-4.0")
    if args.license_link and not re.fullmatch(r"https?://[^\s()<>]+", args.license_link):
        raise UsageError(f"--license-link {args.license_link!r}: expected an address (https://...)")
    if not NAME.fullmatch(args.repository) or re.search(r"\.\.|--", args.repository):
        raise UsageError(f"{args.repository!r}: expected OWNER/NAME, such as me/my-aft")
    for flag, value in (("--limit", args.limit), ("--shard-rows", args.shard_rows)):
        if value is not None and value < 1:
            raise UsageError(f"{flag}: expected a number from 1, got {value}")
    folder = args.dry_run
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--dry-run {folder}: exists and is no empty folder; name another")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file, or a JSON file, which not every reader of YAML can.

    Raises:
        UsageError: If it is neither, or not a mapping.
    """
    if path.suffix != ".json":
        return read_yaml(path)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--settings {path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--settings {path}: expected a JSON object")
    return content


@contextlib.contextmanager
def new_folder(target: Path | None) -> Iterator[Path]:
    """Yield a folder that becomes `target` if the block ends well; None: that is removed."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="aft-push-") as made:
            yield Path(made)
        return
    target = Path(os.path.realpath(target))
    aside = target.with_name(f".aft-{secrets.token_hex(6)}.part")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise named(error, target) from None
    try:
        yield aside
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_data(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the records as Parquet shards under `data/` and return their counts.

    Raises:
        UsageError: If a row is no record and that was not foreseen, or none is one.
    """
    counts = Counts(Columns.from_mapping(column_names(args)))
    shards: list[Path] = []
    meta: dict[str, None] = {}
    for rows in _shards(_rows(args, counts, meta), args.shard_rows):
        shards.append(folder / "data" / f"{len(shards):05d}.parquet")
        with TableWriter(shards[-1]) as table:
            for row in rows:
                table.write(row)
    if not counts.usable:
        raise UsageError(f"{args.input}: no usable record in {counts.read} rows")
    for number, path in enumerate(shards):
        path.rename(path.with_name(f"train-{number:05d}-of-{len(shards):05d}.parquet"))
    return {**counts.to_dict(), "meta": sorted(meta)}


def _rows(args: argparse.Namespace, counts: Counts, meta: dict[str, None]) -> Iterator[Row]:
    path = Path(args.input)
    total = path.stat().st_size if path.is_file() and args.limit is None else None
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="write", disable=args.quiet or None
    ) as bar:
        lines = read_rows(args.input, split=args.split, on_bytes=bar.update)
        for line in islice(lines, args.limit):
            record = counts.read_line(line)
            if record is not None:
                meta |= dict.fromkeys(record.meta)
                try:
                    yield public_record(record).to_row()
                except TypeError as error:  # JSON has no form for something in `meta`
                    raise UsageError(f"{line.place}: cannot be written: {error}") from None
            elif not args.skip_unusable:
                field, (_, reason) = next(iter(counts.rejects.by_field.items()))
                raise UsageError(
                    f"{line.place}: {field}: {reason}; --skip-unusable leaves such rows out "
                    "(aft_factory.stats counts them)"
                )


def _shards(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    for first in rows:
        yield _with_first(first, islice(rows, size - 1))


def _with_first(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def hub_api(token: str | None) -> Any:
    """Return the hub's client.

    Raises:
        MissingPackage: If huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingPackage("uploading", "huggingface_hub") from None
    return HfApi(token=token)


def upload(api: Any, folder: Path, repository: str, *, private: bool, quiet: bool) -> str:
    """Make the data set where there is none and upload the folder; return its address.

    Shards of an earlier upload are deleted in the same commit.

    Raises:
        UsageError: If the hub cannot be reached or refuses, in its own words, or the data set is
            there and public although `private` was asked for.
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if quiet:
        disable_progress_bars()
    try:
        made = api.create_repo(
            repository, repo_type="dataset", private=private or None, exist_ok=True
        )
        if private and not api.dataset_info(repository).private:
            raise UsageError(
                f"{repository} is public already; make it private on the hub, or leave out "
                "--private. Nothing was uploaded"
            )
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Upload records with aft-factory",
            delete_patterns=DATA_FILES,
        )
    except AftError:
        raise
    except Exception as error:  # of its dozen types the words are clear
        said = " ".join(str(error).split())[:500]
        raise UsageError(f"{repository}: the hub did not take it: {said}") from error
    return str(made)


if __name__ == "__main__":
    sys.exit(main())

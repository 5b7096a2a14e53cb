"""The command `python -m aft_factory.push`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.push.card import LICENCES, Card, escape
from aft_factory.push.folder import new_folder, write_data
from aft_factory.push.hub import hub_api, upload
from aft_factory.push.publication import Publication
from aft_factory.records.files import read_text
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import read_yaml

EXAMPLES = """\
examples:
  # look at the folder first; nothing is uploaded
  python -m aft_factory.push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --dry-run my_aft

  # upload, with how it was made; columns that are not a record's stay here, but for `topic`
  python -m aft_factory.push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --private \\
      --settings out.summary.json --source "Prompts of UltraFeedback (MIT)." --publish topic
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
    add(
        "--settings",
        type=Path,
        metavar="FILE",
        help="YAML or JSON file of a run or pipeline; the card shows its settings",
    )
    add("--language", action="append", default=[], metavar="CODE", help="such as en; repeatable")
    add(
        "--publish",
        action="extend",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="also publish these columns, or keys of `meta`, that records do not know",
    )
    add("--dry-run", type=Path, metavar="FOLDER", help="make the folder there, upload nothing")
    add("--yes", action="store_true", help="upload without asking, also at a terminal")
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
    """Run the command; return its exit code: 0, 1 (not confirmed), 2 (usage, the hub), 130."""
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
    publication = Publication(args.publish)
    with new_folder(args.dry_run) as folder:
        numbers = write_data(args, folder, publication)
        text = card.render(numbers).encode("utf-8", errors="replace")
        (folder / "README.md").write_bytes(text)
        rows = numbers["rows"]
        told = f"{rows['usable']} of {rows['read']} rows in"
        public = [*publication.describe(), *card.exposed(numbers)]
        listed = "\n  ".join(["what an upload makes public of them, all texts aside:", *public])
        if api is not None:
            print(listed, flush=True)
            if not (args.yes or confirmed(args.repository)):
                print("nothing was uploaded", file=sys.stderr)
                return 1
            url = upload(api, folder, args.repository, private=args.private, quiet=args.quiet)
            print(f"{told} {url}")
    if api is None:
        print(f"{told} {args.dry_run}\n{listed}")
    return 0


def confirmed(repository: str) -> bool:
    """Ask for a yes at a terminal; a script, which nobody watches, has said it by its command."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input(f"upload to {repository}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


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
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--settings {path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--settings {path}: expected a JSON object")
    return content


if __name__ == "__main__":
    sys.exit(main())

"""The command `python -m aft_factory.push`: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.push.card import LICENCES, Card, escape
from aft_factory.push.folder import new_folder, write_data
from aft_factory.push.hub import hub_api, upload
from aft_factory.push.publication import Publication
from aft_factory.push.settings import PushSettings
from aft_factory.records.files import read_text
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import show
from aft_factory.stage.yaml_file import read_yaml

EXAMPLES = """\
examples:
  # look at the folder first; nothing is uploaded
  aft push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --dry-run my_aft

  # upload, with how it was made; columns that are not a record's stay here, but for `topic`
  aft push data/my_aft.jsonl me/my-aft --license cc-by-4.0 --private \\
      --settings out.summary.json --source "Prompts of UltraFeedback (MIT)." --publish topic
"""


def push(settings: PushSettings) -> int:
    """Make the folder; then upload it, or leave it where it was asked for.

    Returns:
        The exit code: 0, or 1 (not confirmed).
    """
    # Of a file only its name: the rest of the path is nobody's business.
    name = Path(settings.input).name if Path(settings.input).exists() else settings.input
    card = Card(
        repository=settings.repository,
        licence=settings.license,
        source=settings.source or escape(name),
        settings=None if settings.settings is None else read_settings(settings.settings),
        licence_link=settings.license_link,
        language=tuple(settings.language),
    )
    if settings.license not in LICENCES:
        print(
            f"warning: {settings.license!r} is no licence of the hub's list known here; "
            f"{suggest(settings.license, LICENCES)}",
            file=sys.stderr,
        )
    api = None if settings.dry_run is not None else hub_api(settings.token)
    publication = Publication(settings.publish)
    with new_folder(settings.dry_run) as folder:
        numbers = write_data(settings, folder, publication)
        text = card.render(numbers).encode("utf-8", errors="replace")
        (folder / "README.md").write_bytes(text)
        rows = numbers["rows"]
        told = f"{rows['usable']} of {rows['read']} rows in"
        public = [*publication.describe(), *card.exposed(numbers)]
        listed = "\n  ".join(["what an upload makes public of them, all texts aside:", *public])
        if api is not None:
            show(listed)
            if not (settings.yes or confirmed(settings.repository)):
                print("nothing was uploaded", file=sys.stderr)
                return 1
            url = upload(
                api, folder, settings.repository, private=settings.private, quiet=settings.quiet
            )
            print(f'{told} {url}\nload it by datasets.load_dataset("{settings.repository}")')
    if api is None:
        show(f"{told} {settings.dry_run}\n{listed}\nthe same without --dry-run uploads it")
    return 0


def confirmed(repository: str) -> bool:
    """Ask for a yes at a terminal; a script, which nobody watches, has said it by its command."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input(f"upload to {repository}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


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


COMMAND = PlainCommand(
    name="push",
    description="Publish a file of records as a data set, with a card.",
    examples=EXAMPLES,
    settings=PushSettings,
    do=push,
    interrupted="interrupted; the data set is not complete",
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

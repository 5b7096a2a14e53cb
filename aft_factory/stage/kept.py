"""The settings of a run, kept in its journal: `--export` writes by these, not by today's flags."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.network import without_secrets
from aft_factory.stage.declaring import build, declared
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.reading import Settings

S = TypeVar("S", bound=JobSettings)
PLACES = ("journal", "rejects", "task_output")  # of files: each command names its own
NOT_BEGUN = "nothing is answered yet; start it again by the same command"

_log = logging.getLogger(__name__)


def keepable(settings: Settings) -> str:
    """Return settings as the JSON that a journal keeps, or what else is merged."""
    content = {"command": type(settings).__name__, "settings": without_secrets(asdict(settings))}
    return json.dumps(content, default=str)  # which has a word for infinity


def command_of(name: str) -> str:
    """Return the command of settings by their name in a journal.

    Example:
        >>> command_of("SampleSettings")
        '`aft sample`'
    """
    return f"`aft {name.removesuffix('Settings').lower()}`"


def kept_settings(path: Path, today: S, given: Iterable[str], run: str | None = None) -> S:
    """Return the settings of a run of a journal, but where its files are as today.

    Args:
        path: The journal.
        today: What is set now.
        given: Which of these the user has said. Where one is another than then, it is told that it
            does not count.
        run: The fingerprint of the run; None for the last one.

    Raises:
        UsageError: If the journal keeps no settings, or another command's.
    """
    kind = type(today)
    with Journal(path, read_only=True) as journal:
        if journal.last_run() is None:
            raise UsageError(f"{path}: {NOT_BEGUN}")
        kept = journal.settings(run)
    content = json.loads(kept or "{}")
    if not content:
        raise UsageError(f"{path}: keeps no settings of its run")
    if content["command"] != kind.__name__:
        wanted, found = kind.__name__, content["command"]
        told = f"expected the journal of {command_of(wanted)}, got that of {command_of(found)}"
        raise UsageError(f"{path}: {told}")
    by_flag = tuple(content["settings"].pop("by_flag"))
    known = declared(kind)  # a command may fix some of what it keeps
    then = {key: value for key, value in content["settings"].items() if key in known}
    settings = build(kind, [(str(path), then)])
    for name in given:
        old, new = getattr(settings, name), without_secrets(getattr(today, name))
        if name not in PLACES and old != new:
            shown = f"--export writes by the run's own settings: {name} is {old!r}"
            _log.warning("%s, not %r", shown, new)
    places = {name: getattr(today, name) for name in PLACES if hasattr(today, name)}
    return replace(settings, by_flag=by_flag, **places)

"""The settings of `python -m aft_factory.push`, and what cannot be meant by them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aft_factory.network import is_sendable
from aft_factory.stage.declaring import REQUIRED, argument, setting, switch, written
from aft_factory.stage.reading import INPUTS, ReadSettings, at_least

ROWS = 50_000  # of a shard: some 100 MB of UltraFeedback's length
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings(ReadSettings):
    """What is published, and as what; see the help texts."""

    input: str = argument(REQUIRED, f"records ({INPUTS})", "FILE")
    repository: str = argument(REQUIRED, "data set on the hub; made if there is none", "OWNER/NAME")
    license: str = setting(REQUIRED, "such as apache-2.0, cc-by-4.0, other", "ID")
    license_link: str | None = setting(None, "text of the licence, for --license other", "URL")
    source: str | None = setting(None, "where the data come from, for the card (Markdown)", "TEXT")
    settings: Path | None = setting(
        None, "YAML or JSON file of a run or pipeline; the card shows its settings", "FILE"
    )
    language: list[str] = setting([], "such as en; repeatable", "CODE", form="repeated")
    publish: list[str] = setting(
        [], "also publish these columns, or keys of `meta`, that records do not know", "COLUMN"
    )
    dry_run: Path | None = written("make the folder there, upload nothing", "FOLDER")
    yes: bool = switch("upload without asking, also at a terminal")
    private: bool = switch("only for you and your organisation")
    token: str | None = setting(None, "of the hub (default: the one you are logged in with)")
    skip_unusable: bool = switch("leave out rows that are no records")
    shard_rows: int = setting(ROWS, "of a file", "N")
    quiet: bool = switch("no progress bars")
    without: ClassVar[tuple[str, ...]] = ("shard",)  # a part of a data set is published by nobody

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = ReadSettings.problems(self) + at_least(self, ("shard_rows", 1))
        link, repository, folder = self.license_link, self.repository, self.dry_run
        if not self.license.strip() or self.license != self.license.strip():
            problems.append("--license: name the licence of the data, such as cc-by-4.0 or other")
        elif not re.fullmatch(r"[\w.+-]+", self.license, re.ASCII):
            problems.append(f"--license {self.license!r}: expected an identifier such as cc-by-4.0")
        if link and not re.fullmatch(r"https?://[^\s()<>]+", link):
            problems.append(f"--license-link {link!r}: expected an address (https://...)")
        if not NAME.fullmatch(repository) or re.search(r"\.\.|--", repository):
            problems.append(f"{repository!r}: expected OWNER/NAME, such as me/my-aft")
        if not is_sendable((self.token or "").strip()):
            problems.append("--token: expected printable ASCII, got another text")
        if folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            problems.append(f"--dry-run {folder}: exists and is no empty folder; name another")
        return problems

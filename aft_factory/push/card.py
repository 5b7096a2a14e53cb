"""The card of a published data set: `templates/card.md.jinja`, filled in.

Pure. Texts that come from data or files are escaped, so that they stay text in the YAML front
matter, in tables and in code blocks. What is nobody's business is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from aft_factory import __version__
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.push.public import public_counts
from aft_factory.push.shown_settings import shown_settings
from aft_factory.records.fields import names_of
from aft_factory.records.files import read_text
from aft_factory.stats.counts import LIMITS, PARTS

HEADS = ("min", "p5", "p50", "p95", "max", "mean")
MOST_NAMES = 50
MOST_CHARACTERS = 80
TAGS = ["aggregation-fine-tuning", "mixture-of-agents", "llama-factory"]
DATA_FILES = "data/train-*.parquet"
# The hub's identifiers of licences that data sets are often under; it knows some more.
LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsl-1.0 c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 gemma gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0
    odbl odc-by openrail other pddl unknown unlicense wtfpl
    """.split()  # noqa: SIM905 - a list would take a page
)
# 1K, 10K ... as the hub writes sizes
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says beside the counts.

    Attributes:
        repository: `OWNER/NAME` on the hub.
        licence: The hub's identifier of the licence.
        source: Where the data come from, as Markdown of the publisher's own.
        settings: How they were made; shown as JSON.
        licence_link: Address of the licence's text.
        language: Codes such as `en`.
    """

    repository: str
    licence: str
    source: str
    settings: Mapping[str, Any] | None = None
    licence_link: str | None = None
    language: tuple[str, ...] = ()

    def render(self, numbers: Mapping[str, Any]) -> str:
        """Return the card.

        Args:
            numbers: `Counts.to_dict()` of the records.
        """
        tokens, empty = numbers["tokens"], numbers["empty"]
        rows = numbers["rows"]["usable"]
        aggregated = rows - empty["aggregations"]
        per_row = numbers["proposals_per_row"]
        proposals = sum(int(width) * count for width, count in per_row.items())
        counts = [
            ("rows", rows),
            ("proposals", proposals),
            ("proposals per row", ", ".join(f"{n} in {count}" for n, count in per_row.items())),
            ("rows with an aggregation", aggregated),
            ("rows with a reference", rows - empty["references"]),
            ("rows that repeat an earlier query", numbers["duplicates"]["queries"]),
        ]
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(read_text(TEMPLATES / "card.md.jinja"))
        entry = {"hf_hub_url": self.repository, "formatting": "aggregation"}
        text = template.render(
            front_matter=yaml.safe_dump(
                self.front_matter(rows), sort_keys=False, allow_unicode=True
            ).rstrip("\n"),
            title=escape(self.repository.rpartition("/")[2]),
            repository=self.repository,
            entry_name=re.sub(r"\W+", "_", self.repository.rpartition("/")[2]).lower(),
            entry=json.dumps(entry),
            licence=escape(self.licence) if self.licence_link else self.licence,
            licence_link=self.licence_link,
            source=self.source,
            settings=settings_text(self.settings),
            rows=rows,
            left_out=numbers["rows"]["unusable"],
            counts=counts,
            heads=HEADS,
            tokens=[
                (part, [f"{tokens[part][head]:.6g}" for head in HEADS])
                for part in (*PARTS, "row")
                if tokens[part]["count"]
            ],
            how=tokens["how"],
            over=[(limit, f"{tokens['over'][str(limit)]:.1%}") for limit in LIMITS],
            sources=named(public_counts(numbers["sources"])),
            models=named(public_counts(numbers["proposal_models"])),
            aggregated=bool(aggregated),
            version=__version__,
        )
        return text.strip("\n") + "\n"

    def exposed(self, numbers: Mapping[str, Any]) -> list[str]:
        """Return what becomes public beside the texts, of which the publisher may not think."""
        shown, left_out = shown_settings(self.settings or {})
        told: dict[str, Iterable[str]] = {
            "sources": public_counts(numbers["sources"]),
            "models of proposals": public_counts(numbers["proposal_models"]),
            "settings": shown,
        }
        if left_out:
            told["settings not shown (no setting of a command here, or a place)"] = left_out
        return [
            f"{what}: {names_of(dict.fromkeys(filter(None, names))) or 'none'}"
            for what, names in told.items()
        ]

    def front_matter(self, rows: int) -> dict[str, Any]:
        """Return the metadata the hub reads."""
        split = {"split": "train", "path": DATA_FILES}
        data: dict[str, Any] = {"license": self.licence}
        if self.licence_link:
            data["license_link"] = self.licence_link
        if self.language:
            data["language"] = list(self.language)
        return data | {
            "task_categories": ["text-generation"],
            "size_categories": [next((name for most, name in SIZES if rows < most), "n>1M")],
            "tags": TAGS,
            "configs": [{"config_name": "default", "data_files": [split]}],
        }


def escape(text: str) -> str:
    r"""Return Markdown that reads as the text: one line of a table, whatever is in it.

    Example:
        >>> escape("a|b\n# <c>")
        'a\\|b \\# \\<c\\>'
    """
    text = "".join(c if c.isprintable() else " " for c in text[: MOST_CHARACTERS + 1])
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "…"
    return re.sub(r"([\\`*_{}\[\]()<>#|~&$!:@])", r"\\\1", " ".join(text.split()))


def named(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return escaped names with their counts, the rest of many in one line."""
    if set(counts) <= {""}:
        return []
    items = list(counts.items())
    shown = [(escape(name) or "(none)", count) for name, count in items[:MOST_NAMES]]
    if rest := items[MOST_NAMES:]:
        shown.append((f"{len(rest)} others", sum(count for _, count in rest)))
    return shown


def settings_text(settings: Mapping[str, Any] | None) -> str:
    """Return what of settings is public, as JSON; "" for none.

    In JSON every line begins with a blank, a bracket, a quote or a number, so none can end the
    code block.
    """
    shown, _ = shown_settings(settings or {})
    return json.dumps(shown, indent=2, ensure_ascii=False) if shown else ""

"""What of records becomes public: no secrets, no logins, no unknown columns.

Pure. The texts of a record (messages, proposals, aggregation, reference) are the data and stay as
they are; those that seem to hold a secret are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from aft_factory.errors import UsageError, suggest
from aft_factory.push.public import KEY, KEYS, public, public_text
from aft_factory.records.fields import short
from aft_factory.records.record import Record
from aft_factory.records.told import is_told

_NUMBERED = re.compile(r"~[0-9]+$")


class Publication:
    """Makes records public, and counts what that changed.

    Args:
        columns: Keys of `meta` to publish; those of our own stages are anyway.
    """

    def __init__(self, columns: Collection[str] = ()) -> None:
        self.columns = frozenset(columns)
        self.kept: Counter[str] = Counter()  # rows by key of `meta`
        self.left_out: Counter[str] = Counter()
        self.cleaned: Counter[str] = Counter()  # rows by field
        self.keys: Counter[str] = Counter()  # texts that seem to hold one, by how it begins
        self.first_key: str | None = None
        self._rows_with_keys = 0
        self._ids: dict[str, dict[str, int]] = {}

    def record(self, record: Record, place: str) -> Record:
        """Return a record as it is published; `place` is for messages."""
        chosen = {
            key: value
            for key, value in record.meta.items()
            if key in self.columns or is_told(key, value)
        }
        self.kept.update(chosen.keys())
        self.left_out.update(key for key in record.meta if key not in chosen)
        models = record.proposal_models
        made = {
            "id": self._id(record.id),
            "source": public_text(record.source),
            "proposal_models": models and [model and public_text(model) for model in models],
            "meta": public(chosen),
        }
        before = {**{name: getattr(record, name) for name in made}, "meta": chosen}
        self.cleaned.update(name for name, value in made.items() if value != before[name])
        self._look_for_keys(record, place)
        return replace(record, **made)

    def check(self) -> None:
        """Refuse a column to publish that no row has.

        Raises:
            UsageError: With the columns there are.
        """
        for name in sorted(self.columns - self.kept.keys()):
            known = self.left_out.keys() | self.kept.keys()
            has = suggest(name, known) if known else "the rows have none"
            raise UsageError(f"--publish {name}: no row has such a column beside a record's; {has}")

    def describe(self) -> list[str]:
        """Return what was left out and changed, and what the publisher should look at."""
        lines = [f"keys of meta: {_named(self.kept, 'rows')}"]
        if self.left_out:
            lines.append(f"not published (name it to --publish): {_named(self.left_out, 'rows')}")
        if self.cleaned:
            lines.append(
                f"rid of secrets, logins and folders: {_named(self.cleaned, 'rows')}"
                + ("; ids that were, end in ~NUMBER" if self.cleaned["id"] else "")
            )
        if self.keys:
            lines.append(
                f"LOOK: {self._rows_with_keys} rows have texts that seem to hold a secret, and "
                f"texts are published as they are: {_named(self.keys, 'texts')}; "
                f"the first in {self.first_key}"
            )
        return lines

    def _id(self, name: str) -> str:
        """An id without secrets, still another one for another row."""
        clean = public_text(name)
        if clean == name and not _NUMBERED.search(name):
            return name
        numbers = self._ids.setdefault(clean, {})
        return f"{clean}~{numbers.setdefault(name, len(numbers) + 1)}"

    def _look_for_keys(self, record: Record, place: str) -> None:
        found = False
        for where, text in _texts(record):
            if any(begin in text for begin in KEYS) and (key := KEY.search(text)):
                begin = next(begin for begin in KEYS if key[0].startswith(begin))
                self.keys[f"{begin.strip()}..."] += 1
                self.first_key = self.first_key or f"{place}, {where}"
                found = True
        self._rows_with_keys += found


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    for index, message in enumerate(record.messages):
        yield f"messages[{index}]", message["content"]
    for index, text in enumerate(record.proposals):
        yield f"proposals[{index}]", text
    yield "aggregation", record.aggregation or ""
    yield "aggregation_thought", record.aggregation_thought or ""
    yield "reference", record.reference or ""


def _named(counts: Mapping[str, int], unit: str) -> str:
    shown = (f"{short(name)[1:-1]} ({count} {unit})" for name, count in counts.items())
    return ", ".join(shown) or "none"

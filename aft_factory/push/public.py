"""What of records and settings becomes public: no secrets, no logins, no unknown columns.

Pure. Of paths only the names stay: where files and models lie on the publisher's machine is
nobody's business. The texts of a record (messages, proposals, aggregation, reference) are the data
and stay as they are; those that seem to hold a secret are counted.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.records.fields import OBJECT, short
from aft_factory.records.record import Record

LEFT_OUT = "(left out)"
STAGES = ("sampling", "ranking", "aggregating")  # keys of `meta` that our own stages write
# In the words of a key: hfToken, X-Api-Key, client_secret; not: max_tokens.
_SECRET = re.compile(
    r"\b(?:(?:api|access) ?key|auth|authorization|bearer|cookie|credentials?|pass(?:word|wd|phrase)"
    r"|secrets?)\b|\b(?:key|signature|token)$"
)
_NO_SECRET = re.compile(r"\b(?:pad|bos|eos|unk|sep|cls|mask|stop|image|per) token$")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")
# How keys begin, and what follows. In texts, "the bearer of" and "Bearer $TOKEN" are none.
_KEYS = {
    **dict.fromkeys(("hf_", "sk-", "ghp_", "gho_", "ghs_", "github_pat_"), r"[\w-]{8,}"),
    **dict.fromkeys(("glpat-", "xoxb-", "xoxp-"), r"[\w-]{10,}"),
    "AKIA": r"[0-9A-Z]{16}",
    "AIza": r"[\w-]{35}",
    "eyJ": r"[\w-]{8,}\.eyJ[\w-]+\.[\w-]+",
    "-----BEGIN ": r"[A-Z ]{0,20}PRIVATE KEY-----(?:[^-]*-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
    "Bearer ": r"[\w.~+/=-]{8,}",
}
_KEY = re.compile(
    "|".join(rf"(?<![A-Za-z0-9]){re.escape(begin)}{rest}" for begin, rest in _KEYS.items())
)
_BEARER = re.compile(r"\bBearer \S+")
_LOGIN = re.compile(r"(?<=://)[^/\s]*@|(?<!\S)[\w.-]+:[^\s/@]+@(?=\w)")
_SECRET_NAME = r"[\w-]*(?:key|token|secret|password|passwd|authorization|signature)"
# As addresses, shells, headers, Python and JSON write it.
_ASSIGNED = re.compile(
    rf"(?<![\w-])(?P<name>{_SECRET_NAME})(?P<by>['\"]?\s?[=:]\s?['\"]?)"
    r"(?:(?:Basic|Bearer) )?[^&\s'\",;]+",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"(?<!\S)(?P<name>--{_SECRET_NAME})(?P<by>\s)\S+", re.IGNORECASE)
_FOLDERS = r"(?:file:(?://)?|~|\.\.?|[A-Za-z]:)?[\\/]"
# `base+/home/me/adapter` names two of them; one that is the whole text may have blanks in it.
_PATH = re.compile(
    rf"(?<![\w./\\~-])(?!(?<=:)//){_FOLDERS}(?:[^\s'\"+]|\+(?!/))*[\\/](?=[^\s'\"\\/])",
)
_ONLY_PATH = re.compile(rf"{_FOLDERS}(?:[^\n: +]|\+(?!/)| (?![\\/]))*[\\/](?=[^\n\\/])")
# A folder whose name is a login.
_HOME = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\s\\/'\"]+(?=$|[\s'\",:;)])")
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
            if key in self.columns or _of_a_stage(key, value)
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
            if any(begin in text for begin in _KEYS) and (key := _KEY.search(text)):
                begin = next(begin for begin in _KEYS if key[0].startswith(begin))
                self.keys[f"{begin.strip()}..."] += 1
                self.first_key = self.first_key or f"{place}, {where}"
                found = True
        self._rows_with_keys += found


def public(value: Any) -> Any:
    """Return a value as JSON has it, without what looks like a secret, of paths only the names."""
    if isinstance(value, OBJECT):
        made: dict[str, Any] = {}
        for key, item in value.items():
            name = public_text(str(key))
            while name in made:  # another key that now reads the same
                name += "~"
            made[name] = LEFT_OUT if item is not None and _is_secret(str(key)) else public(item)
        return made
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    if text.lstrip()[:1] in ("{", "["):  # JSON as text
        with contextlib.suppress(ValueError):
            inner = json.loads(text)
            cleaned = public(inner)
            return text if cleaned == inner else json.dumps(cleaned, ensure_ascii=False)
    return public_text(text)


def public_text(text: str) -> str:
    """Return a text without secrets and logins, and of paths in it only the names.

    Example:
        >>> public_text("/home/me/base"), public_text("http://me:pw@host/v1")
        ('base', 'http://host/v1')
    """
    text = _OPTION.sub(_assigned, _ASSIGNED.sub(_assigned, _LOGIN.sub("", text)))
    for secret in (_KEY, _BEARER, _HOME):
        text = secret.sub(LEFT_OUT, text)
    return _ONLY_PATH.sub("", text) if _ONLY_PATH.match(text) else _PATH.sub("", text)


def public_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by public name; those of equal names are added up."""
    added: Counter[str] = Counter()
    for name, count in counts.items():
        added[public_text(name)] += count
    return dict(added.most_common())


def _of_a_stage(key: str, value: Any) -> bool:
    """Whether our own stage wrote this; a user's column may have its name."""
    return key in STAGES and isinstance(value, OBJECT) and "model" in value


def _is_secret(key: str) -> bool:
    words = _WORD_START.sub(" ", key).lower()
    return bool(_SECRET.search(words)) and not _NO_SECRET.search(words)


def _assigned(match: re.Match[str]) -> str:
    name = match["name"]
    # In code, `key=` is how a list is sorted; in prose, "the key: patience" is no secret.
    asked = name.lower() != "key" or match.string[: match.start()].endswith(("?", "&"))
    return f"{name}{match['by']}{LEFT_OUT}" if asked and _is_secret(name) else match[0]


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    for index, message in enumerate(record.messages):
        yield f"messages[{index}]", message["content"]
    for index, text in enumerate(record.proposals):
        yield f"proposals[{index}]", text
    yield "aggregation", record.aggregation or ""
    yield "reference", record.reference or ""


def _named(counts: Mapping[str, int], unit: str) -> str:
    shown = (f"{short(name)[1:-1]} ({count} {unit})" for name, count in counts.items())
    return ", ".join(shown) or "none"

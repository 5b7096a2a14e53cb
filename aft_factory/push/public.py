"""Texts and values without secrets, logins and folders.

Pure. Of paths only the names stay: where files and models lie on the publisher's machine is
nobody's business. No list of words knows all secrets: what stands behind one is cut to the end of
the text, addresses lose what may hold one, and words that look random go, whatever they are.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aft_factory.network import is_secret
from aft_factory.records.fields import OBJECT

LEFT_OUT = "(left out)"
# How keys begin, and what follows. In texts, "the bearer of" and "Bearer $TOKEN" are none.
KEYS = {
    **dict.fromkeys(("hf_", "sk-", "ghp_", "gho_", "ghs_", "github_pat_"), r"[\w-]{8,}"),
    **dict.fromkeys(("gsk_", "r8_", "nvapi-", "npm_", "pypi-", "xai-"), r"[\w-]{10,}"),
    **dict.fromkeys(("sk_live_", "rk_live_", "dop_v1_", "glpat-"), r"[\w-]{10,}"),
    **dict.fromkeys(("xoxb-", "xoxp-", "xoxe-", "xapp-"), r"[\w-]{10,}"),
    **dict.fromkeys(("AKIA", "ASIA"), r"[0-9A-Z]{16}"),
    "AIza": r"[\w-]{35}",
    "SG.": r"[\w-]{8,}\.[\w-]{8,}",
    "ya29.": r"[\w-]{10,}",
    "eyJ": r"[\w-]{8,}\.eyJ[\w-]+\.[\w-]+",
    "-----BEGIN ": r"[A-Z ]{0,20}PRIVATE KEY-----(?:[^-]*-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
    "Bearer ": r"[\w.~+/=-]{8,}",
}
KEY = re.compile(
    "|".join(rf"(?<![A-Za-z0-9]){re.escape(begin)}{rest}" for begin, rest in KEYS.items())
)
_BEARER = re.compile(r"\bBearer \S+")
_ADDRESS = re.compile(r"(?<=://)[^\s'\"<>]+")
_HOOK = re.compile(r"hook|/bot[0-9]", re.IGNORECASE)  # such an address is itself the secret
_LOGIN = re.compile(r"(?<![^\s/])[\w.-]+:[^\s/]+@(?=\w)")
# A name and what stands behind it, as addresses, shells, headers, Python and JSON write it; and an
# option of one letter, of which nobody knows what it takes (`curl -u`).
_NAMED = re.compile(
    r"(?<![\w-])(?:-[A-Za-z](?:\s|=)"
    r"|(?P<name>[\w-]++)(?:[\\'\"]{0,4}\s*+[=:]\s*+|(?P<blank>\s++)))(?=\S)"
)
_WORD = re.compile(r"[^\s'\",;]+")
_RUN = re.compile(r"[A-Za-z0-9]{16,}")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
# What an assignment or a header gives, whatever its name; a hash by itself, such as an id, is none.
_GIVEN_HASH = re.compile(
    r"(?<=\w)(['\"\\]{0,4}(?:=|: )['\"\\]{0,4})(?=[0-9]*+[a-fA-F])[0-9a-fA-F]{16,}\b"
)
_HASH = re.compile(r"[0-9a-f]+|[0-9A-F]+")  # or a plain number
_FOLDERS = r"(?:file:(?://)?|~[\w.-]*|\.\.?|[A-Za-z]:)?[\\/]"
# `base+/home/me/adapter` names two of them; one that is the whole text may have blanks in it.
_PATH = re.compile(
    rf"(?<![\w./\\~-])(?!(?<=:)//){_FOLDERS}(?:[^\s'\"+]|\+(?!/))*[\\/](?=[^\s'\"\\/])"
)
_ONLY_PATH = re.compile(rf"{_FOLDERS}(?:[^\n: +]|\+(?!/)| (?![\\/]))*[\\/](?=[^\n\\/])")
# A folder whose name is a login, perhaps with blanks in it.
_HOME = r"(?:file:(?://)?|[A-Za-z]:)?[\\/](?:home|Users)[\\/]"
_ONLY_HOME = re.compile(rf"{_HOME}[^\\/\n:]+[\\/]?")
_HOME_IN_TEXT = re.compile(
    rf"(?<![\w.]){_HOME}[^\s\\/'\"]+"
    r"(?:[\\/]?(?=$|['\",:;)])|(?: [^\s\\/'\"]+){1,2}[\\/]\S*|[\\/]?(?=\s))"
)


def public(value: Any) -> Any:
    """Return a value as JSON has it, without what looks like a secret, of paths only the names."""
    if isinstance(value, OBJECT):
        made: dict[str, Any] = {}
        for key, item in value.items():
            name = public_text(str(key))
            while name in made:  # another key that now reads the same
                name += "~"
            hidden = key != "name" and (is_secret(str(key)) or _names_secret(value.get("name")))
            told = item is None or isinstance(item, bool) or not hidden
            made[name] = public(item) if told else LEFT_OUT
        return made
    if isinstance(value, list | tuple):
        named = next((i for i, item in enumerate(value) if _names_secret(item)), len(value))
        return [public(item) if i <= named else LEFT_OUT for i, item in enumerate(value)]
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
        >>> public_text("/home/me/base"), public_text("http://me:pw@host/v1?code=1")
        ('base', 'http://host/v1')
    """
    text = _LOGIN.sub("", _ADDRESS.sub(_address, text))
    for secret in (KEY, _BEARER):
        text = secret.sub(LEFT_OUT, text)
    text = _GIVEN_HASH.sub(rf"\g<1>{LEFT_OUT}", _before_secret(text))
    if _ONLY_HOME.fullmatch(text):
        return LEFT_OUT
    if _ONLY_PATH.match(text):
        text = _ONLY_PATH.sub("", text)
    else:
        text = _PATH.sub("", _HOME_IN_TEXT.sub(LEFT_OUT, text))
    return _WORD.sub(lambda word: LEFT_OUT if _is_random(word[0]) else word[0], text)


def public_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by public name; those of equal names are added up."""
    added: Counter[str] = Counter()
    for name, count in counts.items():
        added[public_text(name)] += count
    return dict(added.most_common())


def _names_secret(item: Any) -> bool:
    """Whether what follows is a secret: an option (`--hf-token`), the name of a header."""
    return isinstance(item, str) and bool(re.fullmatch(r"[\w-]+", item)) and is_secret(item)


def _address(match: re.Match[str]) -> str:
    """What of an address comes behind its `://`: no login, no query."""
    login, at, rest = match[0].rpartition("@")
    if _HOOK.search(match[0]) or (":" in login and re.search("[/?#]", login)):
        return LEFT_OUT
    if not at or "/" in login:  # an `@` of the path
        rest = match[0]
    return re.split("[?#]", rest)[0]


def _before_secret(text: str) -> str:
    """The text up to the value of a secret: where that ends, nobody knows."""
    for found in _NAMED.finditer(text):
        name = found["name"] or "-"
        told = not found["blank"] or name.startswith("--") or name.isupper()
        # In code, `key=` is how a list is sorted; in prose, "the key: patience" is no secret.
        secret = name not in ("key", "Key") and is_secret(name)
        if name == "-" or (told and (secret or re.fullmatch("--.*user", name))):
            return text[: found.end()] + LEFT_OUT
    return text


def _is_random(word: str) -> bool:
    """Whether a word holds a key, whatever kind: many short pieces, as no name has them."""
    return any(
        not _HASH.fullmatch(run) and not run.isalpha() and len(run) < 5 * len(_PIECE.findall(run))
        for run in _RUN.findall(word)
    )

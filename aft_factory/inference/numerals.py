r"""Numerals: numbers as English has them in ASCII, however a text writes them.

Pure; knows no answers. Scripts, signs, LaTeX and the ways to part thousands:

    "−٣" -> "-3"   "10\,000" -> "10000"   "1.234.567,5" -> "1234567.5"   "2\frac12" -> "2 1/2"
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Blanks that keep a number together become no-break spaces.
_SIGNS = dict(zip("−‐‑‒–⁄∕’٫٬", "-----//'.,", strict=True))
_LATEX_BLANK = r"(?:\\[,;:> ]|~)"
_LATEX = (
    (re.compile(rf"\{{{_LATEX_BLANK}\}}|{_LATEX_BLANK}"), "\xa0"),
    (re.compile(r"(?:\\text)?\{,\}"), ","),
    (re.compile(r"\\!|\\(?=[$%])"), ""),
)
_LATEX_FRACTION = re.compile(
    r"(?P<before>[0-9]?)\\(?:[cdt]|nice)?frac\s*+(?:\{\s*+(-?[0-9.]++)\s*+\}|([0-9]))"
    r"\s*+(?:\{\s*+(?P<minus>-?)([0-9.]++)\s*+\}|([0-9]))"
)
_CHAIN = re.compile(r"(?<![0-9])[0-9]++(?:[.,'_\xa0][0-9]++)++")
_GROUPED = re.compile(
    r"""(?P<whole>[0-9]{1,3}(?P<by>[.,'_\xa0])[0-9]{3}(?:(?P=by)[0-9]{3})*+
                 |[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})
        (?:(?!(?P=by))[.,](?P<decimals>[0-9]++))?""",
    re.VERBOSE,
)
# A minus may stand apart from its number; at the start of a line it is the point of a list.
_APART = re.compile(r"((?:####|[{=]|\banswer:|\bis:?)[ *$]*+-) (?=[$.0-9])", re.IGNORECASE)
SPACED = re.compile(r"(?<![0-9.,])(?<![0-9] )[0-9]{1,3}(?: [0-9]{3})++(?![0-9])")


def in_ascii(text: str) -> str:
    """Return a text with its digits and signs in ASCII; what joins a number is a no-break space."""
    return text if text.isascii() else re.sub(r"[^\x00-\x7f]", lambda m: _ascii(m[0]), text)


def in_english(text: str) -> str:
    """Return a text of `in_ascii` with its numbers as English writes them, without LaTeX."""
    if "\\" in text or "~" in text or "{,}" in text:  # that tells it sooner than a pattern
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    text = _CHAIN.sub(lambda m: _ungrouped(m[0]), text).replace("\xa0", " ")
    if " 0" in text:
        text = SPACED.sub(lambda m: m[0].replace(" ", "") if " 0" in m[0] else m[0], text)
    if "frac" in text:
        text = _LATEX_FRACTION.sub(
            lambda m: (
                f"{m['before']}{m['before'] and ' '}{m['minus'] or ''}{m[2] or m[3]}/{m[5] or m[6]}"
            ).replace("--", ""),
            text,
        )
    return _APART.sub(r"\1", text) if "- " in text else text


@cache
def _ascii(character: str) -> str:
    if character.isdecimal():  # of any script; superscripts are none
        return str(unicodedata.decimal(character))
    category, form = unicodedata.category(character), unicodedata.decomposition(character)
    if category == "Zs":
        return "\xa0"
    if category == "Cf":  # such as the zero-width space of a broken marker
        return ""
    if form.startswith(("<wide>", "<small>")):
        return unicodedata.normalize("NFKC", character)
    if form.startswith("<fraction>"):
        return r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", character).split("⁄"))
    return _SIGNS.get(character, character)


def _ungrouped(digits: str) -> str:
    """Join the groups of one number: "1,234.5", "1 234,5", "1.234.567", "12,34,567"."""
    match = _GROUPED.fullmatch(digits)
    if not match or (match["by"] == "." and not match["decimals"] and digits.count(".") == 1):
        return digits  # several numbers; or "1.234", which are decimals
    whole = re.sub("[^0-9]", "", match["whole"])
    return f"{whole}.{match['decimals']}" if match["decimals"] else whole

r"""Final answers of worked solutions (GSM8K and its like): find the number, vote, compare.

Pure. A number is searched for in this order: after the last `####`, in the last `\boxed{}`, after
the last "answer is" or "answer:", else the last number of the text. It becomes a canonical text, so
that equal values are equal texts:

    "#### 1,234.50" -> "1234.5"   "It costs $72." -> "72"   "-3" -> "-3"   "50%" -> "50"
    "1/2" -> "0.5"   "2/6" -> "1/3"   "\boxed{2\frac{1}{2}}" -> "2.5"

Commas separate thousands (English notation). Units, powers of ten and percent signs are not read:
"50%" is 50, as GSM8K's references have it.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction
from itertools import chain

# A minus after a word or a bracket subtracts, or joins a range: "10-3", "pages 5-8".
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])-)?
        (?:[$£€¥][ ]?)?
        (?:(?P<whole>[0-9]++)[ ](?=[0-9]++/))?
        (?P<top>(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?
               |(?<![\w.)])\.[0-9]++)
        (?:/(?P<bottom>0*+[1-9][0-9]*+)(?![.,]?[0-9]))?""",
    re.VERBOSE,
)
_LONGEST_FRACTION = 100  # characters; what is longer is a model that ran away, not an answer

_MARK = re.compile(r"####[ \t*]*+")
_NUMBERED_HEADING = re.compile(r"\)|\.[ \t]++\S")  # "#### 2. Add them" is no answer
_BOX = r"\boxed{"
_STATED = re.compile(r"\banswer\W{0,4}?(?:is\b|[:=])\s*+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_LATEX_FRACTION = re.compile(r"(?P<before>[0-9]?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")


def extract_number(text: str) -> str | None:
    """Return the final answer of a response in canonical form; None where it has no number."""
    text = _without_latex(text)
    number = next(chain(_marked(text), _boxed(text), _stated(text), _last(text)), None)
    return None if number is None else _canonical(number)


def is_correct(text: str, reference: str) -> bool:
    """Whether the final answer of `text` is that of `reference` (a number, or text with one)."""
    answer = extract_number(text)
    return answer is not None and answer == extract_number(reference)


def majority(answers: Sequence[str | None]) -> int | None:
    """Return the index of the first response that holds the most common answer.

    Responses without an answer (None) have no vote. Between equally common answers, the one seen
    first wins. None where nobody votes.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    return answers.index(votes.most_common(1)[0][0])  # ties: in the order first met


def _without_latex(text: str) -> str:
    text = text.replace("−", "-").replace("{,}", ",").replace(r"\!", "").replace(r"\$", "$")
    return _LATEX_FRACTION.sub(
        lambda m: f"{m['before']} {m[2]}/{m[3]}" if m["before"] else f"{m[2]}/{m[3]}", text
    )


def _marked(text: str) -> Iterator[re.Match[str]]:
    for mark in reversed(list(_MARK.finditer(text))):
        number = _NUMBER.match(text, mark.end())
        if number and not _NUMBERED_HEADING.match(text, number.end()):
            yield number


def _boxed(text: str) -> Iterator[re.Match[str]]:
    start = text.rfind(_BOX)
    if start < 0:
        return
    start += len(_BOX)
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            break
    else:
        end = len(text)  # the response was cut off inside the box
    yield from _result(text[start:end])


def _stated(text: str) -> Iterator[re.Match[str]]:
    for rest in reversed(_STATED.split(text)[1:]):
        yield from _result(_SENTENCE_END.split(rest, maxsplit=1)[0])


def _last(text: str) -> Iterator[re.Match[str]]:
    yield from deque(_NUMBER.finditer(text), maxlen=1)


def _result(text: str) -> Iterator[re.Match[str]]:
    """The result in a few words: of "8 * 9 = 72 apples" what follows the last `=`."""
    number = _NUMBER.search(text.rpartition("=")[2]) or _NUMBER.search(text)
    if number:
        yield number


def _canonical(number: re.Match[str]) -> str:
    sign = number["sign"] or ""
    top = _plain(number["top"].replace(",", ""))
    if number["bottom"] is None or len(number[0]) > _LONGEST_FRACTION:
        return _signed(sign, top)
    value = int(number["whole"] or 0) + Fraction(top) / int(number["bottom"])
    with localcontext(prec=10 * _LONGEST_FRACTION) as context:
        context.traps[Inexact] = True
        try:
            text = _plain(f"{Decimal(value.numerator) / value.denominator:f}")
        except Inexact:
            text = f"{value.numerator}/{value.denominator}"
    return _signed(sign, text if len(text) < _LONGEST_FRACTION else top)


def _plain(digits: str) -> str:
    """Drop the zeros that say nothing: "007.50" -> "7.5". By text, for `int` has a longest."""
    whole, _, decimals = digits.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + decimals if decimals else "")


def _signed(sign: str, text: str) -> str:
    return text if text == "0" else sign + text

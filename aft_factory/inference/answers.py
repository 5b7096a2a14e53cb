r"""Final answers of worked solutions (GSM8K and its like): find the number, vote, compare.

Pure. A number is searched for in this order: after the last `####`, in the last `\boxed{}`, after
the last "answer is" or "answer:", else the last number of the text. Of an equation it is the
result, of a number with reasons the number, of a worked solution behind "answer:" its last one.
Not read are thoughts, and what a model wrote on after its answer: a next question, a next turn.
The number becomes a canonical text, so that equal values are equal texts:

    "#### 1,234.50" -> "1234.5"   "It costs $72." -> "72"   "−٣" -> "-3"   "50%" -> "50"
    "1/2" -> "0.5"   "2/6" -> "1/3"   "\boxed{2\frac12}" -> "2.5"   "10\,000" -> "10000"

Where both could be, commas separate thousands and points decimals (English notation). Units, powers
of ten and percent signs are not read: "50%" is 50, as GSM8K's references have it.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction

from aft_factory.inference.numerals import SPACED, in_ascii, in_english
from aft_factory.prompts.markers import MARKERS

_CONTROL = re.compile("|".join(map(re.escape, MARKERS)))

# A minus after a word or a bracket subtracts, or joins a range: "10-3", "pages 5-8".
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])-)?
        (?:[$£€¥][ ]?)?
        (?:(?P<whole>[0-9]++)[ ](?=[0-9]++/))?
        (?P<top>[0-9]++(?:\.[0-9]++)?|(?<![\w.)])\.[0-9]++)
        (?:/(?P<bottom>(?=[0.]*+[1-9])[0-9]++(?:\.[0-9]++)?)(?![.,]?[0-9]))?""",
    re.VERBOSE,
)
_CUT_NUMBER = re.compile(r"(?<![0-9.,/])[0-9][0-9.,/]*+\Z")  # more of it may have followed
_LONGEST_FRACTION = 100  # characters; what is longer is a model that ran away, not an answer

# In square brackets it is in capitals: "[Reasoning]" is a heading.
_THOUGHT_START, _THOUGHT_END = (
    re.compile(
        rf"(?i:[<◁]\|?{word}\w{{0,9}}:?(?:think|thought|reason)\w{{0,9}}\|?[>▷])"
        rf"|\[{word.upper()}(?:THINK|THOUGHT|REASON)[A-Z]{{0,9}}\]"
    )
    for word in ("", "(?:/|end_of_)")
)
# What a model writes on behind its answer.
_NEXT_TURN = re.compile(
    r"^[^\w\n]*+(?:user|human|assistant)[^\w\n]{0,3}?(?:[:.)]|$)|(?<=[0-9.!?)\]}>*$|])(?:user|assistant)\s*?$",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_QUESTION = re.compile(
    r"^[^\w\n]*+(?:(?:next|new|another|additional|bonus|extra|practice|similar|follow[- ]?up) )?"
    r"(?:question|problem|exercise|example|query|instruction|task|q)"
    r" ?#?[0-9]*+[^\w\n]{0,3}?(?:[:.)]|$)",
    re.IGNORECASE | re.MULTILINE,
)

# Below a blank line, or with a number: else it may be the task that a solution says again.
_NEXT_SECTION = re.compile(rf"(?<=\n\n)(?:{_NEXT_QUESTION.pattern})", _NEXT_QUESTION.flags)

_MARK = re.compile(r"####[ \t*]*+")
_NUMBERED_HEADING = re.compile(r"\)|\.[ \t]++\S")  # "#### 2. Add them" is no answer
_SLASH = re.compile(r"(?<=[0-9]) ?/ ?(?=[0-9])")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
# What is stated may stand in bold or as a formula, on lines of its own. That "the answer is found
# in 2 parts" states how, not what.
_STATED = re.compile(
    r"(?<![a-z0-9])answer[\W_]{0,4}?(?:is\b(?!\s+(?:not|[a-z]+\s+(?:in|by|from|after|with))\b)|[:=])"
    r"(?:[\s:*_$]|\\[\[(])*+(?:[a-z]\w*+ ?= ?)?",
    re.IGNORECASE,
)
_TURNED = re.compile(  # "42 is the answer", but not "of part 1"
    r"(?<![\w.)-])(-?[$£€¥]?[0-9][0-9.,/]*+%?[*$]{0,3}(?: [a-z]+)?) is (?:the|our|my)"
    r" (?:(?:final|correct|right) )?answer\b(?! (?:to|for|of|in)\b)",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"\b(?:equals|is equal to)\b", re.IGNORECASE)
_THEREFORE = re.compile(r"\b(?:so|thus|hence|therefore)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
# What makes the number before it the beginning of a sum. None is in "15, because x = 3".
_SUM = re.compile(
    r"(?!\s*(?:as|because|since)\b)"
    r"(?:[^-+*/×÷·^=,;:\\0-9]|/(?=[a-z])){0,30}?"
    r"(?:[-+*/×÷·^]|\\(?:times|cdot|div)\b|\b(?:x|of|times|plus|minus|(?:divid|multipli)ed by)\b"
    r"|(?<=[0-9])(?=\([-.0-9]+\)))"
    r"\s*+[-($.\\0-9][^=\n]{0,200}+=(?![=>])"
)


def extract_number(text: str, *, whole: bool = True) -> str | None:
    """Return the final answer of a response in canonical form; None where it has no number.

    Args:
        text: The response.
        whole: False for one that was cut off: the last number it came to is no answer.
    """
    text = _plain(text)
    if not whole:
        text = _CUT_NUMBER.sub("", text)
    first = _NUMBER.search(text)
    if first is None:
        return None
    response = _until(text, first.end(), _NEXT_TURN, _CONTROL)
    found = [*_marked(response), *_boxed(response), *_stated(response, whole)]
    start = min((start for start, _ in found), default=first.end())
    response = _until(response, start, _NEXT_QUESTION if found else _NEXT_SECTION)
    before = (number for start, number in found if start < len(response))
    if found and (number := next(before, found[0][1])):
        return _canonical(number)
    if whole or len(response) < len(text):
        lines = (deque(_NUMBER.finditer(line), maxlen=1) for line in response.split("\n")[::-1])
        return _canonical(next(filter(None, lines))[0])  # a number stands on one line
    return None


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


def _plain(text: str) -> str:
    """The response without its thoughts, its numbers as English has them in ASCII."""
    text = _THOUGHT_START.split(_THOUGHT_END.split(in_ascii(text))[-1])[0]
    text = in_english(text)
    return _TURNED.sub(r"the answer is \1", text) if "answer" in text else text


def _until(text: str, start: int, *patterns: re.Pattern[str]) -> str:
    """The text before the first of the patterns behind `start`."""
    ends = [pattern.search(text, start) for pattern in patterns]
    return text[: min((end.start() for end in ends if end), default=None)]


# Each yields the answers of its kind with their places, the last one first.


def _marked(text: str) -> Iterator[tuple[int, re.Match[str]]]:
    for mark, rest in _behind(_MARK, text):
        line = rest.partition("\n")[0]
        first = _NUMBER.match(line)
        if first and not _NUMBERED_HEADING.match(line, first.end()):
            yield from _result(mark, line)


def _boxed(text: str) -> Iterator[tuple[int, re.Match[str]]]:
    for box, rest in _behind(_BOX, text):
        depth = 1
        for end, character in enumerate(rest):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                rest = rest[:end]
                break
        rest = _SLASH.sub("/", rest)
        left, _, right = rest.partition("=")
        # In "2x = 10" it is on the right; in "15 because x = 3" and "x = 3, y = 4" it comes first.
        first = _NUMBER.match(left := left.strip(" $"))
        whole = (first and not left[first.end() :][:1].strip()) or re.search("[,;<>]", left)
        yield from _result(box, rest if whole or not _NUMBER.search(right) else right)


def _stated(text: str, whole: bool) -> Iterator[tuple[int, re.Match[str] | None]]:
    """None stands for the answer of a worked solution: it is the last number of that."""
    for statement, rest in _behind(_STATED, text):
        first = _NUMBER.match(rest)
        is_list = first and _NUMBERED_HEADING.match(rest, first.end())
        sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
        if "\n" in statement[0]:
            heads = not first or bool(is_list)
        else:
            heads = ":" in statement[0] and not first and not (whole and _is_told(rest, sentence))
        if not heads:
            yield from _result(statement, sentence)
        elif number := _NUMBER.search(rest):
            yield statement.end() + number.end(), None


def _is_told(text: str, sentence: str) -> bool:
    """Whether a paragraph has its numbers in its first sentence, and does not go on to another."""
    number = _NUMBER.search(sentence)
    paragraph = _until(text.partition("\n\n")[0], 0, _NEXT_QUESTION)
    more = _NUMBER.search(paragraph, len(sentence))
    return number is None or not (more or _THEREFORE.search(sentence, number.end()))


def _behind(opening: re.Pattern[str], text: str) -> Iterator[tuple[re.Match[str], str]]:
    """What follows each opening up to the next one, from the last."""
    end = len(text)
    for found in reversed(list(opening.finditer(text))):
        yield found, text[found.end() : end]
        end = found.start()


def _result(place: re.Match[str], text: str) -> Iterator[tuple[int, re.Match[str]]]:
    """The result of a few words: of "8 * 9 = 72 apples" what follows the `=`."""
    text = _EQUALS.sub("=", SPACED.sub(lambda m: m[0].replace(" ", ""), text))
    number = result = _NUMBER.search(text)
    while result is not None:
        number = result
        total = _SUM.match(text, number.end())
        result = _NUMBER.search(text, total.end()) if total else None
    if number:
        yield place.start(), number


def _canonical(number: re.Match[str]) -> str:
    sign = number["sign"] or ""
    top = _trimmed(number["top"])
    if number["bottom"] is None or len(number[0]) > _LONGEST_FRACTION:
        return _signed(sign, top)
    value = int(number["whole"] or 0) + Fraction(top) / Fraction(_trimmed(number["bottom"]))
    with localcontext(prec=10 * _LONGEST_FRACTION) as context:
        context.traps[Inexact] = True
        try:
            text = _trimmed(f"{Decimal(value.numerator) / value.denominator:f}")
        except Inexact:
            text = f"{value.numerator}/{value.denominator}"
    return _signed(sign, text if len(text) < _LONGEST_FRACTION else top)


def _trimmed(digits: str) -> str:
    """Drop the zeros that say nothing: "007.50" -> "7.5". By text, for `int` has a longest."""
    whole, _, decimals = digits.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + ("." + decimals if decimals else "")


def _signed(sign: str, text: str) -> str:
    return text if text == "0" else sign + text

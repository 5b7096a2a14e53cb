r"""Quality gates: what is wrong with an aggregation that a strong model wrote.

Pure. A row whose aggregation fails a gate is not trained on; the caller says so and counts it.

| gate | fails where |
| --- | --- |
| `empty` | there is no text |
| `truncated` | it was cut off, by the limit of tokens or by a filter of contents |
| `refusal` | it opens with a refusal, and fewer than half of the proposals do |
| `copy` | `copy_threshold` or more of its 5-grams of words stand in one and the same proposal |
| `mentions_responses` | it speaks of the responses it was given; its reader has none |

`copy` is one-sided: a shortened proposal is a copy, a proposal with as much added is none. Under 50
words it is silent, for good answers to "Correct this sentence" are often equal.
`mentions_responses` is silent where the query itself speaks of such responses. The phrases of
`refusal` and `mentions_responses` are English, and those that real answers were found to hold;
others pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aft_factory.engines.endings import is_cut_off, is_filtered

GATES = ("empty", "truncated", "refusal", "copy", "mentions_responses")
GRAM = 5
FEWEST_WORDS = 50

# Chinese and Japanese are written without blanks: there, a character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

# The patterns below see lower case, straight apostrophes and single blanks.

# What may stand before a refusal: "I'm very sorry, but as an AI language model, "
_OPENING = (
    r"\W*(?:(?:(?:i'm|i am) (?:\w+ )?sorry|sorry|i apologi[sz]e|unfortunately)\b[,.]? ?(?:but )?)?"
    r"(?:as an? (?:\w+ ){0,3}?(?:ai|model|assistant)\b[^,.]{0,40}, )?"
)
# Not "I cannot predict" or "I don't have real-time data": these may be the answer.
_REFUSING = (
    r"i(?:(?: am|'m)? (?:cannot|can't|unable to) (?:assist|comply|fulfil|satisfy|condone|create"
    r"|generate|write|help (?:you|with)|provide (?:\w+ ){0,2}?(?:information|responses?)\b)"
    r"| (?:do not|don't) feel comfortable\b)"
)
# Not: "I'm unable to draw a table, but I can list it", "I can't write it at once, so here's part 1"
_BUT = r"(?![^.]*[,;:–—] ?(?:but (?:i|here)|so (?:here|let)|here)\b)"
_REFUSAL = re.compile(_OPENING + _REFUSING + _BUT)

_TEXTS = r"(?:responses|proposals|drafts)"
_ALL = r"(?:the|these|those|all|your|multiple|various|several|different)"
_MENTION = re.compile(
    # the provided responses; these above model responses
    rf"\b{_ALL} (?:\w+ )?(?:provided|supplied|aforementioned) (?:\w+ )?(?:answers|{_TEXTS})\b"
    # a synthesis of the responses
    r"|\b(?:synthesi\w+|aggregat\w+|combin\w+|merg\w+|consolidat\w+|integrat\w+)"
    rf" (?:\w+ ){{0,5}}?{_ALL} (?:\w+ )?{_TEXTS}\b"
    # after reviewing the responses; considering the drafts
    r"|^\W*(?:based on|after|upon|having|considering|given|drawing|in light of|from)"
    rf" (?:[\w,'-]+ ){{0,6}}?{_ALL} (?:\w+ )?{_TEXTS}\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s|\n")
_NOUN = re.compile("responses|proposals|drafts|answers")


def check(
    aggregation: str,
    proposals: Sequence[str],
    finish_reason: str | None,
    *,
    query: str,
    copy_threshold: float = 0.9,
) -> list[str]:
    """Return the names of the gates that an aggregation fails, in the order of `GATES`.

    Args:
        aggregation: As the model wrote it.
        proposals: What it was given; empty for a direct answer.
        finish_reason: The engine's; None where it is not known, which passes.
        query: The user's text.
        copy_threshold: From which share of 5-grams on an aggregation is a copy.

    Example:
        >>> check("Based on the provided responses, six", ["six"], "length", query="How many?")
        ['truncated', 'mentions_responses']
    """
    failed = {
        "empty": not aggregation.strip(),
        "truncated": is_cut_off(finish_reason) or is_filtered(finish_reason),
        "refusal": _refuses(aggregation)
        and not (proposals and 2 * sum(map(_refuses, proposals)) >= len(proposals)),
        "copy": overlap(aggregation, proposals) >= copy_threshold,
        "mentions_responses": _speaks_of_responses(aggregation)
        and not _speaks_of_responses(query),  # which has an answer that does
    }
    return [name for name in GATES if failed[name]]


def overlap(aggregation: str, proposals: Sequence[str]) -> float:
    """Return the largest share of the aggregation's 5-grams that stand in one proposal (0 to 1).

    The words are without case and punctuation. 0 for an aggregation of fewer than 50 words.
    """
    words = _words(aggregation)
    if len(words) < FEWEST_WORDS:
        return 0.0
    own = _grams(words)
    return max((len(own & _grams(_words(text))) / len(own) for text in proposals), default=0.0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(GRAM)), strict=False))


def _refuses(text: str) -> bool:
    return bool(_REFUSAL.match(_plain(text[:400])))


def _speaks_of_responses(text: str) -> bool:
    sentences = _SENTENCE_END.split(text.lower())
    return any(_NOUN.search(s) and _MENTION.search(_plain(s)) for s in sentences)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())

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
`refusal` and `mentions_responses` are English; other languages pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aft_factory.engines.sampling import is_cut_off, is_filtered

GATES = ("empty", "truncated", "refusal", "copy", "mentions_responses")
GRAM = 5
FEWEST_WORDS = 50

# Chinese and Japanese are written without blanks: there, a character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

# The patterns below see lower case, straight apostrophes and single blanks.

# What may stand before a refusal: "Hello! I'm very sorry, but as an AI language model, "
_OPENING = (
    r"\W*(?:(?:hello|hi|hey)\b\W*)?"
    r"(?:(?:(?:i'm|i am) (?:\w+ )?(?:sorry|afraid)|sorry|(?:my )?apologies|i apologi[sz]e"
    r"|unfortunately)\b[,:;.!]? ?(?:(?:but|however|that)\b,? ?)?)?"
    r"(?:as an? (?:\w+ ){0,3}?(?:ai|model|assistant)\b[^,.]{0,40}, )?"
)
_I_CANNOT = r"i(?: am|'m)? (?:cannot|can't|can not|won't|will not|unable to|not able to) "
_REFUSALS = (
    # the task: whatever else it says, it has not been done
    _I_CANNOT + r"(?:synthesi[sz]e|aggregate|combine|merge|consolidate)\b",
    # the query. Not "I cannot predict" or "I don't have real-time data": these may be its answer
    _I_CANNOT
    + r"(?:assist|comply|participate|engage|fulfil|satisfy|condone|promote|help (?:you|with))",
    _I_CANNOT + r"(?:provide|give|offer|share) (?:\w+ ){0,2}?"
    r"(?:information|guidance|instructions|assistance|help|responses?)\b",
    _I_CANNOT + r"(?:create|generate|write|produce|discuss)\b",
    r"i (?:do not|don't) feel comfortable\b",
    r"i (?:must|have to) (?:respectfully )?(?:decline|refuse)\b",
)
# Not: "I'm unable to draw a table, but I can list it", "I can't write it at once, so here's part 1"
_BUT = r"(?![^.]*[,;:–—] ?(?:but (?:i|here)|so (?:here|let)|here)\b)"
_REFUSAL = re.compile(f"{_OPENING}(?:{'|'.join(_REFUSALS)}){_BUT}")

_TEXTS = r"(?:responses|proposals|drafts|answers)"
_ALL = r"(?:the|these|those|all|your|multiple|various|several|different)"
_MAKING = r"(?:synthesi\w+|aggregat\w+|combin\w+|merg\w+|consolidat\w+|integrat\w+)"
_MODELS = (
    r"(?:(?:open[- ]source |language |ai |llm |other |different |various |the )*"
    r"(?:models|assistants|llms))"
)
_SAYING = (
    r"(?:says?|states?|mentions?|claims?|agrees?|disagrees?|concludes?|answers?|overlooks?"
    r"|(?:is|are|was|were) (?:\w+ )?(?:in)?(?:correct|right|wrong|accurate|complete|consistent))"
)
_MENTIONS = (
    # the provided responses; these above model responses
    rf"\b{_ALL} (?:\w+ )?(?:provided|supplied|aforementioned) (?:\w+ )?{_TEXTS}\b",
    # the responses provided, all responses given above; not: the responses given by patients
    rf"\b{_ALL} (?:\w+ )?(?:responses|proposals|drafts) (?:provided|given|presented|listed|above)\b"
    rf"(?! (?:by|to|in|at|during) (?!{_MODELS}))",
    # responses from various models, the models' responses
    rf"\b{_TEXTS} (?:\w+ )?(?:from|of|by) {_MODELS}\b",
    rf"\b{_ALL} (?:models'|model|assistants') {_TEXTS}\b",
    # based on a synthesis of the responses; after reviewing the responses; considering the drafts
    rf"\b{_MAKING} (?:\w+ ){{0,5}}?{_ALL} (?:\w+ )?(?:responses|proposals|drafts)\b",
    rf"^\W*(?:based on|after|upon|having|considering|given|drawing|in light of|from)"
    rf" (?:[\w,'-]+ ){{0,6}}?{_ALL} (?:\w+ )?(?:responses|proposals|drafts)\b",
    # Response 1; not: response 200, "4. incident response 5. ..."
    r"\b(?:response|proposal) #?[1-9]\b(?![.,)])",
    # one of the responses says; not: some of the proposals would, all of the responses to a survey
    r"\b(?:some|one|all|each|both|none|most|several) of the (?:\w+ )?(?:(?:responses|proposals)"
    rf" (?:\w+ly )?{_SAYING}|responses (?:\w+ly )?(?:provides?|offers?|highlights?))\b",
    # a headline that names the work
    r"\b(?:synthesi[sz]ed|aggregated|consolidated|merged) (?:response|answer|reply)\b",
)
_MENTION = re.compile("|".join(_MENTIONS))
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s|\n")
_NOUN = re.compile("response|proposal|draft|answer|reply")


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
        "mentions_responses": _mentions(aggregation, query),
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


def _mentions(text: str, query: str) -> bool:
    # A query that speaks of responses has an answer that does.
    return _speaks_of_responses(text) and not _speaks_of_responses(query)


def _speaks_of_responses(text: str) -> bool:
    sentences = _SENTENCE_END.split(text.lower())
    return any(_NOUN.search(s) and _MENTION.search(_plain(s)) for s in sentences)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())

"""Synthetic UltraFeedback rows for the benchmarks: openbmb's layout, real lengths, no real text.

Knows nothing of our converters. The lengths are quantiles of real text, in characters, measured on
1000 rows of trl-lib/ultrafeedback_binarized (drawn with seed 42; `prompt` for the instructions,
`chosen` and `rejected` for the responses), as are the shares of responses that hold `<`, `[` or
non-ASCII characters. Rationales have the lengths seen in openbmb/UltraFeedback's README.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

# The 0th, 5th, 10th ... 100th percentile.
INSTRUCTION_LENGTHS = (
    *(17, 41, 55, 70, 89, 109, 134, 174, 223, 280, 364, 411, 493, 584, 672, 801, 1000, 1267),
    *(1769, 2534, 6308),
)
RESPONSE_LENGTHS = (
    *(0, 25, 69, 111, 179, 244, 332, 454, 552, 702, 864, 1058, 1231, 1458, 1695, 1947, 2176),
    *(2468, 2769, 3277, 5487),
)
RATIONALE_LENGTHS = (84, 108, 132, 161, 188, 207, 219, 260)

MODELS = (
    "alpaca-7b",
    "falcon-40b-instruct",
    "gpt-4",
    "llama-2-13b-chat",
    "starchat",
    "wizardlm-7b",
)
PRINCIPLES = ("helpfulness", "honesty", "truthfulness", "verbalized_calibration")
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
SYSTEM = (
    "As an AI assistant, ensure your response offers the perfect blend of accuracy, positivity, "
    "and intrigue. Strive to be educational while keeping the user engaged."
)
VOCABULARY = """
a able about all also and answer are as at be because but by can clear code could data day each
every example first for from give good has have help how if important in information into is it
its know language like list make many may method more most my need not number of on one only or
other our part people plan question reason result say see should simple so some step such text
than that the their then there these they this three time to true two understand use using value
water way we well what when which while who will with word work would write year you your
"""
# Share of the responses, and what is strewn into them.
KINDS = (
    (0.05, ("<div>", "</div>", "<|", "vector<int>", "a < b", "<br>")),
    (0.10, ("[1]", "[link](https://example.org/a?b=c)", "[i]", "[INST]")),
    (
        0.14,
        ("café", "naïve", "–", "“quoted”", "…", "日本語の文章", "Привет", "200°C", "😀", "señor"),
    ),
    (0.71, ()),
)


class Texts:
    """Cuts texts of realistic lengths out of long ones, at random places."""

    def __init__(self, seed: int, size: int = 1 << 20) -> None:
        self._random = random.Random(seed)
        self._shares = [share for share, _ in KINDS]
        self._pools = [self._prose(size, extra) for _, extra in KINDS]

    def text(self, quantiles: Sequence[int]) -> str:
        """Return a text; its length is drawn between two neighbouring quantiles."""
        step = self._random.randrange(len(quantiles) - 1)
        length = self._random.randint(quantiles[step], quantiles[step + 1])
        pool = self._random.choices(self._pools, self._shares)[0]
        start = self._random.randrange(len(pool) - length)
        return pool[start : start + length]

    def choose(self, options: Sequence[str], count: int) -> list[str]:
        """Return different ones of the options."""
        return self._random.sample(options, count)

    def rating(self) -> int:
        """Return a rating of 1 to 5."""
        return self._random.randint(1, 5)

    def _prose(self, size: int, extra: Sequence[str]) -> str:
        """Sentences and paragraphs, with one of `extra` in every second sentence."""
        words, pieces, total = VOCABULARY.split(), [], 0
        while total < size:
            sentence = self._random.choices(words, k=self._random.randint(4, 24))
            if extra and self._random.random() < 0.5:
                sentence.insert(len(sentence) // 2, self._random.choice(extra))
            ends = (". ", ', "so" ', ":\n- ", ".\n\n", "? ")
            end = self._random.choices(ends, (60, 5, 10, 10, 5))[0]
            piece = " ".join(sentence).capitalize() + end
            pieces.append(piece)
            total += len(piece)
        return "".join(pieces)


def ultrafeedback_rows(count: int, seed: int = 42) -> Iterator[dict[str, Any]]:
    """Make rows of openbmb/UltraFeedback's layout, and an `aggregation` in each.

    Args:
        count: How many; the first n of more rows are the n rows.
        seed: The same seed gives the same rows.
    """
    texts = Texts(seed)
    for _ in range(count):
        models = texts.choose(MODELS, 4)
        yield {
            "source": "synthetic",
            "instruction": texts.text(INSTRUCTION_LENGTHS) or "?",
            "models": models,
            "completions": [_completion(texts, model) for model in models],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
            "aggregation": "In short: " + texts.text(RESPONSE_LENGTHS),
        }


def _completion(texts: Texts, model: str) -> dict[str, Any]:
    ratings = {aspect: texts.rating() for aspect in ASPECTS}
    mean = sum(ratings.values()) / len(ratings)
    return {
        "model": model,
        "principle": texts.choose(PRINCIPLES, 1)[0],
        "custom_system_prompt": SYSTEM,
        "response": texts.text(RESPONSE_LENGTHS),
        "annotations": {
            aspect: _annotation(texts, aspect, rating) for aspect, rating in ratings.items()
        },
        "overall_score": float(round(2 * mean)),
        "fine-grained_score": mean,
    }


def _annotation(texts: Texts, aspect: str, rating: int) -> dict[str, Any]:
    annotation = {"Rating": str(rating), "Rationale": texts.text(RATIONALE_LENGTHS)}
    if aspect in ("helpfulness", "truthfulness"):
        reason = texts.text(RATIONALE_LENGTHS)
        return {"Type": [str(texts.rating())], **annotation, "Rationale For Rating": reason}
    return annotation


def write_rows(path: Path, count: int, seed: int = 42) -> int:
    """Write the rows as JSON Lines and return the size of the file in bytes."""
    with path.open("wb") as stream:
        for row in ultrafeedback_rows(count, seed):
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path.stat().st_size

"""Source `ultrafeedback`: the UltraFeedback data set in the layouts it is published in.

* openbmb/UltraFeedback and its older versions: `instruction`, `completions`, each with `response`,
  `model`, `annotations` and, in the later ones, `overall_score` and `fine-grained_score`;
* HuggingFaceH4/ultrafeedback_binarized and trl-lib's: `chosen` and `rejected` as message lists,
  `score_chosen`, `score_rejected`; argilla's with `chosen-rating`, `rejected-rating`;
* the same pairs flattened to texts, scores at the top or in `metadata`.

    {"source": "sharegpt", "instruction": "I am going to Cairo ...", "completions": [
      {"model": "gpt-4", "response": "Cairo is ...", "overall_score": 8.5,
       "fine-grained_score": 4.25, "annotations": {"helpfulness": {"Rating": "4", ...}, ...}}]}

Scores are on UltraFeedback's scale of 1 to 10. `overall_score` is taken where it is there; else
twice the mean of the ratings (1 to 5). The reference is the response with the highest score; of
equals, the first in the row (in pairs, the chosen one).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.columns import Columns
from aft_factory.records.fields import (
    LIST,
    OBJECT,
    is_list,
    items_of,
    kind,
    known,
    names_of,
    optional_text,
    parse_id,
)
from aft_factory.records.layouts import MESSAGE_KEYS, Asked, read_query
from aft_factory.records.leftovers import refuse_leftovers
from aft_factory.records.messages import from_text, note_thought
from aft_factory.records.record import Record
from aft_factory.records.texts import refuse_more

PLACEHOLDERS = ("N/A", "None")  # written by binarizing scripts where there was no second response
PAIR_SCORES = ("score_{0}", "{0}-rating", "{0}_score", "{0}_rating")
# Columns of the published layouts; others are carried along.
_KNOWN = {
    *("aggregation", "chosen", "completions", "correct_answers", "id", "incorrect_answers"),
    *("metadata", "models", "prompt_id", "rejected", "source", *MESSAGE_KEYS),
    *(name.format(side) for side in ("chosen", "rejected") for name in (*PAIR_SCORES, "{0}-model")),
}


def read_ultrafeedback(row: Any, columns: Columns, notes: Counter[str]) -> Record:
    """Return the record of a row: every distinct response is a proposal.

    Args:
        row: A row in one of the layouts above. Columns of no layout go to `meta`.
        columns: Which columns belong to no query; for the rest, the layouts are known.
        notes: Counts what was repaired or left out.

    Raises:
        RecordError: If the row has no query or no response.
    """
    if not isinstance(row, OBJECT):
        raise RecordError("row", f"expected an object, got {kind(row)}")
    if row.get(field := "completions") is not None:
        asked, responses, preferred = _read_completions(row, columns, notes)
    elif row.get(field := "chosen") is not None:
        asked, responses, preferred = _read_pair(row, columns, notes)
    else:
        raise RecordError(
            "completions", f"missing, and no 'chosen' either; the row has: {names_of(row)}"
        )

    kept: list[_Response] = []
    texts: list[str] = []  # of them: a few texts are faster compared than hashed
    for response in responses:
        if response.text in texts:
            notes["duplicate responses left out"] += 1
            at = texts.index(response.text)
            if response.rank > kept[at].rank:
                kept[at] = response
        elif not response.text or response.text.isspace():
            notes["empty responses left out"] += 1
        elif response.text in PLACEHOLDERS:
            notes["placeholder responses left out"] += 1
        else:
            kept.append(response)
            texts.append(response.text)
    if not kept:
        raise RecordError(field, "no usable response")
    best = max(kept, key=lambda r: r.rank)
    reference = best.text if best.score is not None else None
    if preferred is not None:
        reference = preferred if preferred in texts else None
    name = "prompt_id" if row.get("id") is None else "id"
    return Record(
        id=parse_id(row.get(name), name),
        messages=asked.messages,
        proposals=texts,
        aggregation=optional_text(row.get("aggregation"), "aggregation"),
        reference=reference,
        source=row["source"] if isinstance(row.get("source"), str) else "",
        scores=[r.score for r in kept] if any(r.score is not None for r in kept) else None,
        proposal_models=[r.model for r in kept] if any(r.model for r in kept) else None,
        meta={str(key): row[key] for key in row if key not in _KNOWN and key not in asked.used},
    )


def is_truthful_qa(row: Any) -> bool:
    """Tell whether a row comes from TruthfulQA, as 811 published ones do: it spoils its scores."""
    if not isinstance(row, OBJECT):
        return False
    answers = row.get("correct_answers")
    return row.get("source") == "truthful_qa" or bool(
        is_list(answers) and list(answers) not in ([], ["None"])
    )


class _Response:
    __slots__ = ("model", "score", "text")

    def __init__(self, text: str, model: str | None, score: float | None) -> None:
        self.text, self.model, self.score = text, model, score

    @property
    def rank(self) -> float:
        """The score, for comparison; any score is better than none."""
        return -math.inf if self.score is None else self.score


def _read_completions(
    row: Mapping[str, Any], columns: Columns, notes: Counter[str]
) -> tuple[Asked, list[_Response], None]:
    asked = read_query(row, columns, notes)
    completions = row["completions"]
    if not is_list(completions) or not completions:
        raise RecordError("completions", "expected a list with at least one completion")
    responses = []
    for index, completion in enumerate(completions):
        place = f"completions[{index}]"
        if not isinstance(completion, OBJECT):
            raise RecordError(place, f"expected an object, got {kind(completion)}")
        text = known(completion.get("response"))
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise RecordError(f"{place}.response", f"expected a text, got {kind(text)}")
        model = completion.get("model")
        score = _completion_score(completion, notes)
        responses.append(_Response(text, model if isinstance(model, str) else None, score))
    return asked, responses, None


def _read_pair(
    row: Mapping[str, Any], columns: Columns, notes: Counter[str]
) -> tuple[Asked, list[_Response], str]:
    before, chosen = _split_answer(row["chosen"], "chosen", notes)
    _, rejected = _split_answer(row.get("rejected"), "rejected", notes)
    # The whole conversation where it has one: `prompt` may be one message of it, but no other.
    if before:
        named = replace(columns, messages="chosen")
        asked = read_query({**row, "chosen": before}, named, notes)
        beside = {
            key: row[key] for key in MESSAGE_KEYS if key in row and key not in columns.ignored
        }
        said = [*(message["content"] for message in asked.messages), chosen, rejected]
        refuse_leftovers(beside, said, asked.used)
    else:
        asked = read_query(row, columns, notes)
    metadata = row.get("metadata") if isinstance(row.get("metadata"), OBJECT) else {}
    responses = []
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        names = [name.format(side) for name in PAIR_SCORES]
        scores = [_number({**row, **metadata}.get(name)) for name in names]  # type: ignore[dict-item]
        model = row.get(f"{side}-model")
        score = next((s for s in scores if s is not None), None)
        responses.append(_Response(text, model if isinstance(model, str) else None, score))
    return asked, responses, chosen


def _split_answer(value: Any, field: str, notes: Counter[str]) -> tuple[list[Any] | None, str]:
    """Take apart a text, or a list of messages that ends with the assistant's."""
    value = from_text(known(value), field)
    if value is None:
        return None, ""
    if isinstance(value, str):
        return None, value
    value = items_of(value) or value
    if isinstance(value, LIST) and value and isinstance(value[-1], OBJECT):
        content, role = value[-1].get("content"), value[-1].get("role")
        if role == "assistant" and isinstance(content, str):
            refuse_more(value[-1], ("role", "content"), content, f"{field}[{len(value) - 1}]")
            note_thought(value[-1], notes)
            return list(value[:-1]), content
        raise RecordError(
            f"{field}[{len(value) - 1}]", "expected the assistant's message with a text"
        )
    raise RecordError(field, f"expected a text or a list of messages, got {kind(value)}")


def _completion_score(completion: Mapping[str, Any], notes: Counter[str]) -> float | None:
    """Return the score on the scale of 1 to 10, with the known fault of `overall_score` mended.

    Copies made before 2023-12-29 hold 10 where the annotator wrote 1 (issue 8 of the data set). The
    published repair: 10 with a mean rating up to 2 is a 1. Between 2 and 4 the repaired set was
    rated anew, which cannot be done here: twice the mean stands in.
    """
    overall = _number(completion.get("overall_score"))
    if overall is not None and overall != 10:
        return overall
    mean = _number(completion.get("fine-grained_score"))
    if mean is None:
        mean = _mean_rating(completion.get("annotations"))
    if overall is None:
        return None if mean is None else 2 * mean
    if mean is not None and mean <= 2:
        notes["overall_score 10 for 1 mended"] += 1
        return 1.0
    if mean is not None and mean <= 4:
        notes["overall_score 10 in doubt, twice the mean rating taken"] += 1
        return 2 * mean
    return overall


def _mean_rating(annotations: Any) -> float | None:
    """Mean of the aspect ratings that are numbers; an annotation is an object or a list of one."""
    if not isinstance(annotations, OBJECT):
        return None
    ratings = []
    for annotation in annotations.values():
        if not isinstance(annotation, OBJECT) and isinstance(annotation, LIST) and annotation:
            annotation = annotation[0]
        if isinstance(annotation, OBJECT):
            ratings.append(_number(annotation.get("Rating")))
    numbers = [rating for rating in ratings if rating is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: Any) -> float | None:
    """Read a number or the text of one ("7.5", "8/10"); everything else, such as "N/A", is None.

    So are NaN, infinity, and what is too large for a number.
    """
    if isinstance(value, str):
        match = re.match(r"\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?$", value)
        value = match and match[1]
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None

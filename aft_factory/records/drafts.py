"""Drafts: the proposals of a row, as texts or as objects with model and score. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from aft_factory.errors import RecordError
from aft_factory.records.fields import OBJECT, as_number, is_blank, is_list, items_of, kind, known
from aft_factory.records.texts import text_of_parts

T = TypeVar("T")
TEXT_KEYS = ("response", "text", "content", "output")
KEYS = {*TEXT_KEYS, "model", "score"}

# Texts, models, scores, and what else objects hold; None where there is nothing of it.
Drafts = tuple[
    list[str], list[str | None] | None, list[float | None] | None, list[dict[str, Any]] | None
]


def parse_drafts(value: Any, field: str) -> Drafts:
    """Read a list of drafts; what is missing is blank.

    Raises:
        RecordError: If it is no list, or one of them no draft.
    """
    if value is None:
        return [], None, None, None
    items = items_of(value)
    if items is None:
        raise RecordError(field, f"expected a list, got {kind(value)}")
    texts: list[str] = []
    models: list[str | None] = []
    scores: list[float | None] = []
    rests: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(items):
        model = score = None
        text = item
        if not isinstance(item, str) and isinstance(item, OBJECT):
            text = _text_in(item, f"{field}[{index}]")
            model, score = known(item.get("model")), as_number(item.get("score"))
            if item.keys() - KEYS:
                others = {str(key): item[key] for key in item if key not in KEYS}
                if rest := {key: other for key, other in others.items() if not is_blank(other)}:
                    rests[index] = rest
        text = "" if known(text) is None else text  # a draft that is missing
        if is_list(text):
            text = text_of_parts(text, f"{field}[{index}]")
        if not isinstance(text, str):
            raise _no_draft(f"{field}[{index}]", item)
        if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
            raise RecordError(f"{field}[{index}].score", f"expected a number, got {kind(score)}")
        if model is not None and not isinstance(model, str):
            raise RecordError(f"{field}[{index}].model", f"expected a text, got {kind(model)}")
        texts.append(text)
        models.append(model)
        scores.append(score)
    return (
        texts,
        models if any(models) else None,
        scores if any(s is not None for s in scores) else None,
        [rests.get(index, {}) for index in range(len(texts))] if rests else None,
    )


def put_together(one: list[T | None] | None, other: list[T | None] | None) -> list[T | None] | None:
    """Return a list with what is known of each draft; where both know, what the first says."""
    if not one or not other:
        return one or other
    return [b if a is None else a for a, b in zip(one, other, strict=True)]


def _text_in(item: Mapping[str, Any], place: str) -> Any:
    keys = [key for key in TEXT_KEYS if key in item]
    if not keys:
        raise _no_draft(place, item)
    # Parquet gives every object the keys of all.
    filled = [key for key in keys if not is_blank(item[key])] or keys[:1]
    if len(filled) > 1 and any(item[key] != item[filled[0]] for key in filled):
        raise RecordError(place, f"two texts, {' and '.join(filled)}; which is the draft?")
    return item[filled[0]]


def _no_draft(place: str, item: Any) -> RecordError:
    expected = f"a text, or an object with {' or '.join(TEXT_KEYS)}"
    return RecordError(place, f"expected {expected}, got {kind(item)}")

"""Drafts of a row: a list of texts, or of objects that hold one. Pure."""

from __future__ import annotations

from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.fields import LIST, OBJECT, is_blank, items_of, kind, known
from aft_factory.records.messages import text_of_parts

TEXT_KEYS = ("response", "text", "content", "output")


def parse_proposals(
    value: Any, field: str
) -> tuple[list[str], list[str | None] | None, list[float | None] | None]:
    """Return the texts of drafts, the models that wrote them, and their scores, where told.

    Raises:
        RecordError: If one is no draft; names it.
    """
    if value is None:
        return [], None, None
    items = items_of(value)
    if items is None:
        raise RecordError(field, f"expected a list, got {kind(value)}")
    texts: list[str] = []
    models: list[str | None] = []
    scores: list[float | None] = []
    for index, item in enumerate(items):
        model = score = None
        text = item
        if isinstance(item, OBJECT):
            keys = [key for key in TEXT_KEYS if key in item]
            if not keys:
                raise _no_proposal(field, index, item)
            # Parquet gives every object the keys of all.
            filled = [key for key in keys if not is_blank(item[key])] or keys[:1]
            if len(filled) > 1 and any(item[key] != item[filled[0]] for key in filled):
                problem = f"two texts, {' and '.join(filled)}; which is the draft?"
                raise RecordError(f"{field}[{index}]", problem)
            text, model, score = item[filled[0]], known(item.get("model")), known(item.get("score"))
        text = "" if known(text) is None else text  # a draft that is missing
        if isinstance(text, LIST) and not isinstance(text, str):
            text = text_of_parts(text, f"{field}[{index}]")
        if not isinstance(text, str):
            raise _no_proposal(field, index, item)
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
    )


def _no_proposal(field: str, index: int, item: Any) -> RecordError:
    expected = f"a text, or an object with {' or '.join(TEXT_KEYS)}"
    return RecordError(f"{field}[{index}]", f"expected {expected}, got {kind(item)}")

"""Looking into a journal: a query's layers, drafts and answer, for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any

import orjson

from aft_factory.asking.journal import Journal, Place
from aft_factory.engines.sampling import Reply
from aft_factory.errors import UsageError, printable

Asked = tuple[Place, dict[str, Any], Reply]


def describe_query(journal: Journal, name: str) -> str:
    """Return what a query says, every draft of every layer in order, and how it ended.

    Where several runs had it, it is told of the one that was last at work.

    Raises:
        UsageError: If the journal has no such query.
    """
    turns = journal.turns(name)
    if turns is None:
        ids = list(journal.ids())
        close = get_close_matches(name, ids, n=1, cutoff=0.5) or ids[:5]
        raise UsageError(
            f"{journal.path}: no query {name!r} among its {len(ids)}, such as {', '.join(close)}"
        )
    runs = journal.runs_of(name)
    run = runs[-1] if runs else None
    outcomes = [] if run is None else journal.outcomes_of(name, run)
    parts = [f"query {name}"]
    if len(runs) > 1:
        parts.append(f"(of {len(runs)} runs that had it, the one that was last at work)")
    if len(outcomes) > 1:
        parts.append(f"({len(outcomes)} rows have this id: their drafts stand side by side)")
    drafts = {
        place: list(_drafts(asked))
        for place, asked in groupby(
            journal.replies(name, run), key=lambda asked: (asked[0].turn, asked[0].layer)
        )
    }
    given = [text for outcome in outcomes for text in _given(outcome)]
    if given:
        drafts[0, 0] = given + drafts.get((0, 0), [])
    events: dict[tuple[int, int], list[str]] = {}
    for event in (event for outcome in outcomes for event in outcome["events"]):
        told = events.setdefault((event["turn"], event["layer"]), [])
        told.append(f"  draft {event['slot']}: {printable(event['event'])}")
    for turn, said in enumerate(turns):
        parts += [f"\n{_rule(f'turn {turn}')}"]
        parts += [f"[{message['role']}] {printable(message['content'])}" for message in said]
        for place in sorted({*drafts, *events}):
            if place[0] == turn:
                parts.append(f"\n{_rule(f'turn {turn}, layer {place[1]}', '-')}")
                parts += drafts.get(place, []) + events.get(place, [])
    parts += [f"\n{_rule('outcome')}", *_outcomes(outcomes)]
    return "\n".join(parts)


def _drafts(asked: Iterable[Asked]) -> Iterator[str]:
    for place, request, reply in asked:
        usage = reply.usage
        sampling = request["sampling"]
        cached = "" if usage.cached is None else f" ({usage.cached} cached)"
        again = f", resampling {place.attempt}" if place.attempt else ""
        yield (
            f"{request['model']}: seed {request['seed']}{again}, "
            f"temperature {sampling['temperature']}, top_p {sampling['top_p']}; "
            f"{_known(usage.prompt)} tokens of prompt{cached}, {_known(usage.completion)} written"
        )
        for i, completion in enumerate(reply.completions):
            head = f"  draft {place.slot + i} ({completion.finish_reason})"
            yield f"{head}: {_indented(completion.text)}"


def _given(outcome: dict[str, Any]) -> Iterator[str]:
    """Tell the drafts that were not drawn; earlier journals have none."""
    for i, text in enumerate(outcome.get("given", ())):
        yield f"  draft {i} (a proposal of the row): {_indented(text)}"


def _outcomes(outcomes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Tell the answers, how they were chosen, and the problem if there is one."""
    for outcome in outcomes:
        reasons, details = outcome["finish_reasons"], outcome["details"]
        for text, reason, detail in zip(outcome["answers"], reasons, details, strict=True):
            yield f"answer ({reason}): {_indented(text)}"
            for name, value in detail.items():
                yield f"  {name}: {printable(orjson.dumps(value).decode())}"
        if outcome["problem"] is not None:
            yield f"rejected: {outcome['about']}: {printable(outcome['problem'])}"
    if not outcomes:
        yield "not done yet"


def _rule(title: str, line: str = "=") -> str:
    return f"{line * 4} {title} {line * max(4, 72 - len(title))}"


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)


def _indented(text: str) -> str:
    return printable(text).strip().replace("\n", "\n      ") or "(empty)"

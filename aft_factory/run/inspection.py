"""Looking into a journal: a query's layers, drafts and answer, for a person to read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from aft_factory.asking.journal import Journal, Place
from aft_factory.engines.sampling import Prompt, Reply
from aft_factory.errors import UsageError, printable
from aft_factory.records.tables import is_table, read_rows
from aft_factory.run.replaying import Prompts
from aft_factory.stage.output import read_report

SQLITE = b"SQLite format 3\0"
Asked = tuple[Place, dict[str, Any], Reply]


def journal_of(path: Path) -> Path:
    """Return the journal of an output; of a journal, itself.

    Raises:
        UsageError: If the output is merged, and so has none.
    """
    with contextlib.suppress(OSError), path.open("rb") as stream:
        if stream.read(len(SQLITE)) == SQLITE:
            return path
    report = read_report(path)
    kept = report.get("settings", {}).get("journal")
    beside = Path(f"{path}.journal")
    parts = report.get("session", {}).get("parts")
    if parts and path.exists() and not beside.exists():
        told = f"merged from {', '.join(parts)}, and each of these has its own journal"
        raise UsageError(f"{path}: {told}; name one of them")
    if kept:  # a folder may have been moved since, with all that is in it
        moved = path.with_name(Path(kept).name)
        return Path(kept) if Path(kept).exists() or not moved.exists() else moved
    return beside if path.exists() or beside.exists() else path


def first_id(path: Path, journal: Journal) -> str:
    """Return the id of an output's first row; of a journal's, the first of all.

    Raises:
        UsageError: If there is none.
    """
    first = next(read_rows(str(path)), None) if is_table(str(path)) and path.exists() else None
    name = first.value["id"] if first is not None else next(journal.ids(), None)
    if name is None:
        raise UsageError(f"{path}: there is no query in it")
    return str(name)


def describe_query(journal: Journal, name: str, prompts: Prompts | None = None) -> str:
    """Return what a query says, every draft of every layer in order, and how it ended.

    Where several runs had it, it is told of the one that was last at work.

    Args:
        journal: Has it.
        name: Its id.
        prompts: What was asked, to be shown too.

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
        for place in sorted({*drafts, *events, *(prompts or {})}):
            if place[0] == turn:
                parts.append(f"\n{_rule(f'turn {turn}, layer {place[1]}', '-')}")
                shortened = any(event.endswith("shortened") for event in events.get(place, ()))
                parts += _asked((prompts or {}).get(place, {}), shortened=shortened)
                parts += drafts.get(place, []) + events.get(place, [])
    parts += [f"\n{_rule('outcome')}", *_outcomes(outcomes)]
    return "\n".join(parts)


def _asked(prompts: Mapping[int, Prompt], *, shortened: bool) -> Iterator[str]:
    """Tell the prompts of a layer, each once."""
    whole = " (drafts that were shortened stand here as they were)" if shortened else ""
    for prompt, slots in groupby(sorted(prompts), key=prompts.__getitem__):
        yield f"prompt of draft {', '.join(map(str, slots))}{whole}:"
        if isinstance(prompt, str):
            yield f"    {_indented(prompt)}"
        else:
            yield from (f"    [{said['role']}] {_indented(said['content'])}" for said in prompt)


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

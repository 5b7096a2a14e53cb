"""Looking into a journal: a query's layers, drafts and answer, for a person to read."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import groupby

from aft_factory.errors import UsageError
from aft_factory.journal import Journal


def describe_query(journal: Journal, name: str) -> str:
    """Return what a query says and every draft of every layer, in order.

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
    parts = [f"query {name}"]
    by_layer = {
        place: list(rows)
        for place, rows in groupby(
            journal.replies(name), key=lambda row: (row[0].turn, row[0].layer)
        )
    }
    for turn, said in enumerate(turns):
        parts += [f"\n{_rule(f'turn {turn}')}"]
        parts += [f"[{message['role']}] {_shown(message['content'])}" for message in said]
        for (at, layer), rows in by_layer.items():
            if at != turn:
                continue
            parts.append(f"\n{_rule(f'turn {turn}, layer {layer}', '-')}")
            for place, request, reply in rows:
                usage = reply.usage
                sampling = request["sampling"]
                again = f", resampling {place.attempt}" if place.attempt else ""
                parts.append(
                    f"{request['model']}: seed {request['seed']}{again}, "
                    f"temperature {sampling['temperature']}, top_p {sampling['top_p']}; "
                    f"{usage.prompt} tokens of prompt ({usage.cached} cached), "
                    f"{usage.completion} written"
                )
                for i, completion in enumerate(reply.completions):
                    head = f"  draft {place.slot + i} ({completion.finish_reason})"
                    parts.append(f"{head}: {_indented(completion.text)}")
    return "\n".join(parts)


def _rule(title: str, line: str = "=") -> str:
    return f"{line * 4} {title} {line * max(4, 72 - len(title))}"


def _indented(text: str) -> str:
    return _shown(text).strip().replace("\n", "\n      ") or "(empty)"


def _shown(text: str) -> str:
    """Spell out control characters: a model's text must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)

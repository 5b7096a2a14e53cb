"""A query as the page has it: its layers, what each draft read, its prompts in parts. Pure.

{"id", "seed", "turns": [[message]], "reference", "target", "right", "voted", "done", "problem",
 "grading", "verdicts": [[turn, of what, value]],
 "answers", "details", "events", "exact", "chosen": [[layer, slot]],
 "layers": [{"turn", "layer", "usage", "seconds",
             "drafts": [{"slot", "text", "thought", "finish", "cut", "tokens", "model",
                         "told", "reads": [[layer, slot]], "tries": [draft], "lost", "given"}],
             "prompts": [{"slots", "messages": [{"role", "parts": [text | draft's place]}]}]}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from aft_factory.engines.sampling import Completion, Prompt, Usage
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.prompts.markers import known_markers
from aft_factory.records.messages import Message
from aft_factory.records.record import Row
from aft_factory.report.grading import Grading
from aft_factory.report.layers import voted
from aft_factory.run.replaying import Attempt, Replayed, Where


def described(query: Query, outcome: Outcome | None, found: Replayed, grading: Grading) -> Row:
    """Return a query as the page has it.

    Args:
        query: What was asked.
        outcome: How it ended; None if it has not.
        found: Of the journal, by running it again.
        grading: How its answer is told.
    """
    ended = outcome or Outcome()
    tell, target = grading.canonical(), grading.target
    votes = any("votes" in detail for detail in ended.details)
    layers = []
    drawn = (place for place, drafts in found.drafts.items() if drafts)
    for turn, layer in sorted({*drawn, *found.attempts}):
        drafts = list(_drafts(found, (turn, layer), ended.given if not turn else ()))
        if target is not None or votes:
            for draft in drafts:
                draft["told"] = tell(draft["text"], not draft["cut"])
        layers.append(
            {
                "turn": turn,
                "layer": layer,
                "drafts": drafts,
                "prompts": list(_prompts(found, (turn, layer), ended)),
                **_took(found, (turn, layer), ended),
            }
        )
    last = tell(ended.answers[-1], True) if ended.answers and target is not None else None
    first = layers[0]["drafts"] if len(layers) > 1 else []
    vote = voted([draft.get("told") for draft in first if not draft.get("lost")])
    return {
        "id": query.id,
        "seed": query.seed,
        "turns": query.turns,
        "reference": grading.reference,
        "target": target,
        "grading": grading.told,
        "verdicts": list(grading.verdicts),
        "right": None if outcome is None else grading.is_right(last),
        "voted": None if target is None or not first else vote == target,
        "done": outcome is not None,
        "problem": ended.problem,
        "answers": ended.answers,
        "details": ended.details,
        "events": ended.events,
        "exact": found.exact,
        "chosen": found.chosen,
        "layers": layers,
    }


def _drafts(found: Replayed, place: tuple[int, int], given: Sequence[str]) -> Iterator[Row]:
    """Go through the drafts of a layer, by slot: those used, and those of which none was."""
    used, attempts = found.drafts.get(place, {}), found.attempts.get(place, {})
    reads = found.reads.get(place, {})
    for slot in sorted({*used, *attempts}):
        tries = list(attempts.get(slot, ()))
        if slot in used:
            row = _draft(used[slot], _own(tries, used[slot]))
        else:
            last = tries.pop()
            row = _draft(last.completion, last) | {"lost": True}
        row = {"slot": slot, **row, "reads": reads.get(slot, [])}
        if place[1] == 0 and given:
            row["given"] = True
        if tries:
            row["tries"] = [_draft(one.completion, one) for one in tries]
        yield row


def _own(tries: list[Attempt], used: Completion) -> Attempt | None:
    """Take out of the attempts the one that is used."""
    restore = known_markers().restore
    for attempt in reversed(tries):
        if restore(attempt.completion.text) == restore(used.text):
            tries.remove(attempt)
            return attempt
    return tries.pop() if tries else None


def _draft(completion: Completion, attempt: Attempt | None) -> Row:
    return {
        "text": completion.text,
        "thought": completion.thought,
        "finish": completion.finish_reason,
        "cut": not completion.whole,
        "tokens": completion.tokens,
        "model": attempt and attempt.request["model"],
        "temperature": attempt and attempt.request["sampling"]["temperature"],
    }


def _prompts(found: Replayed, place: tuple[int, int], outcome: Outcome) -> Iterator[Row]:
    """Go through the prompts of a layer, each once."""
    prompts, reads = found.prompts.get(place, {}), found.reads.get(place, {})
    kept = {
        one["slot"]: one["kept"]
        for one in outcome.shortened
        if (one["turn"], one["layer"]) == place
    }
    for prompt, group in groupby(sorted(prompts), key=prompts.__getitem__):
        slots = list(group)
        read = [
            (at, found.drafts.get((place[0], at[0]), {})[at[1]]) for at in reads.get(slots[0], ())
        ]
        yield {
            "slots": slots,
            "messages": [
                {"role": said["role"], "parts": _parts(said["content"], read, kept.get(slots[0]))}
                for said in _said(prompt)
            ],
        }


def _said(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt


def _parts(
    content: str, read: Sequence[tuple[Where, Completion]], kept: Sequence[int] | None
) -> list[Any]:
    """Take a message apart: its own text, and in the place of each draft where that stands.

    A draft that was shortened is followed by how many of its characters were kept, as JavaScript
    counts them.
    """
    sanitise = known_markers().sanitise
    parts: list[Any] = []
    rest = content
    for i, (at, draft) in enumerate(read):
        text = sanitise(draft.text)
        before, stands, after = rest.partition(text) if text.strip() else (rest, "", "")
        if not stands:
            continue
        cut = []
        if kept and i < len(kept) and kept[i] < len(draft.text):
            cut = [len(draft.text[: kept[i]].encode("utf-16-le", "surrogatepass")) // 2]
        parts += [before, [*at, *cut]]
        rest = after
    return [part for part in (*parts, rest) if part != ""]


def _took(found: Replayed, place: tuple[int, int], outcome: Outcome) -> Row:
    """Return the tokens and seconds of a layer."""
    attempts = (one for tries in found.attempts.get(place, {}).values() for one in tries)
    requests = {one.request["key"]: one for one in attempts}
    seconds = [one.request.get("seconds") for one in requests.values()]
    usage = outcome.layer_usage.get(place) or sum((o.usage for o in requests.values()), Usage())
    return {
        "requests": len(requests),
        "seconds": sum(filter(None, seconds)) if seconds and None not in seconds else None,
        "prompt": usage.prompt,
        "written": usage.completion,
    }

"""The prompts of a query, made anew from its journal, which keeps the drafts in them once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.sampling import Completion, Prompt, Reply, Request, Usage
from aft_factory.errors import UsageError
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.settings import RunSettings
from aft_factory.stage.kept import kept_settings

Prompts = dict[tuple[int, int], dict[int, Prompt]]  # by (turn, layer): by slot


class _Replay:
    """In the place of an `Asker`: answers from the journal, and notes what was asked."""

    def __init__(self, completions: dict[Place, Completion]) -> None:
        self._completions = completions
        self.prompts: Prompts = {}

    async def ask(self, request: Request, place: Place, *_: object) -> Reply:
        """Return what the journal has; what comes after something it has not is not asked."""
        slots = range(place.slot, place.slot + request.n)
        asked = self.prompts.setdefault((place.turn, place.layer), {})
        asked |= dict.fromkeys(slots, request.prompt)
        places = [Place(place.query, place.turn, place.layer, i, place.attempt) for i in slots]
        if not all(at in self._completions for at in places):
            raise Stopped("the journal has no more of it")
        return Reply(tuple(self._completions[at] for at in places), Usage())


def prompts_of(journal: Journal, name: str) -> Prompts:
    """Return what was asked for a query by the journal's last run, drafts unshortened.

    Raises:
        UsageError: If the last run had no such query, or was none of `aft run`.
    """
    turns, last = journal.turns(name), journal.last_run()
    settings = kept_settings(journal.path, RunSettings(), ())
    if turns is None or last is None or (run := journal.run_of(last)) not in journal.runs_of(name):
        raise UsageError(f"{journal.path}: its last run, whose prompts are known, had no {name!r}")
    completions = {
        Place(at.query, at.turn, at.layer, at.slot + i, at.attempt): completion
        for at, _, reply in journal.replies(name, run)
        for i, completion in enumerate(reply.completions)
    }
    replay = _Replay(completions)
    strategy = STRATEGIES[settings.strategy]
    runner = Runner(
        strategy,
        settings.options(),
        settings.drafting(),
        cast(Any, replay),
        "",
        {},
        score=_unscored if "score" in strategy.needs else None,
    )
    with contextlib.suppress(Stopped):  # where the run was
        asyncio.run(runner.answer(Query(name, turns, {})))
    return replay.prompts


async def _unscored(*_: Any) -> Any:
    raise Stopped("nothing is asked after scores")

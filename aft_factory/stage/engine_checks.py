"""What is found out of engines, and told, before anything is paid for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aft_factory.engines.engine import Engine
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.sampling import Sampling
from aft_factory.errors import UsageError
from aft_factory.prompts.habits import asks_for_thoughts
from aft_factory.prompts.probing import ChatTemplate

_log = logging.getLogger(__name__)


def tell_of_script(made: str, named: str | None) -> None:
    """Say that no model is asked, nor one that is named beside it."""
    who = f"{named} is not" if named else "no model is"
    _log.warning("--scripted: %s asked, the %s are made up", who, made)


def tell_of_thoughts(engines: Mapping[str, Engine], samplings: Iterable[Sampling]) -> None:
    """Say whose chat template asks for thoughts where the aggregator prompt will stand."""
    shown = [_variables(sampling) for sampling in samplings]
    for engine in engines.values():
        if any(asks_for_thoughts(engine.tokenizer, engine.chat_template, k) for k in shown):
            _log.warning(
                "%s is asked for thoughts by its chat template's own system message, which the "
                "aggregator prompt stands in the place of: aggregations may come without",
                engine.model,
            )


async def without_system(engines: Mapping[str, Engine]) -> frozenset[str]:
    """Return whose models take no system message, and say so."""
    takes = await gather_or_cancel(engine.takes_system() for engine in engines.values())
    found = frozenset(name for name, yes in zip(engines, takes, strict=True) if not yes)
    for name in sorted(found):
        _log.warning(
            "%s takes no system message: what would be one, such as the aggregator prompt, opens "
            "the user's first turn",
            engines[name].model,
        )
    return found


def check_variables(
    engines: Mapping[str, Engine], samplings: Iterable[Sampling], *, served: bool
) -> None:
    """Tell of a variable that a chat template is handed in vain, as it does not know it.

    Raises:
        UsageError: Of an engine here; a server (`served`) may have another chat template.
    """
    asked = {name for sampling in samplings for name in _variables(sampling)}
    for engine in engines.values() if asked else ():
        known = ChatTemplate(engine.chat_template or "").variables
        if engine.chat_template is None or not (unknown := sorted(asked - known)):
            continue
        told = (
            f"sampling_args: chat_template_kwargs has {unknown[0]!r}, of which the chat template "
            f"of {engine.model} knows nothing; its variables are {', '.join(sorted(known))}"
        )
        if not served:
            raise UsageError(told)
        _log.warning("%s", told)
        return


def check_room(engines: Mapping[str, Engine], samplings: Iterable[Sampling]) -> None:
    """Check that answers of these lengths leave room for a prompt.

    Raises:
        UsageError: If one does not.
    """
    longest = max(sampling.max_tokens for sampling in samplings)
    for engine in engines.values():
        if engine.context is not None and longest >= engine.context:
            raise UsageError(
                f"max_tokens {longest} leaves no room for a prompt: the context of "
                f"{engine.model} is {engine.context} tokens; lower --max-tokens and "
                "--final-max-tokens (or give --context, where a server has more than it tells)"
            )


def _variables(sampling: Sampling) -> dict[str, Any]:
    """Return what the chat template is handed."""
    return sampling.extra.get("chat_template_kwargs") or {}

"""Which of several servers are asked for a model, by what they say that they offer."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_replies import whole
from aft_factory.engines.openai_server import Server
from aft_factory.errors import UsageError, suggest

# How lists of models call a context: most say `context_length`, vLLM and SGLang `max_model_len`.
CONTEXT = re.compile(r"max_(?:model|seq)_len|(?:max_)?context_(?:len(?:gth)?|size|window)|n_ctx")

_log = logging.getLogger(__name__)


async def choose(servers: list[Server], model: str | None) -> tuple[list[Server], str, int | None]:
    """Return the servers to ask, the model's name and its context: the smallest that one tells."""
    for server in servers:
        server.alone = len(servers) == 1
    answers = await asyncio.gather(*(s.models() for s in servers), return_exceptions=True)
    offers: dict[Server, list[dict[str, Any]]] = {}
    problems = []
    for server, answer in zip(servers, answers, strict=True):
        if isinstance(answer, EngineError):
            if answer.kind == "fatal":
                raise UsageError(f"{answer}; set OPENAI_API_KEY to a key that may use it")
            where = "" if answer.problem.startswith(server.url) else f"{server.url}: "
            problems.append(where + answer.problem)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            offers[server] = answer
    if not offers:
        raise UsageError(f"expected a running server, but none answers: {'; '.join(problems)}")
    names = sorted(set().union(*map(_ids, offers.values())))
    if model is None:
        if len(names) != 1:
            offered = ", ".join(names) or "no list (does the URL end in /v1?)"
            raise UsageError(f"expected the name of one model; the servers offer {offered}")
        model = names[0]
    without = [s for s, offer in offers.items() if offer and model not in _ids(offer)]
    if len(without) == len(offers):
        # vLLM and its like serve just what they list; others know aliases, or take any name.
        without = [s for s in without if any("max_model_len" in e for e in offers[s])]
    if len(without) == len(offers):
        raise UsageError(f"no server offers the model {model!r}; {suggest(model, names)}")
    for server in without:
        _log.warning("%s is left out: it does not offer the model %s", server.url, model)
        await server.client.close()
        del offers[server]
    contexts = []
    for offer in offers.values():
        own = [e for e in offer if e["id"] == model and _context_in(e)]
        like_vllm = [e for e in offer if e.get("max_model_len")]  # whose adapters tell none
        contexts += [length for e in own or like_vllm if (length := _context_in(e))]
    kept = [server for server in servers if server not in without]
    await asyncio.gather(*(s.learn_fields(offers[s]) for s in kept if s in offers))
    for server in kept:
        server.alone = len(kept) == 1
    return kept, model, min(contexts, default=None)


def _context_in(entry: dict[str, Any]) -> int | None:
    """Return the context that a list tells of a model: the smallest, where it tells several."""
    parts = [entry, *(part for part in entry.values() if isinstance(part, dict))]
    told = (whole(part[name]) for part in parts for name in part if CONTEXT.fullmatch(name))
    return min(filter(None, told), default=None)


def _ids(offer: list[dict[str, Any]]) -> set[str]:
    return {entry["id"] for entry in offer}

"""Room: what fits a model's context, and how long an answer to it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from aft_factory.engines.sampling import Sampling
from aft_factory.prompts.fitting import Conversation, Fitter
from aft_factory.prompts.shortening import DoesNotFit, Fitted

MOST_TOKENS = 1 << 30  # where the context is not known
LEAST_ANSWER = 256  # tokens: with room for fewer, a query is not asked

Fitters = Mapping[str, Fitter]  # by model; the limit of each is its model's whole context


def fitter_of(fitters: Fitters, model: str | None, sampling: Sampling) -> Fitter | None:
    """Return what fits prompts beside their answers, rendered as the engine will render them."""
    fitter = fitters.get(model or "")
    if fitter is None or fitter.limit is None:
        return None
    kwargs = sampling.extra.get("chat_template_kwargs") or {}
    return fitter.but(limit=fitter.limit - sampling.max_tokens, kwargs=kwargs)


def room_behind(fitters: Fitters, model: str | None, prompt: Sequence[int] | None) -> int:
    """Return the most tokens that an answer may have behind a prompt."""
    fitter = fitters.get(model or "")
    if fitter is None or fitter.limit is None or prompt is None:
        return MOST_TOKENS
    return fitter.limit - len(prompt)


def fitted_for(
    fitter: Fitter, row: Conversation, sampling: Sampling
) -> tuple[Fitted | DoesNotFit, Sampling]:
    """Fit a conversation; one that leaves too little room for its answer gets a shorter one."""
    [fitted] = fitter.fit_all([row])
    if isinstance(fitted, DoesNotFit) and fitter.limit is not None:
        context = fitter.limit + sampling.max_tokens
        least = min(sampling.max_tokens, LEAST_ANSWER)
        [fitted] = fitter.but(limit=context - least).fit_all([row])
        if not isinstance(fitted, DoesNotFit):
            sampling = replace(sampling, max_tokens=context - fitted.tokens)
    return fitted, sampling

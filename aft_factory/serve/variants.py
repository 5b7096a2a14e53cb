"""The models on offer: named settings of one model, and what a request makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from aft_factory.errors import UsageError, suggest
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.strategy import Strategy
from aft_factory.serve.asked import Asked
from aft_factory.serve.refusals import Refusal, wrong
from aft_factory.serve.settings import ServeSettings

MOST_KEPT = 256  # of variants that clients made up, and had checked


@dataclass(frozen=True, slots=True)
class Variant:
    """A model on offer, or one that a client made of it.

    Attributes:
        name: Of the model on offer.
        strategy: How it answers.
        options: All options of the strategy.
        drafting: Prompts, sampling and policies.
    """

    name: str
    strategy: Strategy
    options: Mapping[str, Any]
    drafting: DraftingOptions

    @classmethod
    def of(cls, name: str, settings: ServeSettings) -> Variant:
        """Return the variant that settings describe.

        A text of the final layer that is the answer is used though it was cut off, as its reader is
        told so: what was streamed cannot be taken back.
        """
        drafting = settings.drafting()
        final = replace(drafting.policy, truncated="keep", filtered="keep")
        return cls(
            name,
            STRATEGIES[settings.strategy],
            settings.options(),
            replace(drafting, final_policy=final),
        )

    @property
    def title(self) -> str:
        """What it is, for people."""
        if self.options.get("layers") == 0:
            return f"{self.name}: no drafts"
        words = {"width": "draft", "layers": "layer"}
        told = [
            f"{count} {words[option]}" + ("" if count == 1 else "s")
            if option in words
            else f"{option} {count}"
            for option, count in self.options.items()
            if isinstance(count, int)
        ]
        return f"{self.name}: {', '.join(told)}"


class Variants:
    """The models on offer.

    Attributes:
        listed: By name.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._of_names = {
            name: settings.varied(changes) for name, changes in settings.all_variants().items()
        }
        self.listed = {name: Variant.of(name, one) for name, one in self._of_names.items()}
        self._made: dict[bytes, Variant] = {}

    def chosen(self, asked: Asked) -> Variant:
        """Return what a request wants: of body, suffix and name, the first counts.

        Raises:
            Refusal: If there is no such model, or it cannot be had so.
        """
        name = asked.model or next(iter(self.listed))
        numbers: Mapping[str, int] = {}
        if name not in self.listed:
            base = self._settings.base_of(name)
            if base is None:
                known = suggest(name, self.listed)
                raise Refusal(404, f"no model {name!r}; {known}", "model_not_found", "model")
            name, numbers = base
        changes = {**numbers, **asked.changes}
        if not changes:
            return self.listed[name]
        key = orjson.dumps([name, changes], option=orjson.OPT_SORT_KEYS)
        if key not in self._made:
            made = self._make(name, changes)
            while len(self._made) >= MOST_KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return self._made[key]

    def _make(self, name: str, changes: Mapping[str, Any]) -> Variant:
        base = self._of_names[name]
        strategy = changes.get("strategy", base.strategy)
        unmet = (
            STRATEGIES[strategy].needs - self._settings.needs() if strategy in STRATEGIES else {}
        )
        if unmet:
            raise wrong("aft.strategy", f"{strategy} needs what this server has not: {min(unmet)}")
        try:
            settings = base.varied(changes)
        except UsageError as error:
            raise wrong("aft", str(error).replace("\n", "; ")) from None
        variant = Variant.of(name, settings)
        if variant.strategy.has_final:  # what is said of drafts is not said of the answer
            drafting = replace(variant.drafting, final=base.final())
            variant = replace(variant, drafting=drafting)
        limits = {"width": self._settings.max_width, "layers": self._settings.max_layers}
        for option, most in limits.items():
            got = variant.options.get(option, 0)
            if got > most and changes.keys() & {option, "strategy"}:
                raise wrong(f"aft.{option}", f"this server does up to {most}, got {got}")
        return variant

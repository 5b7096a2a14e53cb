"""Accounting: tokens by kind and layer, and what they cost in FLOPs: exactly, and by the paper.

Appendix C (2501.11877): a token costs 2 x (parameters + 2 x layers x hidden x context) FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from aft_factory.engines.sampling import Reply, Usage
from aft_factory.errors import MissingPackage, UsageError


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """What the requests of a layer took; None is unknown.

    Attributes:
        requests: Requests answered, as they were sent.
        samples: Completions of them.
        prompt: Tokens of the prompts, each counted as often as it was read: once for n samples.
        cached: Those that the engine had computed before.
        completion: Tokens written.
        attended: Sum of the positions of all tokens computed: what attention costs. Where a server
            tells only the sum of n completions, each is taken to have an n-th of it.
    """

    requests: int = 0
    samples: int = 0
    prompt: int | None = 0
    cached: int | None = 0
    completion: int | None = 0
    attended: int | None = 0

    @classmethod
    def of(cls, reply: Reply) -> LayerUsage:
        """Count one reply."""
        usage, n = reply.usage, len(reply.completions)
        return cls(
            reply.readings, n, usage.prompt, usage.cached, usage.completion, _attended(reply)
        )

    def __add__(self, other: LayerUsage) -> LayerUsage:
        pairs = zip(astuple(self), astuple(other), strict=True)
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return LayerUsage(*sums)

    @property
    def usage(self) -> Usage:
        """The tokens alone."""
        return Usage(self.prompt, self.cached, self.completion)

    @property
    def computed(self) -> int | None:
        """Tokens that went through the model: of prompts, less the cached ones, and written."""
        if self.prompt is None or self.completion is None:
            return None
        return self.prompt - (self.cached or 0) + self.completion


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reward model read; None is unknown.

    Attributes:
        pairs: Of a conversation and a response.
        tokens: Of them all, as if nothing were cached.
        attended: Sum of the positions of these.
    """

    pairs: int = 0
    tokens: int | None = 0
    attended: int | None = 0

    @classmethod
    def of(cls, lengths: Iterable[int | None]) -> Scored:
        """Count pairs of these lengths; one that is None could not be read."""
        read = [length for length in lengths if length is not None]
        return cls(len(read), sum(read), round(sum(_positions(0, length) for length in read)))

    def __add__(self, other: Scored) -> Scored:
        pairs = zip(astuple(self), astuple(other), strict=True)
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return Scored(*sums)


def _attended(reply: Reply) -> int | None:
    prompt, cached, written = reply.usage.prompt, reply.usage.cached or 0, reply.usage.completion
    if prompt is None or written is None:
        return None
    share, size = written / len(reply.completions), prompt / reply.readings
    lengths = [share if c.tokens is None else c.tokens for c in reply.completions]
    read = reply.readings * _positions(cached / reply.readings, size)
    return round(read + sum(_positions(size, size + n) for n in lengths))


def _positions(start: float, end: float) -> float:
    """start+1 + start+2 + ... + end."""
    return (end * (end + 1) - start * (start + 1)) / 2 if end > start else 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the FLOPs of a transformer depend on.

    Attributes:
        parameters: Number of weights.
        layers: Transformer layers.
        hidden: Width of a token's vector.
    """

    parameters: int
    layers: int
    hidden: int

    @classmethod
    def load(cls, name: str, *, classifier: bool = False) -> ModelShape:
        """Read the shape of a model in a folder or on the hub; loads no weights.

        Args:
            name: Folder or name.
            classifier: Whether it is a reward model, which has a score for a vocabulary.

        Raises:
            MissingPackage: If transformers is not installed.
            UsageError: If there is no such model.
        """
        try:
            import torch
            from transformers import (
                AutoConfig,
                AutoModelForCausalLM,
                AutoModelForSequenceClassification,
            )
        except ImportError:
            raise MissingPackage("counting FLOPs", "transformers torch") from None
        try:
            config = AutoConfig.from_pretrained(name)
            kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
            with torch.device("meta"):
                model = kind.from_config(config)
        except Exception as error:  # its readers raise anything
            raise UsageError(f"cannot read the shape of the model {name!r}: {error}") from error
        text = config.get_text_config()
        return cls(model.num_parameters(), text.num_hidden_layers, text.hidden_size)

    def flops(self, computed: int, attended: int) -> int:
        """Return the FLOPs of tokens: how many were computed, and the sum of their positions."""
        return 2 * (self.parameters * computed + 2 * self.layers * self.hidden * attended)

    def appendix_c(
        self, strategy: str, width: int, layers: int, written: float, context: float
    ) -> float | None:
        """Return the FLOPs of one query by appendix C; None for a strategy it does not cover.

        Args:
            strategy: Name of the strategy.
            width: K.
            layers: L.
            written: Tokens of one completion, on average.
            context: Tokens a completion stands behind and in, on average.
        """
        vanilla = written * 2 * (self.parameters + 2 * self.layers * self.hidden * context)
        match strategy:
            case "propose_and_aggregate":
                return (2 * layers * width + 1) * vanilla
            case "sequential_revision":
                return (2 * layers + 1) * vanilla
            case "parallel_sampling":
                return (2 * width + 1) * vanilla
            case "best_of_n":
                return 2 * width * vanilla
            case _:
                return None

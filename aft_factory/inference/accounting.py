"""What tokens cost in FLOPs: exactly, and by the paper.

Appendix C (2501.11877): a token costs 2 x (parameters + 2 x layers x hidden x context) FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from aft_factory.errors import needing
from aft_factory.prompts.tokenizer import Pretrained


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
    def load(
        cls, source: str | Pretrained, *, classifier: bool = False, here: bool = False
    ) -> ModelShape:
        """Read the shape of a model in a folder or on the hub; loads no weights.

        Args:
            source: Folder or name, or how it is loaded.
            classifier: Whether it is a reward model, which has a score for a vocabulary.
            here: Look for it on this machine only, as for a name that may be none of the hub's.

        Raises:
            MissingPackage: If transformers is not installed.
            UsageError: If there is no such model.
        """
        with needing("counting FLOPs", "transformers torch"):
            import torch
            from transformers import (
                AutoConfig,
                AutoModelForCausalLM,
                AutoModelForSequenceClassification,
            )
        source = Pretrained.of(source)
        try:
            config = source.loaded_by(AutoConfig, local_files_only=here)
            kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
            code = bool(source.options.get("trust_remote_code"))
            with torch.device("meta"):
                model = kind.from_config(config, trust_remote_code=code)
        except Exception as error:
            raise source.explained("the shape of the model", error) from error
        text = config.get_text_config()
        return cls(model.num_parameters(), text.num_hidden_layers, text.hidden_size)

    def flops(self, computed: int, attended: int) -> int:
        """Return the FLOPs of tokens: how many were computed, and the sum of their positions."""
        return 2 * (self.parameters * computed + 2 * self.layers * self.hidden * attended)

    def appendix_c(self, written: float, context: float) -> float:
        """Return the FLOPs of one completion by appendix C, in which `Strategy.flops` counts.

        Args:
            written: Tokens of one completion, on average.
            context: Tokens a completion stands behind and in, on average.
        """
        return written * 2 * (self.parameters + 2 * self.layers * self.hidden * context)

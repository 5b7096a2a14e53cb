"""The settings of every command that takes a --tokenizer, and its loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.stage.declaring import setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


TOKENIZER = "the tokenizer"  # heading of `--help`


@dataclass(frozen=True)
class TokenizerSettings:
    """How a tokenizer is loaded; see the help texts.

    To be mixed into a command's settings, which name it: hence no slots, as for rewards.
    """

    tokenizer_revision: str | None = setting(
        None, "of --tokenizer on the hub: branch, tag or commit", "REVISION", group=TOKENIZER
    )
    trust_remote_code: bool = setting(
        False, "run the Python code that --tokenizer brings", group=TOKENIZER
    )

    def tokenizer_problems(self, tokenizer: str | None) -> list[str]:
        """Return what is wrong with the settings, if that is what they are for."""
        engine = "; for a model in this process, say it by --engine-args"
        instead = engine if hasattr(self, "engine_args") else ""
        return [
            f"{name}: for the tokenizer that --tokenizer names{instead}"
            for name in ("tokenizer_revision", "trust_remote_code")
            if getattr(self, name) and tokenizer is None
        ]

    def loaded(self, tokenizer: str) -> PreTrainedTokenizerFast:
        """Load the tokenizer of that name.

        Raises:
            UsageError: If there is no such tokenizer.
        """
        return load_tokenizer(
            tokenizer,
            {"revision": self.tokenizer_revision, "trust_remote_code": self.trust_remote_code},
            code="--trust-remote-code",
        )

"""The settings of every command that takes a --tokenizer, and its loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aft_factory.errors import UsageError
from aft_factory.prompts.tokenizer import Pretrained, load_tokenizer
from aft_factory.stage.declaring import setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


TOKENIZER = "the tokenizer"  # heading of `--help`


def folder_problems(setting: str, revision: str | None, name: str | None) -> list[str]:
    """Return what is wrong with a revision, which transformers would not look at in a folder."""
    if revision is None or name is None or not Path(name).is_dir():
        return []
    return [f"{setting}: {name} is a folder, which has no revisions"]


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
        problems = [
            f"{name}: for the tokenizer that --tokenizer names{instead}"
            for name in ("tokenizer_revision", "trust_remote_code")
            if getattr(self, name) and tokenizer is None
        ]
        return problems + folder_problems("tokenizer_revision", self.tokenizer_revision, tokenizer)

    def tokenizer_source(self, tokenizer: str) -> Pretrained:
        """Return how the tokenizer of that name is loaded."""
        options = {"revision": self.tokenizer_revision, "trust_remote_code": self.trust_remote_code}
        return Pretrained(tokenizer, options, "--trust-remote-code")

    def loaded(self, tokenizer: str) -> PreTrainedTokenizerFast:
        """Load the tokenizer of that name.

        Raises:
            UsageError: If there is no such tokenizer, or it has no such revision.
        """
        if problems := folder_problems("tokenizer_revision", self.tokenizer_revision, tokenizer):
            raise UsageError(*problems)
        return load_tokenizer(self.tokenizer_source(tokenizer))

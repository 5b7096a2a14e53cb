"""Hugging Face tokenizers: loading one, finding its chat template and its control-token markers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aft_factory.errors import UsageError, needing
from aft_factory.network import environment_problems
from aft_factory.prompts.markers import MARKERS, Markers, markers_of
from aft_factory.prompts.prelude import chat_template, chat_templates, has_prelude
from aft_factory.prompts.probing import takes_system
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.records.files import read_text, unmarked
from aft_factory.records.hub import hub_silent, is_missing, waiting_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Pretrained(NamedTuple):
    """What transformers loads from a folder or from the hub, and how the user lets it.

    Attributes:
        name: Folder or name.
        options: Of `from_pretrained`, such as `revision`.
        code: What the user lets code that it brings be run by.
    """

    name: str
    options: Mapping[str, Any] = {}
    code: str | None = None

    @classmethod
    def of(cls, source: str | Pretrained) -> Pretrained:
        """Return how a model is loaded of which perhaps no more than the name was said."""
        return cls(source) if isinstance(source, str) else source

    @property
    def given(self) -> dict[str, Any]:
        """The options of which something was said."""
        return {key: value for key, value in self.options.items() if value is not None}

    def loaded_by(self, kind: Any, **more: Any) -> Any:
        """Load it by a class of transformers; code is run only if the options say so.

        Raises whatever its readers raise, down to KeyError; see `explained`.
        """
        if is_missing(self.name):
            raise FileNotFoundError("no such folder here")
        here = more.get("local_files_only")
        if silent := None if here else hub_silent(self.name):
            more |= {"local_files_only": True}  # it may have been fetched before
        try:
            with waiting_for(self.name):
                chosen = {"trust_remote_code": False, **self.given, **more}
                return kind.from_pretrained(self.name, **chosen)
        except Exception as error:
            if silent is None:
                raise
            raise ConnectionError(f"no such folder, and {silent}") from error

    def explained(self, what: str, error: Exception) -> UsageError:
        """Return the error that a user is shown where it cannot be loaded."""
        said = f"cannot load {what} {self.name!r}: {error}"
        if self.code is not None and "trust_remote_code" in str(error):
            said += f" (here: {self.code})"
        return UsageError("; ".join([said, *environment_problems()]))


def load_tokenizer(source: str | Pretrained) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or from the hub.

    Raises:
        MissingPackage: If transformers is not installed.
        UsageError: If there is no such tokenizer.
    """
    with needing("--tokenizer", "transformers"):
        from transformers import AutoTokenizer
    source = Pretrained.of(source)
    try:
        loaded: PreTrainedTokenizerFast = source.loaded_by(AutoTokenizer)
    except Exception as error:
        raise source.explained("the tokenizer", error) from error
    return loaded


def resolve_chat_template(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    flag: str = "--chat-template",
    *,
    own_first: bool = False,
) -> str:
    """Return the chat template: one that comes with us, `own`, `auto`, a path, or one of its names.

    `own` is, of several, the default. `auto` is the tokenizer's own if a training with our plugin
    has saved it; else what `templates/chat/auto.json` says of the vocabulary, else its own.

    Args:
        name: Which.
        tokenizer: Whose.
        flag: What the user sets it by.
        own_first: Whether of `auto` its own comes first, as for a model that is asked.

    Raises:
        UsageError: If it cannot be told, or there is none of that name.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    own = (named.get("default") if named else tokenizer.chat_template) or None
    if name == "auto":
        known = None
        if not (own and has_prelude(own)) and not (own_first and tokenizer.chat_template):
            known = known_vocabulary(tokenizer)
        name = known or "own"
    if name == "own":
        if own is not None:
            return unmarked(str(own))
        if named:
            names = ", ".join(sorted(named))
            raise UsageError(
                f"this tokenizer has several chat templates and none is its default; pass {flag} "
                f"with the name of one: {names}"
            )
        known = ", ".join(chat_templates())
        raise UsageError(f"this tokenizer has no chat template; pass {flag} {known} or a path")
    if name not in chat_templates():
        if name in named:
            return unmarked(str(named[name]))
        if Path(name).is_file():
            return read_text(Path(name))
    plain = chat_template(name, markers=Markers(()))
    return chat_template(name, markers=tokenizer_markers(tokenizer, plain))


def has_chat_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Tell whether `auto` finds one."""
    return bool(tokenizer.chat_template) or known_vocabulary(tokenizer) is not None


def known_vocabulary(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the chat template of ours that is for a tokenizer's vocabulary; None if none is."""
    vocabulary, has_own = tokenizer.get_vocab(), bool(tokenizer.chat_template)
    for name, about in json.loads(read_text(TEMPLATES / "chat" / "auto.json")).items():
        if about["token"] in vocabulary and (about["before_own"] or not has_own):
            return str(name)
    return None


def shows_system(tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> bool:
    """Tell whether a chat template shows system messages, and so do models under it."""
    return chat_template is None or takes_system(chat_template, tokenizer.special_tokens_map)


def tokenizer_markers(tokenizer: PreTrainedTokenizerFast, template: str | None) -> Markers:
    """Return the markers of a tokenizer under a chat template.

    They are its special tokens, those of its other added tokens that the template writes or that
    are known as markers (`<think>`), and what the template writes as plain text (`[INST]`).

    Args:
        tokenizer: Whose.
        template: The chat template or, for other than Jinja, the texts that it writes; None or ""
            where there is none.
    """
    template = template or ""
    tokens = [(str(t.content), t.special) for t in tokenizer.added_tokens_decoder.values()]
    control = {
        text
        for text, special in tokens
        if len(text) > 1
        and not text.isspace()
        and (special or text in template or text.startswith(MARKERS))
    }
    return markers_of(frozenset(control), template)

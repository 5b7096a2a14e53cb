"""Hugging Face tokenizers: loading one, finding its chat template and its control-token markers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.errors import MissingPackage, UsageError
from aft_factory.prompts.markers import MARKERS, Markers, markers_of
from aft_factory.prompts.prelude import chat_template, chat_templates, has_prelude
from aft_factory.prompts.probing import takes_system
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.records.files import read_text, unmarked
from aft_factory.records.network import environment_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(
    name: str, options: Mapping[str, Any] | None = None, *, code: str | None = None
) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or from the hub.

    Args:
        name: Folder or name.
        options: Of `from_pretrained`, such as `revision`; code that a tokenizer brings is run only
            if they say so, and nobody is asked at a terminal.
        code: What the user lets it be run by.

    Raises:
        MissingPackage: If transformers is not installed.
        UsageError: If there is no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackage("--tokenizer", "transformers") from None
    chosen = {"trust_remote_code": False} | {
        key: value for key, value in (options or {}).items() if value is not None
    }
    try:
        return AutoTokenizer.from_pretrained(name, **chosen)
    except Exception as error:  # its readers raise anything, down to KeyError
        said = f"cannot load the tokenizer {name!r}: {error}"
        if code is not None and "trust_remote_code" in str(error):
            said += f" (here: {code})"
        raise UsageError("; ".join([said, *environment_problems()])) from error


def own_chat_template(
    tokenizer: PreTrainedTokenizerFast, flag: str = "--chat-template"
) -> str | None:
    """Return a tokenizer's chat template, of several the default; None if it has none.

    Raises:
        UsageError: If it has several, and none of them is the default.
    """
    own = tokenizer.chat_template
    if own and isinstance(own, dict):
        if "default" not in own:
            names = ", ".join(sorted(own))
            raise UsageError(
                f"this tokenizer has several chat templates and none is its default; pass {flag} "
                f"with the name of one: {names}"
            )
        own = own["default"]
    return unmarked(str(own)) if own else None


def resolve_chat_template(
    name: str, tokenizer: PreTrainedTokenizerFast, flag: str = "--chat-template"
) -> str:
    """Return the chat template: one that comes with us, `own`, `auto`, a path, or one of its names.

    `auto` is the tokenizer's own if a training with our plugin has saved it; else what
    `templates/chat/auto.json` says of the vocabulary, else its own.

    Args:
        name: Which.
        tokenizer: Whose.
        flag: What the user sets it by.

    Raises:
        UsageError: If it cannot be told, or there is none of that name.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    own = (named.get("default") if named else tokenizer.chat_template) or None
    if name == "auto" and (own is None or not has_prelude(own)):
        has_own = bool(tokenizer.chat_template)
        name = _known_vocabulary(tokenizer, has_own=has_own) or name
    if name in ("auto", "own"):
        own = own_chat_template(tokenizer, flag)
        if own is None:
            known = ", ".join(chat_templates())
            raise UsageError(f"this tokenizer has no chat template; pass {flag} {known} or a path")
        return own
    if name not in chat_templates():
        if name in named:
            return unmarked(str(named[name]))
        if Path(name).is_file():
            return read_text(Path(name))
    plain = chat_template(name, markers=Markers(()))
    return chat_template(name, markers=tokenizer_markers(tokenizer, plain))


def _known_vocabulary(tokenizer: PreTrainedTokenizerFast, *, has_own: bool) -> str | None:
    """Return the chat template of ours that is for a tokenizer's vocabulary; None if none is."""
    vocabulary = tokenizer.get_vocab()
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

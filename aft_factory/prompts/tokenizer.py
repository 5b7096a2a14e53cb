"""Hugging Face tokenizers: loading one, finding its chat template and its control-token markers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aft_factory.errors import MissingPackage, UsageError
from aft_factory.prompts.markers import MARKERS, Markers, markers_of
from aft_factory.prompts.rendering import TEMPLATES, chat_template
from aft_factory.records.files import read_text, unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or from the hub.

    Raises:
        MissingPackage: If transformers is not installed.
        UsageError: If there is no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackage("--tokenizer", "transformers") from None
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # its readers raise anything, down to KeyError
        raise UsageError(f"cannot load the tokenizer {name!r}: {error}") from error


def resolve_chat_template(
    name: str, tokenizer: PreTrainedTokenizerFast, flag: str = "--chat-template"
) -> str:
    """Return the chat template to measure with: `llama3`, `mistral`, `own`, a path, or `auto`.

    `auto` is `llama3` where the vocabulary has Llama 3's role headers, else the tokenizer's own,
    else `mistral` where the vocabulary is of Llama's older kind.

    Args:
        name: Which.
        tokenizer: Whose.
        flag: What the user sets it by.

    Raises:
        UsageError: If it cannot be told, or there is none of that name.
    """
    vocabulary = tokenizer.get_vocab()
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if name == "auto" and "<|start_header_id|>" in vocabulary:
        name = "llama3"
    elif name == "auto" and own is None and "</s>" in vocabulary:
        name = "mistral"
    if name in ("auto", "own"):
        if own is None:
            raise UsageError(
                f"this tokenizer has no chat template; pass {flag} llama3, mistral or a path"
            )
        return unmarked(own)
    if not (TEMPLATES / "chat" / f"{name}.jinja").is_file() and Path(name).is_file():
        return read_text(Path(name))
    plain = chat_template(name, markers=Markers(()))
    return chat_template(name, markers=tokenizer_markers(tokenizer, plain))


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

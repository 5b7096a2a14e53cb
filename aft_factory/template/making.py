"""Makes the chat template that takes `proposals`, of a model's own or of LLaMA-Factory's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.errors import UsageError, needing, suggest
from aft_factory.prompts.habits import thinking_switch
from aft_factory.prompts.prelude import THINKING, Prelude
from aft_factory.prompts.probing import fitting_prelude
from aft_factory.prompts.thoughts import SWITCHES
from aft_factory.prompts.tokenizer import resolve_chat_template, tokenizer_markers
from aft_factory.records.files import read_text
from aft_factory.template.folder import NAME, own_template
from aft_factory.template.settings import TemplateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STANDS = {
    "system": "the aggregator prompt is the system message",
    "system text": "the aggregator prompt is the system message, always as one text",
    "user": "the aggregator prompt opens the user's first turn: there is no system message",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What the command is asked to start from.

    Attributes:
        tokenizer: The model's, if one is named.
        own: Its chat template, or the one in the file; None if there is none.
        like: The template of LLaMA-Factory to follow; None for the model's own.
    """

    tokenizer: PreTrainedTokenizerFast | None
    own: str | None
    like: str | None = None

    @property
    def tokens(self) -> Mapping[str, Any] | None:
        """The special tokens that it may write."""
        return None if self.tokenizer is None else self.tokenizer.special_tokens_map


def open_source(settings: TemplateSettings) -> Source:
    """Find out what SOURCE is, and load it.

    Raises:
        UsageError: If it cannot be loaded.
    """
    source = _opened(settings)
    if source.tokenizer is None and (settings.tokenizer_revision or settings.trust_remote_code):
        raise UsageError(
            "--tokenizer-revision and --trust-remote-code are for a tokenizer, and none is loaded "
            "here; name it by --tokenizer"
        )
    return source


def _opened(settings: TemplateSettings) -> Source:
    assert settings.source is not None
    path, write = Path(settings.source), settings.write
    name = settings.tokenizer or (str(write) if write and has_tokenizer(write) else None)
    if path.is_file():
        return Source(name and settings.loaded(name), read_text(path))
    if path.is_dir():
        name = settings.tokenizer or (str(path) if has_tokenizer(path) else name)
        return Source(name and settings.loaded(name), own_template(path))
    if "/" not in settings.source and not path.suffix:
        own = None if write is None else own_template(write)
        return Source(name and settings.loaded(name), own, settings.source)
    if path.suffix == ".jinja":
        raise UsageError(f"{path}: no such file")
    tokenizer = settings.loaded(settings.source)
    own = resolve_chat_template("own", tokenizer) if tokenizer.chat_template else None
    return Source(tokenizer, own)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer beside its chat template."""
    return (folder / "tokenizer_config.json").is_file()


def make(settings: TemplateSettings, source: Source) -> tuple[str, str, Prelude]:
    """Return a chat template, what it is, and the prelude that it has.

    Raises:
        UsageError: If proposals do not get through.
    """
    if source.like is not None:
        return _like(settings, source, source.like)
    if source.own is None:
        raise UsageError(
            f"{settings.source} has no chat template; name one of LLaMA-Factory's, or a file, as "
            "SOURCE, and the folder by --write"
        )
    switch = thinking_switch(source.own, source.tokens)
    if switch is None:
        _refuse_thinking(settings, f"neither {' nor '.join(SWITCHES)} changes a prompt of it")
    prelude = Prelude(
        aggregator=settings.template,
        markers=source.tokenizer and tokenizer_markers(source.tokenizer, source.own),
        switch=switch or SWITCHES[0],
        thinking=None if settings.thinking is None else THINKING[settings.thinking == "on"],
        name=f"{NAME} {Path(settings.source or '').name}",
    )
    prelude = fitting_prelude(source.own, prelude, source.tokens)
    return prelude.before(source.own), STANDS[prelude.form], prelude


def _refuse_thinking(settings: TemplateSettings, why: str) -> None:
    if settings.thinking is not None:
        told = f"{settings.source} cannot be told whether to think"
        raise UsageError(f"--thinking {settings.thinking}: {told}: {why}")


def _like(settings: TemplateSettings, source: Source, name: str) -> tuple[str, str, Prelude]:
    """Follow a template of LLaMA-Factory, as training with its twin would."""
    templates = stock_templates()
    if name not in templates:
        raise UsageError(
            f"{name!r} is no folder, no file and no template of LLaMA-Factory; "
            f"{suggest(name, templates)} (a name on the hub has a slash)"
        )
    from aft_factory.plugin.slots import thinks
    from aft_factory.plugin.twin import chat_template_for, prelude_for

    template = copy.copy(templates[name])
    if not thinks(template):
        _refuse_thinking(settings, "this template of LLaMA-Factory has no thoughts")
    if settings.thinking is not None:
        template.enable_thinking = settings.thinking == "on"
    prelude = prelude_for(template, source.tokenizer, settings.template, f"{NAME} {name}")
    text, why = chat_template_for(template, prelude, source.tokenizer, source.own, name)
    return text, why, prelude


def table() -> str:
    """Return what is exact of which of LLaMA-Factory's templates, as a table in Markdown."""
    from aft_factory.plugin.slots import thinks
    from aft_factory.plugin.twin import chat_template_for, prelude_for

    lines = ["| template | twin | thinks |", "| --- | --- | --- |"]
    for name, template in stock_templates().items():
        seen = "exact"
        for enable in THINKING if thinks(template) else [True]:
            one = copy.copy(template)
            one.enable_thinking = enable
            try:
                chat_template_for(one, prelude_for(one, None, "paper", name), None, None, name)
            except UsageError as error:
                seen = f"none: {str(error).partition(': ')[2]}"
        lines.append(f"| `{name}` | {seen} | {'yes' if thinks(template) else ''} |")
    return "\n".join(lines)


def stock_templates() -> dict[str, Any]:
    """Return the templates of the installed LLaMA-Factory, without their twins.

    Raises:
        MissingPackage: If it is not installed.
    """
    with needing("a template of LLaMA-Factory", "llamafactory"):
        from llamafactory.data.template import TEMPLATES
    from aft_factory.plugin.templates import aggregator_of

    return {name: one for name, one in TEMPLATES.items() if aggregator_of(name) is None}

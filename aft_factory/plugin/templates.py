"""A twin `aft_T` of every template `T` of LLaMA-Factory, made when LLaMA-Factory registers it.

It encodes exactly as `T`. What it adds: the trained or exported tokenizer, and the processor where
there is one, carry a chat template that takes `proposals` (`twin`). `aft_T` has the paper's
aggregator prompt inside, `aft_T_moa` and `aft_T_release` the others, `aft_T:PATH` a user's own. A
template that no chat template can follow has no twin; whoever asks for it is told why.
"""

from __future__ import annotations

import copy
import functools
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, suggest
from aft_factory.plugin.slots import TextTokenizer, chat_template_of
from aft_factory.plugin.twin import chat_template_for, prelude_for
from aft_factory.prompts.prelude import made_by
from aft_factory.prompts.probing import fitting_prelude
from aft_factory.prompts.rendering import TEMPLATES, load_template
from aft_factory.prompts.selection import PAPER
from aft_factory.records.files import read_text

PREFIX = "aft_"

_aggregators: dict[str, str] = {}  # of each twin
_without_twin: dict[str, str] = {}  # templates that have none, and why


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What came with a tokenizer.

    Attributes:
        processor: Of a model that takes images and the like: it is saved after the tokenizer.
        trained: To be exported: the chat template that the training has saved.
    """

    processor: Any = None
    trained: str | None = None


_loaded: weakref.WeakKeyDictionary[Any, _Loaded] = weakref.WeakKeyDictionary()


class Carrying:
    """Stands in for a template's `fix_jinja_template`: the tokenizer gets a text that is ours.

    Attributes:
        name: Of the twin.
        of: Of LLaMA-Factory's template.
        aggregator: Name or path of the aggregator prompt.
    """

    def __init__(self, name: str, of: str, aggregator: str, template: Any) -> None:
        self.name, self.of, self.aggregator, self._template = name, of, aggregator, template

    def __call__(self, tokenizer: Any) -> None:
        """Set the chat template of a tokenizer and its processor, and tell which it is.

        Raises:
            UsageError: If no chat template writes what the template trains.
        """
        from llamafactory.extras import logging

        loaded = _loaded.get(tokenizer, _Loaded())
        carriers = [part for part in (tokenizer, loaded.processor) if part is not None]
        own, others = _own(carriers)
        prelude = prelude_for(self._template, tokenizer, self.aggregator, self.name)
        if loaded.trained is not None and made_by(loaded.trained) == self.name:
            chat, why = loaded.trained, "as the training has saved it"
        else:
            chat, why = chat_template_for(self._template, prelude, tokenizer, own, self.of)
        for name, text in others.items():
            try:
                tokens = tokenizer.special_tokens_map
                others[name] = fitting_prelude(text, prelude, tokens).before(text)
            except UsageError as error:
                why += f"; {name!r} stays as it is: {error}"
        for part in carriers:
            part.chat_template = {"default": chat, **others} if others else chat
        logging.get_logger("llamafactory.data.template").info_rank0(
            f"aft-factory: the chat template of {self.name!r}, which takes `proposals`, is {why}."
        )


def aggregator_of(name: str | None) -> str | None:
    """Return the aggregator prompt inside one of our templates, None for all others."""
    return _aggregators.get(name or "")


def hook_template(module: Any) -> None:
    """Give a twin to every template that is or will be registered."""
    register, get_template = module.register_template, module.get_template_and_fix_tokenizer

    @functools.wraps(register)
    def register_template(name: str, *args: Any, **kwargs: Any) -> None:
        register(name, *args, **kwargs)
        _add_twins(module.TEMPLATES, name)

    @functools.wraps(get_template)
    def get_template_and_fix_tokenizer(tokenizer: Any, data_args: Any) -> Any:
        name = data_args.template
        if name is not None and name not in module.TEMPLATES and name.startswith(PREFIX):
            _add_own_twin(module.TEMPLATES, name)
        return get_template(tokenizer, data_args)

    for name in list(module.TEMPLATES):
        _add_twins(module.TEMPLATES, name)
    module.register_template = register_template
    module.get_template_and_fix_tokenizer = get_template_and_fix_tokenizer


def hook_loader(module: Any) -> None:
    """Keep what is loaded with a tokenizer: its processor, and what training saved of an export."""
    original = module.load_tokenizer

    @functools.wraps(original)
    def load_tokenizer(model_args: Any) -> Any:
        loaded = original(model_args)
        trained = None
        if model_args.export_dir is not None:
            folder = [model_args.model_name_or_path, *(model_args.adapter_name_or_path or [])][-1]
            path = Path(folder) / "chat_template.jinja"
            trained = read_text(path) if path.is_file() else None
        _loaded[loaded["tokenizer"]] = _Loaded(loaded["processor"], trained)
        return loaded

    module.load_tokenizer = load_tokenizer


def _add_twins(templates: dict[str, Any], of: str) -> None:
    try:
        chat_template_of(templates[of], TextTokenizer())
    except UsageError as error:
        _without_twin[of] = str(error)
        return
    for path in sorted((TEMPLATES / "aggregate").glob("*.jinja")):
        name = f"{PREFIX}{of}" if path.stem == PAPER.template else f"{PREFIX}{of}_{path.stem}"
        _add_twin(templates, name, of, path.stem)


def _add_own_twin(templates: dict[str, Any], name: str) -> None:
    """Add `aft_T:PATH`, which has a user's own aggregator prompt.

    Raises:
        UsageError: If there can be none of that name.
    """
    of, _, path = name.removeprefix(PREFIX).partition(":")
    for base in (of, of.rpartition("_")[0]):
        if base in _without_twin:
            why = f"LLaMA-Factory's {base!r} has no twin, since {_without_twin[base]}"
            raise UsageError(f"no template {name!r}: {why}")
    if not path or of not in templates or of in _aggregators:
        raise UsageError(f"no template {name!r}; {suggest(PREFIX + of, _aggregators)}")
    load_template(path)
    _add_twin(templates, name, of, path)


def _add_twin(templates: dict[str, Any], name: str, of: str, aggregator: str) -> None:
    twin = copy.copy(templates[of])  # LLaMA-Factory sets what it changes anew, and changes no part
    twin.fix_jinja_template = Carrying(name, of, aggregator, twin)
    templates[name], _aggregators[name] = twin, aggregator


def _own(carriers: list[Any]) -> tuple[str | None, dict[str, str]]:
    """Return the model's own chat template, and others that it has by name.

    The processor's is the one that vLLM asks first.
    """
    for part in reversed(carriers):
        chat = getattr(part, "chat_template", None)
        if isinstance(chat, dict):
            others = dict(chat)
            return others.pop("default", None), others
        if chat is not None:
            return str(chat), {}
    return None, {}

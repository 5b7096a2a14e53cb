"""The command `aft template`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from aft_factory.errors import UsageError
from aft_factory.prompts.habits import own_limits, own_system
from aft_factory.prompts.prelude import has_prelude
from aft_factory.prompts.probing import first_change, first_loss, fitting_prelude
from aft_factory.stage.command import PlainCommand
from aft_factory.template import folder
from aft_factory.template.making import Source, make, open_source, table
from aft_factory.template.settings import TemplateSettings

EXAMPLES = """\
examples:
  # the chat template of a model, made to take `proposals`
  aft template Qwen/Qwen2.5-7B-Instruct > chat_template.jinja

  # into a model's folder: its own, or what LLaMA-Factory's template `qwen` trains; and back
  aft template saves/qwen --write saves/qwen
  aft template qwen --write saves/qwen
  aft template saves/qwen --undo

  # is it as it should be?
  aft template saves/qwen --check

  # for LLaMA-Factory's v1 engine
  aft template Qwen/Qwen3-8B --thinking off --yaml >> train.yaml
"""


def do(settings: TemplateSettings) -> int:
    """Do what was asked for; return 0, or 1 (a chat template that was judged and failed)."""
    if settings.table:
        print(table())
        return 0
    if settings.undo:
        for path in folder.undo(Path(settings.source or "")):
            _tell(f"put back: {path}")
        return 0
    source = open_source(settings)
    if settings.check:
        return _check(settings, source)
    text, what, prelude = make(settings, source)
    _tell(f"{settings.source}: {what}")
    _tell(
        "probes: with proposals, each draft, the query and a system message are in the prompt "
        "once; without them nothing changes"
    )
    for limit in own_limits(text, source.tokens):
        _tell(f"note: with proposals or without, it cannot render {limit}")
    said = {} if prelude.thinking is None else {prelude.switch: prelude.thinking == "true"}
    own = own_system(text, source.tokens, **said) if prelude.form != "user" else ""
    if own:
        _tell(f"note: the aggregator prompt stands in the place of its own system message: {own!r}")
    if settings.yaml:
        print(yaml.safe_dump({"custom_chat_template": text}, allow_unicode=True), end="")
    elif settings.write is None:
        print(text, end="")
    else:

        def more(name: str, other: str) -> str:
            try:
                return fitting_prelude(other, prelude, source.tokens).before(other)
            except UsageError as error:
                _tell(f"warning: the chat template {name!r} stays as it is: {error}")
                return other

        changed = folder.write(settings.write, text, more)
        for path in changed:
            _tell(f"written: {path}")
        if not changed:
            _tell(f"{settings.write}: as it was, it has this already")
    return 0


def _check(settings: TemplateSettings, source: Source) -> int:
    if source.own is None:
        raise UsageError(f"{settings.source} has no chat template to check")
    problem = first_loss(source.own, source.tokens)
    if problem is None and has_prelude(source.own):
        problem = first_change(source.own, source.tokens)
    if problem is None:
        print(f"{settings.source}: takes proposals; each text is in the prompt once")
        for limit in own_limits(source.own, source.tokens):
            print(f"note: with proposals or without, it cannot render {limit}")
        return 0
    print(f"{settings.source}: {problem}")
    return 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


COMMAND = PlainCommand(
    name="template",
    description="Make a chat template take `proposals`, the drafts to aggregate.",
    examples=EXAMPLES,
    settings=TemplateSettings,
    do=do,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())

"""Prompts: the one place that turns a query and its proposals into what a model reads.

The converters and the LLaMA-Factory plugin call this module, and chat templates carry the same text
in their `prelude`, so that training and inference see the same tokens. Pure: reads template files,
knows nothing of data files, models or command lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes

from aft_factory.errors import RecordError, UsageError, suggest
from aft_factory.records.files import read_text
from aft_factory.records.messages import Message

_PACKAGED = Path(__file__).parents[1] / "templates"
COUNTS = (1, 2, 3, 5, 8, 16, 100)  # of proposals: a template that fails with each fails always
TEMPLATES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "templates"


@dataclass(frozen=True, slots=True)
class AggregatorTemplate:
    """A loaded aggregator prompt.

    Attributes:
        name: As it was asked for.
        path: Of its file.
        source: The Jinja text.
        compiled: Renders with `compiled.render(proposals=[...])`.
    """

    name: str
    path: str
    source: str
    compiled: jinja2.Template

    def __reduce__(self) -> tuple[Any, ...]:
        return _aggregator, (self.name, self.path, self.source)

    @property
    def fingerprint(self) -> str:
        """A short hash of the template's text, for caches."""
        return hashlib.blake2b(self.source.encode(), digest_size=8).hexdigest()

    def render(self, proposals: Sequence[str]) -> str:
        """Return the aggregator prompt for proposals that are sanitised already."""
        parts = pieces(self, len(proposals))
        if not parts:
            return self.render_slowly(proposals)
        # What Jinja would give, at a tenth of its time.
        return "".join([*chain.from_iterable(zip(parts, proposals, strict=False)), parts[-1]])

    def render_slowly(self, proposals: Sequence[str]) -> str:
        """Return what Jinja gives.

        Raises:
            RecordError: If the template fails for these, as when it indexes one that is not there.
        """
        try:
            return self.compiled.render(proposals=proposals)
        except Exception as error:  # a template is a program, and can fail in any way
            problem = f"{self.name!r} fails for {len(proposals)} proposals: {error}"
            raise RecordError("template", problem) from error


def load_template(name: str) -> AggregatorTemplate:
    """Load an aggregator prompt by name (`paper`, `moa`, `release`) or from a path.

    Its file is read each time, as it may have changed: of many rows, ask once.

    Raises:
        UsageError: If there is no such template, its variables are not the ones documented, or it
            fails whatever the proposals.
    """
    path = _place("aggregate", name)
    return _aggregator(name, str(path), read_text(path))


@lru_cache(maxsize=64)
def _aggregator(name: str, path: str, source: str) -> AggregatorTemplate:
    compiled = _compiled(path, source, "proposals")
    failures = [_failure(compiled, count) for count in COUNTS]
    if all(failures):  # one may index a draft that is not there, or name as many as it has letters
        raise UsageError(f"{name!r} fails: {failures[-1]}") from failures[-1]
    return AggregatorTemplate(name=name, path=path, source=source, compiled=compiled)


def _failure(compiled: jinja2.Template, count: int) -> Exception | None:
    """Return how a template fails for so many proposals; None if it does not."""
    try:
        compiled.render(proposals=[f"draft {i}" for i in range(count)])
    except Exception as error:  # a template is a program, and can fail in any way
        return error
    return None


def load_jinja(folder: str, name: str, variable: str) -> jinja2.Template:
    """Load a template of one variable from a folder of ours, or from a path.

    Raises:
        UsageError: If there is no such template, or it has other variables.
    """
    path = _place(folder, name)
    return _compiled(str(path), read_text(path), variable)


def template_names(folder: str) -> list[str]:
    """Return the names of the templates in a folder of ours, the paper's first."""
    names = sorted(path.stem for path in (TEMPLATES / folder).glob("*.jinja"))
    return sorted(names, key=lambda name: name != "paper")


def _place(folder: str, name: str) -> Path:
    path = TEMPLATES / folder / f"{name}.jinja"
    if not name.isidentifier() or not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = template_names(folder)
        kind = "aggregator" if folder == "aggregate" else folder
        raise UsageError(
            f"no {kind} template {name!r}; {suggest(name, known)}, "
            "or give the path of a .jinja file"
        )
    return path


@lru_cache(maxsize=64)
def _compiled(path: str, source: str, variable: str) -> jinja2.Template:
    # The environment that transformers and vLLM give chat templates, but strict about names.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        compiled = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.message}") from None
    if variables != {variable}:
        found = ", ".join(sorted(variables)) or "none"
        raise UsageError(
            f"{path}: a template has the one variable {variable!r}, this one has: {found}"
        )
    return compiled


def with_aggregator(
    messages: Sequence[Message],
    proposals: Sequence[str],
    template: AggregatorTemplate,
    *,
    system: bool = True,
) -> list[Message]:
    """Return the conversation that asks for an aggregation; all texts are sanitised already.

    An existing system message stays first, then a blank line, then the aggregator prompt. Without
    proposals the conversation is the plain one (layer 0). The input is not changed.

    Args:
        messages: The conversation.
        proposals: The drafts.
        template: The aggregator prompt.
        system: Whether the model has system messages; else what would be one opens the user's
            first turn.

    Raises:
        RecordError: If the template fails for these proposals.
    """
    given, turns = "", list(messages)
    if turns[0]["role"] == "system":
        given = turns.pop(0)["content"]
    text = system_text(given, proposals, template)
    whole: list[Message] = [{"role": "system", "content": text}, *turns] if text else turns
    return whole if system else without_system(whole)


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation whose system message opens the user's first turn."""
    if messages[0]["role"] != "system":
        return list(messages)
    rules, asked, *rest = messages
    return [{"role": "user", "content": f"{rules['content']}\n\n{asked['content']}"}, *rest]


def system_text(given: str, proposals: Sequence[str], template: AggregatorTemplate) -> str:
    """Return the system message: the one that was given, a blank line, the aggregator prompt.

    Args:
        given: The conversation's own; "" where it has none.
        proposals: Sanitised drafts; none for a plain query.
        template: The aggregator prompt.

    Raises:
        RecordError: If the template fails for these proposals.
    """
    if not proposals:
        return given
    prompt = template.render(proposals)
    return f"{given}\n\n{prompt}" if given.strip() else prompt


@lru_cache(maxsize=64)
def pieces(template: AggregatorTemplate, count: int) -> list[str]:
    """A template's fixed text before, between and after `count` proposals; [] if it has none."""
    if not _is_verbatim(template.compiled.environment.parse(template.source)):
        return []
    marks = [f"\ue000{i}\ue001" for i in range(count)]
    rest, pieces = template.render_slowly(marks), []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return []
        pieces.append(piece)
    pieces.append(rest)
    return [] if any("\ue000" in piece for piece in pieces) else pieces


def _is_verbatim(tree: nodes.Template) -> bool:
    """Tell whether a template only goes through the proposals and writes each one as it is.

    Such a template is of text, `for proposal in proposals`, and outputs in which a proposal is at
    most joined with `~`. Anything more is taken to change something.
    """
    fine: set[int] = set()  # the places where a name may stand
    for node in tree.find_all(nodes.Node):  # each before what is in it
        match node:
            case nodes.TemplateData() | nodes.Const():
                pass
            case nodes.Output(nodes=parts) | nodes.Concat(nodes=parts):
                fine |= {id(p) for p in parts if not _is_name(p, "proposals")}
            case nodes.For(target=nodes.Name(), iter=iterable, test=None):
                if not _is_name(iterable, "proposals") or _is_name(node.target, "proposals"):
                    return False
                fine |= {id(node.target), id(iterable)}
            case nodes.Getattr(node=of, attr="index" | "index0") if _is_name(of, "loop"):
                fine.add(id(of))
            case nodes.Name() if id(node) in fine:
                pass
            case _:
                return False
    return True


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name

"""Jinja as transformers and vLLM give it to chat templates. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from aft_factory.errors import UsageError


@lru_cache(maxsize=32)
def compiled(source: str) -> tuple[set[str], jinja2.Template]:
    """Return the variables of a chat template, and what renders it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: form}
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        return variables, environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"the chat template is no Jinja: {error.message}") from None


class _Generation(jinja2.ext.Extension):
    """The tag `generation`, by which transformers finds answers in a text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Any) -> Any:
        """Take what stands between the tags as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)

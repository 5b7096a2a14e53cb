r"""On-policy proposals of a base model by in-context learning (URIAL): its prompt, and its answer.

Pure. A base model knows no chat: it continues a document of queries and answers. The prompts are
`templates/propose/*.jinja`. The paper says only that it takes URIAL's template, not which of them;
`inst_1k_v4` is the default, as in URIAL's README; its examples are fenced as the query asked is.

    # Query:
    ```
    How many pails?
    ```

    # Answer:
    ```
    <the completion starts here, and ends with> Six.\n```\n\n

Markers in messages are kept as they are, so a query with a line `# Query:` in it may confuse a
model. Earlier turns stand as queries and answers before the last, as in URIAL's code for MT-Bench;
a system message, which URIAL does not have, stands before the first query's text.

`parse` keeps code fences inside an answer (URIAL's own code removes every one). An answer ends at
a line of three back-ticks, outside of any code block, after which there is nothing but blank lines
and, after at least one, perhaps the heading of an invented turn. Text cannot always tell; then:

* a model that ends an answer on a code block often writes one fence instead of two: it closes the
  block, and the answer is complete;
* a code block that opens without a language and is followed by a blank line is taken for the
  answer's end, if nothing ever closes it: what follows is chatter;
* what was cut off right after such a fence counts as cut off;
* blocks are counted as in Markdown, but one with a language opens within another of as many
  back-ticks, as models nest them;
* a fence before such a heading opens a block, if a later one closes it;
* a `# Query:` outside of code begins an invented turn, where its `# Answer:` follows or where
  no fence ends the answer: what stands before it is the answer, without a closing fence;
* a fence at the end of the last line, without a counterpart in the text, is the closing one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jinja2

from aft_factory.engines.endings import is_cut_off
from aft_factory.errors import UsageError
from aft_factory.prompts.rendering import load_jinja
from aft_factory.records.messages import Message

DEFAULT = "inst_1k_v4"

# URIAL stops at `# Query`, which also cuts an answer at a comment in its code. All its prompts go
# on with a fence. The answer's own closing fence is no part of this: `parse` needs to see it.
STOP = ("\n# Query:\n```",)

_FENCE = re.compile(r"[ \t]*(`{3,})([^`]*)")
_TICKS = re.compile(r"`{3,}")
_TURN = re.compile(r"# (?:Query|Answer|User|Instruction)(?: \d+)?(?::|\s*$)")
_QUERY = re.compile(r"# Query(?: \d+)?:")
_ANSWER = re.compile(r"# Answer(?: \d+)?:")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The answer in a completion.

    Attributes:
        answer: Without the fence around it and blanks at its ends. May be empty.
        truncated: The answer did not come to its end.
        problem: Why the answer is not to be used, or None.
    """

    answer: str
    truncated: bool
    problem: str | None


@cache
def load_propose_template(name: str) -> jinja2.Template:
    """Load a prompt for base models by name (`inst_1k_v4`, `inst_2k`, ...) or from a path.

    Raises:
        UsageError: If there is no such template, or its one variable is not `messages`.
    """
    return load_jinja("propose", name, "messages")


def render(template: str, messages: Sequence[Message]) -> str:
    """Return the text that a base model continues with its answer to the last message.

    Args:
        template: A name or path, as for `load_propose_template`.
        messages: A conversation as `records.parse_messages` returns it.

    Raises:
        UsageError: If the template cannot be loaded or fails.
    """
    compiled = load_propose_template(template)
    system, turns = "", list(messages)
    if turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
    if system:
        turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
    try:
        return compiled.render(messages=turns)
    except Exception as error:  # a template is a program, and can fail in any way
        raise UsageError(f"template {template!r} fails: {error}") from error


def parse(text: str, finish_reason: str | None) -> Parsed:
    r"""Take the answer out of a completion of `render`'s text (see the module for the rule).

    Args:
        text: As the engine returned it, whether or not it stopped at `STOP`.
        finish_reason: The engine's; `sampling.is_cut_off` knows the words for a limit of tokens.

    Example:
        >>> parse("Six:\n```\n5 + 1\n```\n```\n\n", "stop").answer
        'Six:\n```\n5 + 1\n```'
    """
    for stop in STOP:
        text, found, _ = text.partition(stop)
        if found:
            finish_reason = "stop"
    lines = text.split("\n")  # not splitlines: an answer may hold other separators
    end, problem = _end(lines, cut_off=is_cut_off(finish_reason))
    answer = "\n".join(lines[:end]).strip()
    return Parsed(answer, problem is not None, problem or (None if answer else "empty"))


def _end(lines: list[str], *, cut_off: bool) -> tuple[int, str | None]:
    """How many lines are the answer's, and why it did not come to its end, if so.

    Takes a closing fence that stands behind text in the last of these lines off.
    """
    blocks: list[int] = []  # the back-ticks of each open code block
    opened = 0  # where the outermost of them begins
    inline = 0  # fences within lines, outside of code blocks
    turn: int | None = None  # where an invented turn may begin
    for index, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if not fence and not blocks:
            if turn is None and _QUERY.match(line) and any(map(str.strip, lines[:index])):
                turn = index
            elif turn is not None and _ANSWER.match(line):
                return turn, "no closing fence"
            inline += len(_TICKS.findall(line))
            ends = inline % 2 and line.rstrip().endswith("```")
            if ends and _after(lines, index, cut_off) != "text":
                lines[index] = line.rstrip().removesuffix("```")
                return index + 1, None
        if not fence or (blocks and len(fence[1]) < blocks[-1]):
            continue
        closes = not fence[2].strip()
        after = _after(lines, index, cut_off)
        if not blocks and turn is not None and not any(map(str.strip, lines[turn + 1 : index])):
            return turn, "no closing fence"
        ends = after == "end" or (after == "turn" and not _closes_later(lines, index))
        if closes and not blocks and ends and line.rstrip() == "```":
            return index, None
        if closes and blocks:
            blocks.pop()
            if after == "turn" or (after == "end" and not blocks):
                return index + 1, None
        else:
            if not blocks:
                opened = index
            blocks.append(len(fence[1]))
    alone = len(blocks) == 1 and lines[opened].rstrip() == "```"
    if alone and len(lines) > opened + 2 and not lines[opened + 1].strip():
        return opened, None
    if turn is not None:
        return turn, "no closing fence"
    return len(lines), "cut off" if cut_off else "no closing fence"


def _after(lines: list[str], index: int, cut_off: bool) -> Literal["text", "turn", "end"]:
    """What stands after a fence, blank lines aside."""
    following = index + 1
    while following < len(lines) and not lines[following].strip():
        following += 1
    blank = following - index - 1
    if following == len(lines):
        # Cut off right here, the fence might as well open a block.
        return "text" if cut_off and blank < 2 else "end"
    return "turn" if blank and _TURN.match(lines[following]) else "text"


def _closes_later(lines: list[str], index: int) -> bool:
    """Whether a fence follows that would close a block opened here, and no turn's own fence."""
    inside = 0
    heading = False
    for line in lines[index + 1 :]:
        if fence := _FENCE.fullmatch(line):
            if heading:
                return False
            if fence[2].strip():
                inside += 1
            elif inside:
                inside -= 1
            else:
                return True
        if line.strip():
            heading = bool(_TURN.fullmatch(line.rstrip()))
    return False

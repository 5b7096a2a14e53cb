"""Control-token markers, and how a model's text is kept from being taken for them.

A proposal that holds `<|eot_id|>` or `[INST]` would be turned into real control tokens by
LLaMA-Factory and by vLLM's chat endpoint. `sanitise` breaks such markers. Pure.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

ZERO_WIDTH_SPACE = "\u200b"

# What tokenizers and LLaMA-Factory turn into control tokens wherever it stands in a text. An entry
# is a whole marker or the beginning of a family of them; `templates/chat/*.jinja` repeat the list
# (tested).
MARKERS = (
    *(f"<|{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"),
    *('<|"|>', "<｜", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "<cls>"),
    *("<sep>", "<start_of_", "<end_of_", "<start_function_", "<end_function_"),
    *(
        "<image_soft_token>",
        "<audio_soft_token>",
        "<unused",
        "<turn|>",
        "<channel|>",
        "<tool|>",
        "<tool_call|>",
    ),
    *("<tool_response|>", "<image|>", "<audio|>", "<video|>", "<image>", "</image>", "<video>"),
    *("</video>", "<audio>", "</audio>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<tools>", "</tools>", "<fim_", "<file_sep>"),
    *("<reponame>", "<filename>", "<jupyter_", "<<SYS>>", "<</SYS>>", "[INST]", "[/INST]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]"),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[AUDIO]", "[BEGIN_AUDIO]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"),
    *("[REFERENCE_DOC_", "[gMASK]", "[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[BOS]", "[EOS]"),
)


@lru_cache(maxsize=64)
def marker_pattern(extra: frozenset[str] = frozenset()) -> re.Pattern[str]:
    """Return a pattern that matches the first character of every marker (see `sanitise`)."""
    return re.compile("|".join(_patterns_by_first(extra).values()))


def _patterns_by_first(extra: frozenset[str] = frozenset()) -> dict[str, str]:
    rest_by_first: dict[str, list[str]] = {"<": [r"\|[A-Za-z_]"]}
    for marker in (*MARKERS, *sorted(extra)):
        if not re.match(r"<\|[A-Za-z_]", marker):
            rest_by_first.setdefault(marker[0], []).append(re.escape(marker[1:]))
    return {f: f"{re.escape(f)}(?={'|'.join(rest)})" for f, rest in rest_by_first.items()}


def sanitise(text: str, pattern: re.Pattern[str] | None = None) -> str:
    r"""Break every control-token marker in a model's text by a zero-width space.

    The space goes after the marker's first character: the text reads the same, but neither a
    tokenizer nor LLaMA-Factory finds a control token or a media placeholder in it. Idempotent.

    Args:
        text: A proposal.
        pattern: `marker_pattern(...)` with a tokenizer's own markers; else the known families.

    Example:
        >>> sanitise("fine <|eot_id|>")
        'fine <\u200b|eot_id|>'
    """
    if pattern is not None:
        return pattern.sub(_break, text)
    for first, known in _known_markers().items():
        if first in text:
            text = known.sub(_break, text)
    return text


@cache
def _known_markers() -> dict[str, re.Pattern[str]]:
    """The known families by first character: a pattern that begins with a literal runs fastest."""
    return {first: re.compile(pattern) for first, pattern in _patterns_by_first().items()}


def _break(match: re.Match[str]) -> str:
    return match[0] + ZERO_WIDTH_SPACE

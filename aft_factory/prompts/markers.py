"""Control-token markers, and how text is kept from being taken for them.

A text of a model or a data set that holds `<|eot_id|>` or `[INST]` would be turned into real
control tokens by LLaMA-Factory and by vLLM. `sanitise` breaks such markers wherever the text comes
from, in proposals, queries and targets alike; `restore` mends them in what a model wrote. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from aft_factory.records.messages import Message

ZERO_WIDTH_SPACE = "\u200b"

# What is taken for a marker where the tokenizer is not known. An entry is a whole marker or the
# beginning of a family of them; `templates/chat/*.jinja` repeat the list (tested).
MARKERS = (
    *(f"<|{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"),
    *('<|"|>', "<｜", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "<cls>"),
    *("<sep>", "<start_of_", "<end_of_", "<start_function_", "<end_function_"),
    *("<image_soft_token>", "<audio_soft_token>", "<unused", "<turn|>", "<channel|>", "<tool|>"),
    *("<tool_call|>", "<tool_response|>", "<image|>", "<audio|>", "<video|>", "<image>"),
    *("</image>", "<video>"),
    *("</video>", "<audio>", "</audio>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<tools>", "</tools>", "<fim_", "<file_sep>"),
    *("<reponame>", "<filename>", "<jupyter_", "<<SYS>>", "<</SYS>>", "[INST]", "[/INST]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]"),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[AUDIO]", "[BEGIN_AUDIO]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"),
    *("[REFERENCE_DOC_", "[gMASK]", "[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[BOS]", "[EOS]"),
)


class Markers:
    """A set of markers.

    Attributes:
        words: The markers, or beginnings of families of them; the longest first.
    """

    def __init__(self, words: Iterable[str] = MARKERS) -> None:
        self.words = tuple(sorted(set(words), key=lambda word: (-len(word), word)))
        rests: dict[str, list[str]] = {}
        for word in self.words:
            rests.setdefault(word[0], []).append(re.escape(word[1:]))
        # By first character: a pattern that begins with a literal runs fastest.
        families = {first: f"(?={'|'.join(rest)})" for first, rest in rests.items()}
        self._breaks = {f: re.compile(re.escape(f) + any_) for f, any_ in families.items()}
        self._broken = [
            re.compile(re.escape(f) + ZERO_WIDTH_SPACE + any_) for f, any_ in families.items()
        ]

    def sanitise(self, text: str) -> str:
        r"""Break every marker in a text by a zero-width space.

        The space goes after the marker's first character: the text reads the same, but neither a
        tokenizer nor LLaMA-Factory finds a control token or a media placeholder in it. Idempotent.

        Example:
            >>> Markers().sanitise("fine <|eot_id|>")
            'fine <\u200b|eot_id|>'
        """
        for first, pattern in self._breaks.items():
            if first in text:
                text = pattern.sub(lambda match: match[0] + ZERO_WIDTH_SPACE, text)
        return text

    def restore(self, text: str) -> str:
        r"""Undo `sanitise` in what a model wrote, as it copies from its prompt and its training.

        Example:
            >>> Markers().restore("fine <\u200b|eot_id|>")
            'fine <|eot_id|>'
        """
        if ZERO_WIDTH_SPACE in text:
            for pattern in self._broken:
                text = pattern.sub(lambda match: match[0][:-1], text)
        return text

    def sanitise_all(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation without markers; the input is not changed."""
        return [{"role": m["role"], "content": self.sanitise(m["content"])} for m in messages]


class Mender:
    """Does what `Markers.restore` does, for a text that comes in pieces.

    Args:
        markers: What is mended.
    """

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._longest = max(map(len, markers.words), default=0)
        self._before = self._held = ""

    def mend(self, piece: str, *, last: bool = False) -> str:
        """Return what is sure by now: all but a broken marker that may go on in the next piece."""
        text = self._held + piece
        at = -1 if last else text.find(ZERO_WIDTH_SPACE, max(0, len(text) - self._longest))
        sure, self._held = (text, "") if at < 0 else (text[:at], text[at:])
        mended = self._markers.restore(self._before + sure)[len(self._before) :]
        self._before = sure[-1:] or self._before
        return mended


@cache
def known_markers() -> Markers:
    """Return the markers of the known families, for when the tokenizer is not known."""
    return Markers()


@lru_cache(maxsize=64)
def markers_of(tokens: frozenset[str], template: str) -> Markers:
    """Return the markers of a tokenizer.

    Args:
        tokens: Its control tokens.
        template: The chat template, in which control words may stand that are no tokens of their
            own (`[INST]` under Llama 2's vocabulary); Jinja or any other text.
    """
    written = {word for word in _WORD.findall(template) if word.startswith(MARKERS)}
    return Markers(tokens | written)


_WORD = re.compile(r"<<?[^<>\s'\"]+>>?|\[[^\[\]\s'\"]+\]")

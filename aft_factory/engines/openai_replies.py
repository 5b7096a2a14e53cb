"""What an OpenAI-compatible server answered: completions, or why there are none. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aft_factory.engines.endings import is_broken, is_filtered
from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_failures import error_words, read_json, undisguised
from aft_factory.engines.openai_parts import as_object, text_of, thought_of
from aft_factory.engines.openai_streams import STOPPED_BY, is_stream, joined_stream
from aft_factory.engines.sampling import Completion, Reply
from aft_factory.prompts.thoughts import ThoughtWords
from aft_factory.records import exact_json

ALIKE = 8  # tokens by which two counts of a prompt may differ, or a twentieth of it
STOPS = "%s does not tell what ended an answer: of a thought that `stop` ends, it is taken for one"


def parse_body(body: bytes, url: str) -> dict[str, Any]:
    """Return the completion in a body of status 200, unless it is an error in disguise."""
    data = parse_answer(body, url)
    if isinstance(data, list):
        raise _no_object(body, url)
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineError(f"expected choices, got none: {error_words(body)}", "refused")
    return data


def parse_answer(body: bytes, url: str) -> dict[str, Any] | list[Any]:
    """Return the object, or an array: some list their models in a bare one."""
    data = joined_stream(body, url) if is_stream(body) else read_json(body)
    if not isinstance(data, dict | list):
        raise _no_object(body, url)
    answer: dict[str, Any] | list[Any] = undisguised(data)
    return answer


def models_in(answer: dict[str, Any] | list[Any]) -> Any:
    """Return the list of models in an answer that should have one."""
    return answer if isinstance(answer, list) else answer.get("data")


def _no_object(body: bytes, url: str) -> EngineError:
    return EngineError(f"{url}: expected a JSON object, got: {error_words(body)}", "retry")


def read_reply(
    data: dict[str, Any],
    n: int,
    cached: Callable[[int | None, int], int | None],
    words: ThoughtWords | None = None,
) -> Reply:
    """Read a completion's body; of more than n choices, the first n.

    Args:
        data: The body.
        n: How many were asked for.
        cached: From what the body says of cached tokens, and of how many samples, to what is known.
        words: Around a thought, where the text may hold one.
    """
    choices = data["choices"]
    usage = as_object(data.get("usage"))
    told = whole(as_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
    written = whole(usage.get("completion_tokens"))
    thought = whole(as_object(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    completions = []
    for choice in map(as_object, choices[:n]):
        reason = choice.get("finish_reason") or "stop"
        message = as_object(choice.get("message"))
        said = choice.get("text")
        text = text_of(message.get("content") if said is None else said)
        if is_broken(reason) or not isinstance(text, str | None):
            raise EngineError(f"a choice failed: {error_words(exact_json.dump(choice))}", "retry")
        blank = not (text and text.strip())
        tokens = written if len(choices) == 1 else None
        if isinstance(ids := choice.get("token_ids"), list):  # by a user's `return_token_ids`
            tokens = len(ids)
        completion = Completion(
            text or "",
            str(reason),
            tokens,
            instead=_instead_of_text(message, reason) if blank else None,
            thought=thought_of(message),
            stopped=_stopped(choice),
        ).told()
        completions.append(completion if words is None else completion.split(words))
    tokens_read = whole(usage.get("prompt_tokens"))
    before = cached(told, len(completions))
    # A server that tells no thoughts in a text from its answer counts none.
    return Reply.of(completions, tokens_read, before, written, thought or None)


def counts_differ(own: int, read: int, n: int) -> bool:
    """Tell whether a server reads a prompt by other tokens, or a template, than we count it by.

    Args:
        own: Our count.
        read: The server's, maybe for each of the samples anew.
        n: How many of these were asked for.
    """
    return min(abs(read - own), abs(read - n * own)) > max(ALIKE, own // 20)


def _instead_of_text(message: Mapping[str, Any], reason: object) -> str | None:
    """Return what a message has that is no text."""
    if message.get("tool_calls") or message.get("function_call"):
        return "a call of a tool"
    return "a refusal" if message.get("refusal") and not is_filtered(reason) else None


def _stopped(choice: Mapping[str, Any]) -> bool | None:
    """Tell whether a text of `stop` ended a choice: None where the server does not say."""
    said = [choice[name] for name in STOPPED_BY if name in choice]
    return any(isinstance(one, str) for one in said) if said else None


def whole(value: object) -> int | None:
    """Return a whole number, None for anything else."""
    return value if type(value) is int else None

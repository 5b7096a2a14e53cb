"""Engines: the only code that calls a model. One attempt each; retries are the asker's (`asking`).

| engine | talks to |
| --- | --- |
| `vllm_engine.VllmEngine` | vLLM in this process |
| `openai_engine.OpenAIEngine` | any OpenAI-compatible server, or several of them |
| `ray_engine.RayEngine` | replicas of a model, in this process's stead, on a Ray cluster |
| `scripted.ScriptedEngine` | nobody: fixed replies, for tests and `--dry-run` |

Reward models (`reward.RewardModel`) are `transformers_reward.TransformersReward`,
`vllm_reward.VllmReward` and `reward_server.ServerReward`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from aft_factory.engines.sampling import Reply, Request, Sampling, Told
from aft_factory.errors import AftError, printable
from aft_factory.network import read_key, without_keys, without_login

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KEY = "OPENAI_API_KEY"
Heard = Callable[[dict[str, Any]], object]  # hears of the chunks of a stream as they come


class EngineError(AftError, RuntimeError):
    """A request that was not answered.

    Attributes:
        problem: The engine's or server's own words.
        kind: `retry` may succeed if asked again; `refused` is final for this request (a prompt that
            is too long); `fatal` is final for the whole run (wrong key, no such model).
        retry_after: Seconds to wait before the next attempt, where the server says so.
        body: What a server answered, as JSON; None where it is none.
        status: The HTTP status that it answered with, or that its words stand for.
    """

    def __init__(
        self,
        problem: str,
        kind: Literal["retry", "refused", "fatal"],
        retry_after: float | None = None,
        body: Any = None,
        status: int | None = None,
    ) -> None:
        problem = without_keys(printable(problem))
        super().__init__(problem, kind, retry_after, body, status)
        self.problem = problem
        self.kind = kind
        self.retry_after = retry_after
        self.body = body
        self.status = status

    def __str__(self) -> str:
        return self.problem


def is_url(text: str) -> bool:
    """Tell whether a text is a URL that a server may have."""
    try:
        parts = urlsplit(text)
        known = parts.hostname is not None and parts.port != 0  # a wrong port is found on access
    except ValueError:
        return False
    return known and parts.scheme in ("http", "https") and text.isprintable()


def shown_url(url: str) -> str:
    """Return a URL without what may be a secret: a login, and its query."""
    return without_login(url.partition("?")[0])


def default_key() -> str:
    """Return the key that servers are asked with where no variable is named.

    Raises:
        UsageError: If it cannot be sent.
    """
    return read_key(KEY) if os.environ.get(KEY, "").strip() else "EMPTY"


class Engine(Protocol):
    """A model that can be asked.

    Attributes:
        model: What answers, adapter included: part of every journal key.
        context: Most tokens of prompt and completion together; None if unknown.
        tokenizer: The model's tokenizer, to fit prompts with; None if unknown.
        chat_template: Jinja text that renders a conversation for it; None if unknown.
        most_samples: Most samples of one request; None if it takes any number.
        tried: Requests that were sent only to find out what it takes.
    """

    model: str
    context: int | None
    tokenizer: PreTrainedTokenizerFast | None
    chat_template: str | None
    most_samples: int | None
    tried: int

    async def sample(self, request: Request) -> Reply:
        """Ask once. May be called any number of times at once; may be cancelled.

        Raises:
            EngineError: If there is no answer.
        """
        ...

    async def stream(self, request: Request, told: Told) -> Reply:
        """Ask once, as `sample`, and tell of the samples while they are written."""
        ...

    async def reachable(self) -> bool:
        """Tell whether anybody is there to answer, without a request."""
        ...

    async def takes_system(self) -> bool:
        """Tell whether conversations may begin with a system message, as far as can be found out.

        Raises:
            EngineError: If nothing can be asked at all.
        """
        ...

    async def close(self) -> None:
        """Give back what the engine holds."""
        ...


@runtime_checkable
class Relaying(Protocol):
    """An engine that answers bodies of OpenAI's chat API as they come, whatever is in them."""

    async def relay(
        self, body: dict[str, Any], sampling: Sampling, seed: int, heard: Heard | None
    ) -> dict[str, Any]:
        """Ask once; return the body of the answer.

        Args:
            body: As it came; the model's name in it is the engine's to say.
            sampling: How to decode, where the body does not say; its length is not used.
            seed: The same.
            heard: Hears of the chunks of the answer; None where the body asks for no stream.

        Raises:
            EngineError: If there is no answer.
        """
        ...

"""Whether the model behind a server takes system messages, where no chat template tells it.

It is asked for one token. A server may refuse the message, or drop it without a word: then it reads
fewer tokens than the message has words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aft_factory.engines.openai_server import Server
from aft_factory.prompts.rendering import without_system
from aft_factory.records.messages import Message

WORDS = 64  # of the system message; a prompt without it, headers included, is far shorter


async def takes_system(server: Server, model: str) -> bool:
    """Ask a server; where it tells nothing, it is taken to.

    Raises:
        EngineError: If it answers nobody.
    """
    asked = Message(role="user", content="Hi")
    whole = [Message(role="system", content=" ".join(["Be", "brief."] * (WORDS // 2))), asked]
    body: dict[str, Any] = {"model": model, "max_tokens": 1}
    answer = await server.try_out(body | {"messages": whole})
    if answer is None:  # for the system message, or for anything else, or is it gone meanwhile?
        return not await server.try_out(body | {"messages": [asked]})
    if not _read_little(answer):
        return True
    # It dropped the message, unless it counts so few tokens of any.
    moved = await server.try_out(body | {"messages": without_system(whole)})
    return not moved or _read_little(moved) is not False


def _read_little(answer: Mapping[str, Any]) -> bool | None:
    """Tell whether fewer tokens were read than the message has words; None if it does not say."""
    usage = answer.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return count < WORDS if isinstance(count, int) and count else None

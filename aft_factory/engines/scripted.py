"""An engine without a model: replies are a function of the request. For tests and `--dry-run`."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Piece, Reply, Request, Told
from aft_factory.engines.telling import apart
from aft_factory.prompts.thoughts import ThoughtWords

WORDS = (
    *("so", "the", "answer", "is", "found", "by", "adding", "both"),
    *("numbers", "and", "then", "we", "check", "it", "once", "more"),
)
CHARACTERS_PER_TOKEN = 4  # of English prose, roughly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Script = Callable[[Request], list[str] | EngineError]


def babble(request: Request) -> list[str]:
    """Write n texts that depend on all of the request: equal requests get equal texts."""
    draw = random.Random(request.key(""))
    most = request.sampling.max_tokens
    return [
        " ".join(draw.choices(WORDS, k=min(most, draw.randint(5, 40)))) for _ in range(request.n)
    ]


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(eq=False)
class ScriptedEngine:
    """Replies by a script, and records every request it was asked.

    Example:
        engine = ScriptedEngine(lambda request: ["42"] * request.n)

    Attributes:
        script: From a request to its n texts, or to the error to raise.
        delay: Seconds a reply takes.
        tokens: Length of every completion to account, in tokens; None estimates it by its text.
        record: Whether to keep the requests; a long run would fill the memory with them.
    """

    script: Script = babble
    _: KW_ONLY
    model: str = "scripted"
    delay: float = 0.0
    tokens: int | None = None
    record: bool = True
    requests: list[Request] = field(default_factory=list, init=False)
    context: int | None = field(default=None, init=False)
    tokenizer: PreTrainedTokenizerFast | None = field(default=None, init=False)
    chat_template: str | None = field(default=None, init=False)
    most_samples: int | None = field(default=None, init=False)
    tried: int = field(default=0, init=False)

    async def sample(self, request: Request) -> Reply:
        """Reply as the script says."""
        self._note(request)
        await asyncio.sleep(self.delay)
        return self._reply(request, self.script(request))

    async def stream(self, request: Request, told: Told) -> Reply:
        """Reply as the script says, word by word."""
        self._note(request)
        texts = self.script(request)
        words = None if isinstance(request.prompt, str) else ThoughtWords()
        tell = apart(told, words) or told
        shown = [] if isinstance(texts, EngineError) else texts
        pieces = [re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", text) or [""] for text in shown]
        starts = [0] * len(pieces)
        longest = max(map(len, pieces), default=0)
        for step in range(longest):
            await asyncio.sleep(self.delay / longest)
            for i, own in enumerate(pieces):
                if step < len(own):
                    tell(Piece(i, own[step], starts[i], ended=step == len(own) - 1))
                    starts[i] += len(own[step])
        return self._reply(request, texts)

    def _note(self, request: Request) -> None:
        if self.record:
            self.requests.append(request)

    def _reply(self, request: Request, texts: list[str] | EngineError) -> Reply:
        if isinstance(texts, EngineError):
            raise texts
        prompt = request.prompt
        size = len(prompt) if isinstance(prompt, str) else sum(len(m["content"]) for m in prompt)
        completions = [Completion(text, tokens=self.tokens or _tokens(text)) for text in texts]
        written = sum(completion.tokens or 0 for completion in completions)
        if not isinstance(prompt, str):
            completions = [completion.split(ThoughtWords()) for completion in completions]
        thought = sum(_tokens(completion.thought) for completion in completions)
        return Reply.of(completions, -(-size // CHARACTERS_PER_TOKEN), 0, written, thought)

    async def reachable(self) -> bool:
        """Tell whether anybody is there."""
        return True

    async def takes_system(self) -> bool:
        """Tell whether it takes system messages."""
        return True

    async def close(self) -> None:
        """Nothing to give back."""

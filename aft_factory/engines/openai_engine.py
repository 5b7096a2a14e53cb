"""Any OpenAI-compatible server, or several of them: vLLM, SGLang, LLaMA-Factory's `api`, OpenAI.

Sends requests over the official `openai` package, one attempt each, spread over the servers.

LLaMA-Factory's `llamafactory-cli api` (0.9.5) differs from others: it knows no seed, no top_k and,
with its default backend, no `stop`; it takes `n` > 1 at temperature 0 as temperature 1 (set
`split_samples`); it wants user and assistant in turn, and has no text completion; it works on
MAX_CONCURRENT (1) requests at a time, so that `timeout` counts the time in its queue; its model is
called `gpt-3.5-turbo` unless API_MODEL_NAME is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aft_factory.engines.engine import EngineError, Heard, default_key, is_url, shown_url
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.openai_offers import choose
from aft_factory.engines.openai_replies import STOPS, counts_differ, read_reply
from aft_factory.engines.openai_server import Server
from aft_factory.engines.openai_system import takes_system
from aft_factory.engines.sampling import Reply, Request, Sampling, Told, joined, shifted
from aft_factory.engines.telling import apart
from aft_factory.errors import UsageError, needing
from aft_factory.network import check_headers, making_client
from aft_factory.prompts.thought_probes import Thoughts
from aft_factory.prompts.tokenizer import shows_system
from aft_factory.records.files import allow_open_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST_CONNECT = 30.0  # seconds; a burst of a thousand connections may need some
MOST_IDLE = 32  # connections kept; the client looks through them all at every request
KEEP_IDLE = 3.0  # seconds; servers drop idle connections after 5, and a request may meet that
APART = (
    "%s reads %d tokens where the tokenizer counts %d, by which drafts are fitted to the context: "
    "--tokenizer and --chat-template are to be the served model's own"
)

_log = logging.getLogger(__name__)


class OpenAIEngine:
    """A model behind OpenAI-compatible URLs. Made by `connect`.

    Journal keys hold `model`, the name only: a run may go on with other URLs. Further fields of a
    request's body come from `Sampling.extra`.
    """

    def __init__(self, servers: list[Server], model: str, context: int | None) -> None:
        self.model = model
        self.context = context
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.chat_template: str | None = None
        self._thoughts = Thoughts(None, None)
        self._servers = servers
        self._next = 0
        self.most_samples: int | None = None
        self.tried = 0
        self._told: set[str] = set()

    @classmethod
    async def connect(
        cls,
        base_urls: Sequence[str],
        model: str | None = None,
        *,
        api_keys: Sequence[str] = (),
        timeout: float = 600.0,
        tokenizer: PreTrainedTokenizerFast | None = None,
        chat_template: str | None = None,
        split_samples: bool = False,
        omit: Sequence[str] = (),
        context: int | None = None,
    ) -> OpenAIEngine:
        """Ask every server which models it offers, and return the engine.

        Args:
            base_urls: Of equal servers; they usually end in `/v1`.
            model: Its name there; None takes the only one offered.
            api_keys: One for all servers, or one for each; none takes OPENAI_API_KEY's.
            timeout: Seconds one attempt may take.
            tokenizer: The model's, to fit prompts with.
            chat_template: Jinja text that renders a conversation for it.
            split_samples: Ask for samples one by one, for servers that cannot do `n`.
            omit: Fields of requests to leave out, or to call otherwise; see `Fields`.
            context: In tokens, for servers that do not tell; it goes before what they tell.

        Raises:
            UsageError: If no server answers, the key is wrong or the model is not clear.
        """
        with needing("an OpenAI-compatible server", "openai"):
            import openai
        given = [base_urls] if isinstance(base_urls, str) else base_urls
        urls = list(dict.fromkeys(map(_plain_url, given)))
        wrong = [url for url in urls if not is_url(url)]
        if wrong or not urls:
            raise UsageError(f"expected URLs such as http://localhost:8000/v1, got {wrong or urls}")
        allow_open_files()  # a connection is one
        keys = list(api_keys) or [default_key()]
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(  # httpx's or httpx2's, as openai has it
            max_keepalive_connections=MOST_IDLE, keepalive_expiry=KEEP_IDLE
        )
        connect = min(timeout, LONGEST_CONNECT)
        waits = openai.Timeout(timeout, connect=connect)
        servers = []
        for url, key in zip(urls, keys * len(urls) if len(keys) == 1 else keys, strict=True):
            with making_client():
                http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=waits)
            place, _, query = url.partition("?")
            client = openai.AsyncOpenAI(
                base_url=place,
                api_key=key,
                timeout=waits,
                max_retries=0,
                http_client=http,
                default_query=dict(parse_qsl(query)),
                default_headers={"api-key": key} if query else None,  # as Azure wants it
            )
            check_headers(client.default_headers)
            servers.append(Server(shown_url(place), client, http, omit, connect))
        try:
            servers, name, told = await choose(servers, model)
        except BaseException:
            await asyncio.gather(*(server.client.close() for server in servers))
            raise
        engine = cls(servers, name, told if context is None else context)
        engine.tokenizer, engine.chat_template = tokenizer, chat_template
        engine._thoughts = Thoughts(tokenizer, chat_template)
        engine.most_samples = 1 if split_samples else None
        return engine

    async def sample(self, request: Request) -> Reply:
        """Ask once; ask on for samples that the server left out.

        `Usage` is the sum of what the server reports for the requests sent.

        Raises:
            EngineError: If there is no answer.
        """
        return await self._ask_on(request, None)

    async def stream(self, request: Request, told: Told) -> Reply:
        """Ask as `sample` does, and tell of the samples while they are written."""
        return await self._ask_on(request, told)

    async def _ask_on(self, request: Request, told: Told | None) -> Reply:
        n = request.n
        replies: list[Reply] = []
        while (got := sum(len(reply.completions) for reply in replies)) < n:
            if all(server.fields.one_by_one for server in self._servers):
                asked = (self._ask(request, 1, i, shifted(told, i)) for i in range(got, n))
                replies += await gather_or_cancel(asked)
            else:
                replies.append(await self._ask(request, n - got, got, shifted(told, got)))
        return joined(replies)

    async def relay(
        self, body: dict[str, Any], sampling: Sampling, seed: int, heard: Heard | None
    ) -> dict[str, Any]:
        """Ask by a body as it came; see `Relaying`."""
        server = self._pick()
        try:
            own = _decoding(sampling, seed)
            del own["max_tokens"]
            return await server.relay(own, body | {"model": self.model}, heard)
        except EngineError as error:
            raise self._judged(error) from error

    async def reachable(self) -> bool:
        """Tell whether any server answers at all, if only to say no."""
        waits = (server.models() for server in self._servers)
        answers = await asyncio.gather(*waits, return_exceptions=True)
        return not all(isinstance(a, EngineError) and a.kind == "retry" for a in answers)

    async def takes_system(self) -> bool:
        """Tell it by the chat template, else by a question of one token.

        Raises:
            EngineError: If the key is wrong or a quota is used up.
        """
        if self.tokenizer is not None and self.chat_template is not None:
            return shows_system(self.tokenizer, self.chat_template)
        server = self._pick()
        try:
            async with asyncio.timeout(LONGEST_CONNECT):
                return await takes_system(server, self.model)
        except TimeoutError:  # busy: nothing is known
            return True
        except EngineError as error:
            failure = self._judged(error)
            if failure.kind == "fatal":
                raise failure from error
            return True  # others will answer
        finally:
            self.tried = server.tried

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(server.client.close() for server in self._servers))

    async def _ask(self, request: Request, n: int, at: int, told: Told | None) -> Reply:
        """Send one request for at most n samples, from the one at that place on."""
        prompt, sampling = request.prompt, request.sampling
        body: dict[str, Any] = {"model": request.model or self.model}
        if n > 1:
            body["n"] = n
        body |= {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        server = self._pick()
        try:
            words = None if isinstance(prompt, str) else self._thoughts(sampling.extra)
            body |= _decoding(sampling, request.seed + at)
            data = await server.ask(body, apart(told, words))
            reply = read_reply(data, n, server.cached, words)
            ids, read = request.prompt_ids, reply.usage.prompt
            if ids and read and counts_differ(len(ids), read, n):
                self._tell(APART, self.model, read, len(ids))
            if sampling.stop and words and words.opened and reply.completions[0].stopped is None:
                self._tell(STOPS, server.url)
            return reply
        except EngineError as error:
            raise self._judged(error) from error

    def _tell(self, text: str, *facts: object) -> None:
        """Tell something once."""
        if text not in self._told:
            self._told.add(text)
            _log.warning(text, *facts)

    def _judged(self, error: EngineError) -> EngineError:
        """Return what the failure of a server means where there are others to ask."""
        if len(self._servers) == 1:
            return error
        kind, after = error.kind, error.retry_after
        if kind == "fatal" and not all(server.denies for server in self._servers):
            kind = "retry"
        if after is not None:  # the next attempt goes to whoever is back first
            first = min(server.back_at for server in self._servers)
            after = min(after, max(0.0, first - time.monotonic()))
        return EngineError(error.problem, kind, after)

    def _pick(self) -> Server:
        """Return the live server with the fewest requests in flight; of equals, the next one."""
        now = time.monotonic()
        live = [server for server in self._servers if server.is_live(now)]
        if not live:
            return min(self._servers, key=lambda server: (server.denies, server.back_at))
        order = self._servers[self._next :] + self._servers[: self._next]
        server = min((s for s in order if s in live), key=lambda server: server.in_flight)
        self._next = (self._servers.index(server) + 1) % len(self._servers)
        return server


def _plain_url(url: str) -> str:
    """Return a server's URL, of which the address of an endpoint may have been given."""
    place, mark, query = url.strip().partition("?")
    for endpoint in ("/chat/completions", "/completions"):
        place = place.rstrip("/").removesuffix(endpoint)
    return place.rstrip("/") + mark + query


def _decoding(sampling: Sampling, seed: int) -> dict[str, Any]:
    """Return the fields of a request that say how to decode."""
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k is not None:
        body["top_k"] = sampling.top_k
    return body | dict(sampling.extra)

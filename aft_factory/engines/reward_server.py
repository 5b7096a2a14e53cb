"""A reward model behind a server: vLLM's `/classify`, else its `/pooling`, asked for raw logits.

    vllm serve sfairXC/FsfairX-LLaMA3-RM-v0.1 --runner pooling
    reward = await ServerReward.connect(
        "http://localhost:8000", tokenizer="sfairXC/FsfairX-LLaMA3-RM-v0.1"
    )

Every pair is a request of its own, so that vLLM batches them as it sees fit and one that fails
harms no other. They are sent as token ids, made here as `TransformersReward` makes them; hence the
tokenizer is needed; the user names it, as what a server says of its model may name anything on
this machine or on the hub. One attempt each: the caller asks again for what came back as `retry`.
The first goes ahead of the others: what gives no logits for a short pair either is no reward model.
(vLLM's `/score` is not used: it joins two texts in a way of its own, not by the model's chat
template.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aft_factory.engines.engine import EngineError, default_key, is_url, shown_url
from aft_factory.engines.identity import fingerprint
from aft_factory.engines.openai_failures import ABSENT, failure_of
from aft_factory.engines.openai_fields import Needed
from aft_factory.engines.openai_replies import models_in, parse_answer
from aft_factory.engines.openai_vetting import Vetting
from aft_factory.engines.reward import Pair, PairByPair, PairEncoder, choose_label
from aft_factory.errors import UsageError, needing, suggest
from aft_factory.network import hint, making_client
from aft_factory.prompts.tokenizer import Pretrained, load_tokenizer

if TYPE_CHECKING:
    from httpx import AsyncClient

# `use_activation` is the flag's name from vLLM 0.11.1 on, `activation` was it before; a server
# ignores the other. Without it a score would be sigmoid(logit), where all good responses are 1.0.
RAW_LOGITS = {"use_activation": False, "activation": False}
CLASSIFY, POOLING = "/classify", "/pooling"
NO_REWARD = "; a reward model is served with: vllm serve MODEL --runner pooling"
LONGEST_CONNECT = 10.0  # seconds
SHORT_PAIR: Pair = ([{"role": "user", "content": "Hello"}], "Hello")


class ServerReward(PairByPair):
    """A sequence classifier on a server. Made by `connect`."""

    def __init__(
        self,
        model: str,
        root: str,
        client: AsyncClient,
        encoder: PairEncoder,
        concurrency: int,
        label: int | None,
    ) -> None:
        self.model = model
        self.identity = "+".join((model, fingerprint(root), encoder.identity, str(label)))
        self._client = client
        self._encoder = encoder
        self._slots = asyncio.Semaphore(concurrency)
        self._label = label
        self._path = CLASSIFY
        short = encoder.encode([SHORT_PAIR])[0]
        self._vetting = Vetting(
            shown_url(str(client.base_url)).rstrip("/"),
            Needed(),
            self._post,
            short={} if isinstance(short, EngineError) else {"input": short},
            advice=lambda _: NO_REWARD,
        )

    @classmethod
    async def connect(
        cls,
        base_url: str,
        model: str | None = None,
        *,
        tokenizer: str | Pretrained,
        api_key: str | None = None,
        timeout: float = 600.0,
        chat_template: str = "own",
        max_length: int | None = None,
        concurrency: int = 128,
        label: int | None = None,
    ) -> ServerReward:
        """Ask the server which model it has, and return the reward model.

        Args:
            base_url: Of the server, with or without `/v1`.
            model: Its name there; None takes the only one offered.
            tokenizer: Folder or name of the model's tokenizer, or how it is loaded.
            api_key: None takes the environment's OPENAI_API_KEY.
            timeout: Seconds one attempt may take.
            chat_template: See `PairEncoder`.
            max_length: Most tokens of a pair; by default, and at most, what the server reads.
            concurrency: Most requests in flight.
            label: Whose logit is the score, for a classifier with several labels.

        Raises:
            MissingPackage: If httpx or transformers is not installed.
            UsageError: If the server does not answer, or the model or its tokenizer is not clear.
        """
        with needing("a reward model's server", "httpx"):
            import httpx
        url = base_url.strip().rstrip("/").removesuffix("/v1")
        if not is_url(url):
            raise UsageError(f"expected a URL such as http://localhost:8000, got {base_url!r}")
        key = api_key or default_key()
        with making_client():
            client = httpx.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"},
                timeout=timeout,
                limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=3.0),
            )
        try:
            entry = _choose(shown_url(url), await _listed(client, model), model)
            limits = [n for n in (max_length, entry.get("max_model_len")) if isinstance(n, int)]
            root = str(entry.get("root") or entry["id"])
            # Reading its files takes a while: not on the event loop.
            loaded = await asyncio.to_thread(_load_tokenizer, tokenizer)
            encoder = PairEncoder(loaded, chat_template, min(limits, default=None))
        except EngineError as error:
            await client.aclose()
            raise UsageError(f"expected a vLLM server at {shown_url(url)}: {error}") from error
        except BaseException:
            await client.aclose()
            raise
        return cls(entry["id"], root, client, encoder, concurrency, label)

    async def reachable(self) -> bool:
        """Tell whether the server answers at all, if only to say no."""
        try:
            await _call(self._client, "GET", "/v1/models", timeout=LONGEST_CONNECT)
        except EngineError as error:
            return error.kind != "retry"
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _score(self, ids: list[int]) -> float:
        async with self._slots:
            answer = await self._vetting.ask({"model": self.model, "input": ids, **RAW_LOGITS})
        return float(answer["score"])

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._ask(self._path, body)
        except _NoSuchPathError:
            self._path = POOLING
            answer = await self._ask(POOLING, body)
        return {"score": self._read(answer)}

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        more = {"task": "classify"} if path == POOLING else {}
        return await _call(self._client, "POST", path, {**body, **more})

    def _read(self, answer: Any) -> float:
        try:
            [entry] = answer["data"]
            logits = [_number(logit) for logit in entry["probs" if "probs" in entry else "data"]]
        except (TypeError, ValueError, LookupError, OverflowError):
            raise EngineError(f"expected logits, got {str(answer)[:100]}", "refused") from None
        try:
            return logits[choose_label(self.model, len(logits), self._label)]
        except UsageError as error:
            raise EngineError(str(error), "fatal") from error


class _NoSuchPathError(EngineError):
    """The server has no such endpoint, or does not serve a reward model."""


def _number(logit: Any) -> float:
    if isinstance(logit, bool):
        raise TypeError
    return float(logit)


def _load_tokenizer(source: str | Pretrained) -> Any:
    try:
        return load_tokenizer(source)
    except UsageError as error:
        raise UsageError(f"{error}; name the reward model's by --reward-tokenizer") from error


async def _call(client: AsyncClient, method: str, path: str, body: Any = None, **more: Any) -> Any:
    """Send one request and return the answer's JSON.

    Raises:
        EngineError: If there is none.
    """
    import httpx

    try:
        response = await client.request(method, path, json=body, **more)
    except httpx.HTTPError as error:
        base = shown_url(str(client.base_url))
        words = str(error) or type(error).__name__
        raise EngineError(f"{base}: {words}{hint(base, words)}", "retry") from error
    place = shown_url(str(response.url))
    if response.is_success:
        return parse_answer(response.content, place)
    failure = failure_of(response, place, NO_REWARD)
    raise _NoSuchPathError(*failure.args) if response.status_code in ABSENT else failure


async def _listed(client: AsyncClient, model: str | None) -> Any:
    """Return the models that a server lists; of one that lists none, the one that is named.

    Raises:
        EngineError: If it does not answer, or none is named.
    """
    try:
        return models_in(await _call(client, "GET", "/v1/models"))
    except EngineError as error:
        if error.kind == "retry" or model is None:
            raise
        return [{"id": model}]  # a wrong key is told by the first request


def _choose(url: str, listing: Any, model: str | None) -> dict[str, Any]:
    """Return the server's entry of the model."""
    try:
        entries = {str(entry["id"]): dict(entry) for entry in listing}
    except (TypeError, ValueError, LookupError):
        raise UsageError(f"expected {url} to list its models, got {str(listing)[:200]}") from None
    if model is None and len(entries) == 1:
        return next(iter(entries.values()))
    if model not in entries:
        known = suggest(model or "", entries)
        raise UsageError(f"{url}: expected the name of a model it serves, got {model!r}; {known}")
    return entries[model]

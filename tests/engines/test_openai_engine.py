"""The engine for OpenAI-compatible servers. Run: pytest tests/engines/test_openai_engine.py"""

import asyncio
import contextlib
import copy
import json
import logging
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from aiohttp import web
from conftest import ROOT
from flaky_server import FlakyServer, digest, expected_texts
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Place
from aft_factory.engines import openai_engine, openai_server
from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.engines.openai_failures import error_words, retry_after
from aft_factory.engines.openai_neutral import NEUTRAL, fields_of
from aft_factory.engines.openai_vetting import SHORT_QUESTION
from aft_factory.engines.sampling import Completion, Reply, Request, Sampling, Usage
from aft_factory.errors import UsageError

MESSAGES = [{"role": "user", "content": "How many pails?"}]
SHORT = Sampling(max_tokens=8)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """The time by which servers rest, in a list; it moves only by hand."""
    now = [100.0]
    for module in (openai_engine, openai_server):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


async def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


def ask(*requests, server=None, **options):
    """Ask a flaky server of these options for the requests, one after the other."""

    async def main():
        async with FlakyServer(**(server or {})) as running:
            engine = await OpenAIEngine.connect([running.url], **options)
            try:
                return [await engine.sample(request) for request in requests], running
            finally:
                await engine.close()

    return asyncio.run(main())


def request(n=1, seed=7, prompt=MESSAGES, sampling=SHORT, model=None) -> Request:
    return Request(prompt, n, sampling, seed, model)


def error_of(server: dict, **options) -> EngineError:
    with pytest.raises(EngineError) as caught:
        ask(request(), server=server, **options)
    return caught.value


def respond(status=200, body: object = None, headers=None) -> dict:
    """Options of a server that gives this answer to all but a short question."""
    text = body if isinstance(body, str) else json.dumps(body)

    def answer(_, asked):
        if asked.get("messages") == [{"role": "user", "content": SHORT_QUESTION}]:
            return None
        return web.Response(status=status, text=text, headers=headers)

    return {"answer": answer}


def choice(text, **more) -> dict:
    return {"message": {"role": "assistant", "content": text}, **more}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --- what is sent


def test_a_conversation_goes_to_chat_completions_with_all_that_decides_the_answer():
    sampling = Sampling(0.5, 0.9, 20, 8, ("END",), {"min_p": 0.1, "ignore_eos": True})
    _, server = ask(request(n=2, sampling=sampling))
    assert server.requests == [
        (
            "chat/completions",
            {
                "model": "flaky",
                "messages": MESSAGES,
                "n": 2,
                "temperature": 0.5,
                "top_p": 0.9,
                "max_tokens": 8,
                "seed": 7,
                "stop": ["END"],
                "top_k": 20,
                "min_p": 0.1,
                "ignore_eos": True,
            },
        )
    ]


def test_what_is_not_set_is_not_sent():
    _, server = ask(request())
    keys = {"model", "messages", "temperature", "top_p", "max_tokens", "seed"}
    assert set(server.requests[0][1]) == keys


@pytest.mark.parametrize("prompt", [MESSAGES, "Once upon a time"])
def test_a_server_that_reads_as_vllm_is_told_what_it_would_take_from_the_model(prompt):
    _, server = ask(request(prompt=prompt), server={"max_model_len": 4096})
    body = server.requests[0][1]
    assert {name: body[name] for name in NEUTRAL} == {
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    own = Sampling(top_k=20, max_tokens=8, extra={"min_p": 0.1})
    _, server = ask(request(prompt=prompt, sampling=own), server={"max_model_len": 4096})
    body = server.requests[0][1]
    assert {name: body[name] for name in NEUTRAL} == {
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
    }


def test_a_servers_description_tells_which_fields_it_takes():
    def schema(*names):
        always = ("model", "temperature", "max_tokens", "n", "seed")
        return {"properties": {name: {} for name in (*always, *names)}}

    schemas = {
        "Chat": schema("messages", "top_k", "min_p"),
        "Text": schema("prompt", "top_k"),
        "Other": {"properties": {"messages": {}, "top_k": {}}},  # no request for samples
        "Odd": None,
    }
    found = fields_of({"components": {"schemas": schemas}})
    assert {kind: names & set(NEUTRAL) for kind, names in found.items()} == {
        "messages": {"top_k", "min_p"},
        "prompt": {"top_k"},
    }
    for nothing in (None, [], {}, {"components": 1}, {"components": {"schemas": []}}):
        assert fields_of(nothing) == {}


def test_a_text_goes_to_text_completion():
    [reply], server = ask(request(prompt="Once upon a time"))
    path, body = server.requests[0]
    assert (path, body["prompt"], "messages" in body) == ("completions", "Once upon a time", False)
    assert [c.text for c in reply.completions] == expected_texts("Once upon a time", 1, 7, 8)


def test_a_request_for_another_model_names_that_one():
    two = {"models": ("flaky", "other")}
    _, server = ask(request(), request(model="other"), server=two, model="flaky")
    assert [body["model"] for _, body in server.requests] == ["flaky", "other"]


def test_nothing_that_comes_in_is_changed():
    extra = {"min_p": 0.1, "chat_template_kwargs": {"proposals": ["a"]}}
    asked = request(n=3, sampling=Sampling(top_k=5, max_tokens=8, stop=("E",), extra=extra))
    before = copy.deepcopy((asked, extra, MESSAGES))
    ask(asked, server={"most_choices": 1})
    assert (asked, extra, MESSAGES) == before


# --- what comes back


def test_a_reply_holds_the_samples_in_order_with_their_usage():
    [reply], _ = ask(request(n=3))
    texts = expected_texts(MESSAGES, 3, 7, 8)
    words = [len(text.split()) for text in texts]
    reasons = ["length" if n == 8 else "stop" for n in words]
    assert reply == Reply.of(
        tuple(Completion(text, why) for text, why in zip(texts, reasons, strict=True)),
        prompt=4,
        cached=0,
        written=sum(words),
    )


def test_a_single_sample_knows_its_length():
    [reply], _ = ask(request())
    assert reply.completions[0].tokens == reply.usage.completion > 0


def test_token_ids_are_asked_for_only_if_wanted_and_then_give_every_length():
    wanted = Sampling(max_tokens=8, extra={"return_token_ids": True})
    [plain, reply], server = ask(request(n=2), request(n=2, sampling=wanted))
    assert ["return_token_ids" in body for _, body in server.requests] == [False, True]
    lengths = [len(text.split()) for text in expected_texts(MESSAGES, 2, 7, 8)]
    assert [c.tokens for c in plain.completions] == [None, None]
    assert [c.tokens for c in reply.completions] == lengths


def test_content_may_be_null_and_usage_and_finish_reason_may_be_missing():
    [reply], _ = ask(request(), server=respond(body={"choices": [choice(None)]}))
    assert reply == Reply.of((Completion("", "stop"),), None, None, None)


def usages(*asked):
    """What one server's answers are accounted as: each (n, what it says of cached tokens)."""
    told = iter([details for _, details in asked])

    def answer(_, body):
        usage = {"prompt_tokens": 9, "completion_tokens": 2, **next(told)}
        choices = [choice("x")] * body.get("n", 1)
        return web.Response(text=json.dumps({"choices": choices, "usage": usage}))

    replies, _ = ask(*(request(n=n) for n, _ in asked), server={"answer": answer})
    return [reply.usage for reply in replies]


def cached(tokens) -> dict:
    return {"prompt_tokens_details": {"cached_tokens": tokens}}


def test_cached_tokens_are_unknown_until_the_server_tells_and_0_where_it_tells_no_more():
    untold = {"prompt_tokens_details": None}  # as vLLM says 0, and that it does not say
    asked = [(1, untold), (1, {}), (1, cached(8)), (1, untold), (1, {}), (1, cached(0))]
    assert [usage.cached for usage in usages(*asked)] == [None, None, 8, 0, 0, 0]


def test_cached_tokens_of_several_samples_are_unknown_unless_they_are_none():
    """They are those of one of the samples, which may have found what the first one read."""
    asked = [(3, {}), (3, cached(8)), (3, {}), (3, cached(0)), (1, cached(8))]
    assert [usage.cached for usage in usages(*asked)] == [None, None, 0, 0, 8]


def test_a_finish_reason_is_kept_as_given():
    body = {"choices": [choice("x", finish_reason="content_filter")]}
    [reply], _ = ask(request(), server=respond(body=body))
    assert reply.completions[0].finish_reason == "content_filter"


def test_a_server_that_ignores_n_is_asked_again_under_the_following_seeds():
    [reply], server = ask(request(n=5), server={"most_choices": 2})
    assert [(b.get("n", 1), b["seed"]) for _, b in server.requests] == [(5, 7), (3, 9), (1, 11)]
    assert [c.text for c in reply.completions] == expected_texts(MESSAGES, 5, 7, 8)
    assert (reply.usage.prompt, reply.usage.requests) == (3 * 4, 3)


def test_a_server_that_gives_no_choices_at_all_refuses():
    problem = error_of(respond(body={"choices": [], "note": "nothing to say"}))
    assert (problem.kind, "nothing to say" in problem.problem) == ("refused", True)


def test_of_more_choices_than_asked_for_the_first_are_kept():
    body = {"choices": [choice(str(i)) for i in range(4)], "usage": {"completion_tokens": 40}}
    [reply], _ = ask(request(n=2), server=respond(body=body))
    assert [(c.text, c.tokens) for c in reply.completions] == [("0", None), ("1", None)]
    assert reply.usage.completion == 40  # all four were written


def test_a_prompt_read_several_times_attends_as_several_short_ones():
    [reply], _ = ask(request(n=2), server={"most_choices": 1})
    alone = [ask(request(seed=seed))[0][0] for seed in (7, 8)]
    assert reply.usage == sum((part.usage for part in alone), Usage())
    assert reply.usage.attended > 0


def test_split_samples_are_asked_for_one_by_one_under_following_seeds():
    async def main():
        async with FlakyServer() as server:
            engine = await OpenAIEngine.connect([server.url], split_samples=True)
            async with Asker({"": engine}, None, 10) as asker:
                reply = await asker.ask(request(n=3), Place("q", 0, 0, 0))
            await engine.close()
            return reply, server.requests

    reply, requests = asyncio.run(main())
    assert sorted((b.get("n", 1), b["seed"]) for _, b in requests) == [(1, 7), (1, 8), (1, 9)]
    texts = expected_texts(MESSAGES, 3, 7, 8)
    assert [c.text for c in reply.completions] == texts
    assert [c.tokens for c in reply.completions] == [len(text.split()) for text in texts]
    assert (reply.usage.prompt, reply.usage.requests) == (3 * 4, 3)


def test_a_cancelled_request_is_given_up():
    async def main():
        async with FlakyServer(delay=3600) as server:
            engine = await OpenAIEngine.connect([server.url])
            asking = asyncio.create_task(engine.sample(request(n=2)))
            await until(lambda: server.in_flight == 1)
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: server.in_flight == 0)  # it sees the engine hang up
            await engine.close()
            return asking.cancelled()

    assert asyncio.run(main())


# --- errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "retry") for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        *((status, "fatal") for status in (401, 402, 404, 405)),
        *((status, "refused") for status in (400, 403, 413, 418, 422)),
    ],
)
def test_a_status_decides_whether_to_ask_again(status, kind):
    problem = error_of(respond(status, {"error": {"message": "its own words"}}))
    assert (problem.kind, problem.problem[-13:]) == (kind, "its own words")


def test_a_prompt_beyond_the_context_is_refused_in_the_servers_words():
    long = request(prompt=[{"role": "user", "content": "x" * 44}])
    with pytest.raises(EngineError) as caught:
        ask(long, server={"max_model_len": 10})
    assert caught.value.kind == "refused"
    assert str(caught.value) == (
        "This model's maximum context length is 10 tokens. However, your prompt contains 11 input tokens."
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "a\\n b", "code": 400}}', "a b"),
        ('{"object": "error", "message": "old vLLM", "code": 400}', "old vLLM"),
        ('{"detail": "FastAPI"}', "FastAPI"),
        ('{"detail": [{"msg": "no", "loc": ["n"]}]}', '[{"msg":"no","loc":["n"]}]'),
        ('{"error": "bare"}', "bare"),
        ('{"weird": 1}', '{"weird":1}'),
        ("<h1>Bad</h1>", "<h1>Bad</h1>"),
        ("", "(no message)"),
        ("x" * 501, "x" * 500),
    ],
)
def test_the_servers_words_are_found_in_bodies_of_any_shape(body, words):
    assert error_of(respond(400, body)).problem == words


@given(st.binary() | st.recursive(st.none() | st.text() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "detail", "x"]), inner)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_is_withouterror_words(body):
    assert 0 < len(error_words(body)) <= 500


def test_the_time_to_wait_is_read_in_each_of_its_forms():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    waits = [
        error_of(respond(429, "slow down", headers)).retry_after
        for headers in (
            {"Retry-After": "1.5"},
            {"retry-after-ms": "250", "Retry-After": "9"},
            {"Retry-After": soon},
            {"Retry-After": past},
            {"Retry-After": "later"},
            {},
        )
    ]
    assert 90 < waits[2] <= 100
    assert waits == [1.5, 0.25, waits[2], 0.0, None, None]


@given(st.text() | st.floats().map(str) | st.datetimes().map(format_datetime))
def test_any_header_gives_a_time_to_wait_or_none(text):
    seconds = retry_after({"retry-after": text})
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize("kind", ["reset", "hang"])
def test_an_answer_cut_off_or_too_late_may_be_asked_again(kind):
    failing = {"fail_rate": 1.0, "failures": (kind,)}
    assert error_of(failing, timeout=0.5).kind == "retry"


def test_a_server_that_went_away_may_be_asked_again():
    async def main():
        async with FlakyServer() as server:
            engine = await OpenAIEngine.connect([server.url])
        with pytest.raises(EngineError) as caught:
            await engine.sample(request())
        await engine.close()
        return caught.value, server.url

    problem, url = asyncio.run(main())
    assert (problem.kind, problem.problem.startswith(url)) == ("retry", True)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ('{"choices": [{"mess', "retry", '{"choices": [{"mess'),
        ("[]", "retry", "[]"),
        ("<html>busy</html>", "retry", "<html>busy</html>"),
        ('{"error": {"message": "overloaded"}}', "retry", "overloaded"),
        ('{"error": {"message": "bad gateway", "code": 502}}', "retry", "bad gateway"),
        ('{"error": {"message": "too long", "code": 400}}', "refused", "too long"),
        ('{"object": "error", "message": "who?", "code": 401}', "fatal", "who?"),
        ('{"id": 1}', "refused", '{"id":1}'),
        ('{"choices": [{"message": {"content": 5}}]}', "retry", "5"),
        ('{"choices": [{"text": "half", "finish_reason": "abort"}]}', "retry", "abort"),
    ],
)
def test_a_body_that_holds_no_answer_is_an_error_whatever_the_status_says(body, kind, words):
    problem = error_of(respond(200, body))
    assert (problem.kind, words in problem.problem) == (kind, True)


# --- connecting


def connect(*urls, **options) -> OpenAIEngine:
    async def main():
        engine = await OpenAIEngine.connect(urls, **options)
        await engine.close()
        return engine

    return asyncio.run(main())


def connect_to(*servers: dict, **options) -> OpenAIEngine:
    async def main():
        running = [FlakyServer(**server) for server in servers]
        try:
            urls = [(await server.__aenter__()).url for server in running]
            engine = await OpenAIEngine.connect(urls, **options)
            await engine.close()
        finally:
            for server in running:
                await server.__aexit__()
        return engine

    return asyncio.run(main())


def test_the_only_model_offered_is_taken_with_the_smallest_context():
    engine = connect_to({"max_model_len": 4096}, {"max_model_len": 2048}, {})
    assert (engine.model, engine.context) == ("flaky", 2048)


@pytest.mark.parametrize("offers", [[("a", "b")], [("a",), ("b",)]])
def test_of_several_models_one_must_be_named(offers):
    with pytest.raises(UsageError, match="the servers offer a, b"):
        connect_to(*({"models": models} for models in offers))
    assert connect_to(*({"models": models} for models in offers), model="b").model == "b"


def test_servers_that_do_not_offer_the_model_are_left_out(caplog):
    async def main():
        offers = (("a",), ("a", "b"), ("b",), None)
        async with contextlib.AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(FlakyServer(models=models)) for models in offers
            ]
            engine = await OpenAIEngine.connect([server.url for server in servers], "b")
            for i in range(9):
                await engine.sample(request(seed=i))
            await engine.close()
            return servers[0].url, [len(server.requests) for server in servers]

    caplog.set_level(logging.WARNING, "aft_factory")  # a command before may have set another
    url, asked = asyncio.run(main())
    assert asked == [0, 3, 3, 3]
    assert [record.message for record in caplog.records if record.name.startswith("aft")] == [
        f"{url} is left out: it does not offer the model b"
    ]


def test_the_context_is_that_of_servers_that_are_asked():
    servers = ({"models": (name,), "max_model_len": n} for name, n in (("a", 512), ("b", 1024)))
    assert connect_to(*servers, model="b").context == 1024


def test_a_model_that_no_server_offers_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="no server offers the model 'flakky'; did you mean 'fl"):
        connect_to({}, {"models": ("other",)}, model="flakky")


def test_servers_that_may_know_more_names_than_they_list_are_asked():
    assert connect_to_listing([{"id": "llama3:latest"}], "llama3").model == "llama3"


def test_a_server_without_a_list_of_models_needs_the_models_name():
    with pytest.raises(UsageError, match="expected the name of one model"):
        connect_to({"models": None})
    engine = connect_to({"models": None}, model="mine")
    assert (engine.model, engine.context) == ("mine", None)


def connect_to_listing(cards, model) -> OpenAIEngine:
    """Connect to a server that lists these models."""

    async def main():
        app = web.Application()
        app.router.add_get("/v1/models", lambda _: web.json_response({"data": cards}))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
        try:
            engine = await OpenAIEngine.connect([url], model)
            await engine.close()
        finally:
            await runner.cleanup()
        return engine

    return asyncio.run(main())


def test_an_adapter_without_its_own_length_has_its_base_models():
    cards = [{"id": "base", "max_model_len": 512}, {"id": "adapter", "parent": "base"}]
    assert connect_to_listing([*cards, 5, {"new": 1}], "adapter").context == 512


@pytest.mark.parametrize(
    "told",
    [
        *({name: 512} for name in ("context_length", "context_window", "max_context_length")),
        {"meta": {"n_ctx": 512, "n_ctx_train": 256}},
        {"context_length": 4096, "top_provider": {"context_length": 512, "max_completion_tokens": 9}},
        {"parameters": {"max_seq_len": 512}, "max_model_len": 1024, "context_window": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_context_is_read_however_a_list_of_models_calls_it(told):
    others = [{"id": "small", "context_length": 64}]
    assert connect_to_listing([{"id": "m", **told}, *others], "m").context == 512
    assert connect_to_listing([{"id": "m"}, *others], "m").context is None


def test_when_no_server_answers_every_url_is_named_with_its_problem():
    urls = [f"http://127.0.0.1:{closed_port()}/v1" for _ in range(2)]
    with pytest.raises(UsageError) as caught:
        connect(*urls, model="m")
    assert all(f"{url}: Connection error." in str(caught.value) for url in urls)


@pytest.mark.parametrize(
    ("status", "text"), [(418, "teapot"), (500, "teapot"), (501, "teapot"), (200, "teapot")]
)
def test_a_server_that_does_not_list_its_models_is_asked_for_the_one_that_is_named(
    status, text, caplog
):
    async def main():
        app = web.Application()
        app.router.add_get("/v1/models", lambda _: web.Response(status=status, text=text))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            engine = await OpenAIEngine.connect([url], "m")
            await engine.close()
            with pytest.raises(UsageError, match="expected the name of one model"):
                await OpenAIEngine.connect([url])
        finally:
            await runner.cleanup()
        return engine.model, url

    model, url = asyncio.run(main())
    assert model == "m"
    assert f"{url} does not list its models: " in caplog.text
    assert "teapot" in caplog.text


def test_a_wrong_key_says_where_to_set_the_right_one(monkeypatch):
    with pytest.raises(UsageError, match=r"401.*set OPENAI_API_KEY"):
        connect_to({"api_key": "sesame"})
    assert connect_to({"api_key": "sesame"}, api_keys=["sesame"]).model == "flaky"
    monkeypatch.setenv("OPENAI_API_KEY", "sesame\n")
    assert connect_to({"api_key": "sesame"}).model == "flaky"


WRONG_URLS = [
    *("localhost:8000/v1", "http://localhost:80a/v1", "http://localhost:99999/v1"),
    *("http://[::1/v1", "http:///v1", "http://local\x01host/v1"),
]


@pytest.mark.parametrize("urls", [[], *([url] for url in WRONG_URLS)])
def test_urls_must_be_urls(urls):
    with pytest.raises(UsageError, match="expected URLs such as"):
        connect(*urls, model="m")


# --- several servers


def gated():
    """Options of a server that keeps all requests waiting, and what opens it."""
    gate = asyncio.Event()

    async def answer(*_):
        await gate.wait()

    return {"answer": answer}, gate


def test_requests_are_spread_over_the_servers():
    async def main():
        waiting, gate = gated()
        async with FlakyServer(**waiting) as one, FlakyServer(**waiting) as two:
            engine = await OpenAIEngine.connect([one.url, two.url])
            asking = [asyncio.create_task(engine.sample(request(seed=i))) for i in range(10)]
            await until(lambda: one.in_flight + two.in_flight == 10)
            at_once = (one.in_flight, two.in_flight)
            gate.set()
            await asyncio.gather(*asking)
            for i in range(4):
                await engine.sample(request(seed=i))
            await engine.close()
            return at_once, (len(one.requests), len(two.requests))

    assert asyncio.run(main()) == ((5, 5), (7, 7))


def test_the_server_with_less_to_do_gets_more():
    async def main():
        waiting, gate = gated()
        async with FlakyServer(**waiting) as slow, FlakyServer() as fast:
            engine = await OpenAIEngine.connect([slow.url, fast.url])
            first = asyncio.create_task(engine.sample(request()))
            await until(lambda: slow.in_flight == 1)
            for i in range(9):
                await engine.sample(request(seed=i))
            gate.set()
            await first
            await engine.close()
            return len(slow.requests), len(fast.requests)

    assert asyncio.run(main()) == (1, 9)


async def kinds(engine, count):
    """Ask for answers, one after the other; return the failures' kinds."""
    failed = []
    for i in range(count):
        try:
            await engine.sample(request(seed=i))
        except EngineError as problem:
            failed.append(problem.kind)
    return failed


def test_a_dead_server_rests_and_is_used_again_once_it_lives(clock):
    async def main():
        async with FlakyServer() as sound:
            async with FlakyServer() as frail:
                engine = await OpenAIEngine.connect([sound.url, frail.url])
            lost = await kinds(engine, 20)
            async with FlakyServer(port=frail.port) as again:
                clock[0] += 1  # the first rest is a second
                lost += await kinds(engine, 10)
                await engine.close()
                return lost, len(sound.requests), len(again.requests)

    assert asyncio.run(main()) == (["retry"], 19 + 5, 5)


def test_a_server_that_does_not_answer_at_the_start_may_join_later(clock):
    async def main():
        port = closed_port()
        async with FlakyServer() as sound:
            engine = await OpenAIEngine.connect([sound.url, f"http://127.0.0.1:{port}/v1"])
            async with FlakyServer(port=port) as late:
                clock[0] += 1
                lost = await kinds(engine, 4)
                await engine.close()
                return lost, len(late.requests)

    assert asyncio.run(main()) == ([], 2)


class Slow(FlakyServer):
    """One that keeps whoever asks for its models waiting, and counts them."""

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.gate, self.looked = asyncio.Event(), 0

    async def _models(self, asked) -> web.Response:
        self.looked += 1
        await self.gate.wait()
        return await super()._models(asked)


def test_a_server_that_joins_later_shows_what_it_takes_before_it_is_asked_anything(clock):
    """Until it has, it gets one request, as it may be as dead as before."""

    async def main():
        port = closed_port()
        async with FlakyServer(max_model_len=4096) as sound:
            engine = await OpenAIEngine.connect([sound.url, f"http://127.0.0.1:{port}/v1"])
            async with Slow(port=port, max_model_len=4096) as late:
                clock[0] += 1
                asking = [asyncio.create_task(engine.sample(request(seed=i))) for i in range(8)]
                await until(lambda: late.looked and len(sound.requests) == 7)
                before = len(late.requests)
                late.gate.set()
                await asyncio.gather(*asking)
                lost = await kinds(engine, 4)
                await engine.close()
                return lost, before, late.looked, [body for _, body in late.requests]

    lost, before, looked, sent = asyncio.run(main())
    assert (lost, before, looked, len(sent)) == ([], 0, 1, 3)
    assert all({name: body[name] for name in NEUTRAL} == NEUTRAL for body in sent)


def test_a_server_that_joins_later_and_wants_another_key_denies(clock):
    async def main():
        port = closed_port()
        async with FlakyServer() as sound:
            engine = await OpenAIEngine.connect([sound.url, f"http://127.0.0.1:{port}/v1"])
            async with FlakyServer(port=port, api_key="another") as late:
                clock[0] += 1
                lost = await kinds(engine, 6)
                await engine.close()
                return lost, len(late.requests)

    assert asyncio.run(main()) == (["retry"], 1)


@pytest.mark.parametrize("status", [408, 425, 429])
def test_a_server_that_has_enough_rests_as_long_as_it_says(clock, status):
    full = respond(status, "enough", {"Retry-After": "7"})

    async def main():
        async with FlakyServer(**full) as limited, FlakyServer() as other:
            engine = await OpenAIEngine.connect([limited.url, other.url])
            with pytest.raises(EngineError) as caught:
                await engine.sample(request())
            lost = await kinds(engine, 10)
            clock[0] += 6.9
            lost += await kinds(engine, 10)
            before = len(limited.requests)
            clock[0] += 0.2
            lost += await kinds(engine, 10)
            await engine.close()
            return caught.value.retry_after, before, len(limited.requests), lost

    # There is another to ask, so that the next attempt need not wait those 7 seconds.
    assert asyncio.run(main()) == (0, 1, 2, ["retry"])


def test_if_all_servers_have_enough_the_next_attempt_waits_for_the_first_to_be_back(clock):
    async def main():
        servers = [respond(429, "enough", {"Retry-After": after}) for after in ("9", "300")]
        async with FlakyServer(**servers[0]) as one, FlakyServer(**servers[1]) as two:
            engine = await OpenAIEngine.connect([one.url, two.url])
            waits = []
            for _ in range(2):
                with pytest.raises(EngineError) as caught:
                    await engine.sample(request())
                waits.append(caught.value.retry_after)
            await engine.close()
            return waits

    assert asyncio.run(main()) == [0, 9]


def test_a_server_that_has_enough_takes_the_answer_of_none_of_the_requests():
    """It is the quickest to answer, and so would always be the one with the least to do."""
    full = respond(429, "enough", {"Retry-After": "3600"})

    async def main():
        async with FlakyServer(**full) as limited, FlakyServer() as other:
            engine = await OpenAIEngine.connect([limited.url, other.url])
            async with Asker({"": engine}, None, 100) as asker:
                asking = (asker.ask(request(seed=i), Place("q", 0, 0, i)) for i in range(100))
                await asyncio.gather(*asking)
            await engine.close()
            return asker.counts.asked.requests, asker.counts.retried, len(limited.requests)

    assert asyncio.run(main()) == (100, 50, 50)  # half of those sent before it spoke


def test_what_a_server_took_before_it_had_enough_does_not_end_its_rest(clock):
    server = connect_to({}, {})._servers[0]
    failure = EngineError("enough", "retry", 5.0)
    server._fails(started=100.0, failure=failure, in_doubt=False)
    server._works(started=99.0)
    assert not server.is_live(104.9)
    server.in_flight = 3  # it works on these, and is asked for more all the same
    assert server.is_live(105.1)
    server._works(started=105.1)
    assert server.is_live(105.1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_denies_rests_while_others_answer(clock, status):
    deny = lambda *_: web.Response(status=status, text="who?")  # noqa: E731
    each = 2 if status == 403 else 1  # which may be of one question: a short one tells

    async def main():
        async with FlakyServer(answer=deny) as odd, FlakyServer() as sound:
            engine = await OpenAIEngine.connect([odd.url, sound.url])
            lost = await kinds(engine, 10)
            clock[0] += each
            lost += await kinds(engine, 10)
            await engine.close()
            return lost, len(odd.requests)

    assert asyncio.run(main()) == (["retry", "retry"], 2 * each)


def test_only_if_all_servers_deny_the_run_ends():
    async def main():
        async with FlakyServer(**respond(404)) as one, FlakyServer(**respond(401)) as two:
            engine = await OpenAIEngine.connect([one.url, two.url])
            denied = await kinds(engine, 3)
            await engine.close()
            return denied

    assert asyncio.run(main()) == ["retry", "fatal", "fatal"]


DEAD = EngineError("refused", "retry")


def test_rests_double_up_to_a_minute_and_one_outage_counts_once(clock):
    server, rests = connect_to({}, {})._servers[0], []
    for _ in range(1100):
        server._fails(clock[0], DEAD, in_doubt=True)
        server._fails(clock[0] - 1, DEAD, in_doubt=True)  # it was in flight then
        rests.append(server.back_at - clock[0])
        assert not server.is_live(clock[0])
        clock[0] = server.back_at
        assert server.is_live(clock[0])
    assert rests == [1, 2, 4, 8, 16, 32] + [60] * 1094
    server._works(clock[0])
    server._fails(clock[0], DEAD, in_doubt=True)
    assert server.back_at - clock[0] == 1


def test_a_server_back_from_its_rest_gets_one_request_at_a_time_until_it_answers(clock):
    server = connect_to({}, {})._servers[0]
    server._fails(clock[0], DEAD, in_doubt=True)
    later = server.back_at + 0.1
    server.in_flight = 1
    assert not server.is_live(later)
    server._works(later)
    assert server.is_live(later)


def test_a_single_server_never_rests(clock):
    server = connect_to({})._servers[0]
    server._fails(clock[0], DEAD, in_doubt=True)
    assert server.is_live(clock[0])


def test_a_single_server_that_is_left_of_several_never_rests(clock):
    [server] = connect_to({}, {"models": ("other",)}, model="flaky")._servers
    server._fails(clock[0], DEAD, in_doubt=True)
    assert server.is_live(clock[0])


def test_with_all_servers_resting_the_request_goes_out_at_once():
    async def main():
        failing = respond(503, "closed", {"Retry-After": "3600"})
        async with FlakyServer(**failing) as one, FlakyServer(**failing) as two:
            engine = await OpenAIEngine.connect([one.url, two.url])
            failed = await asyncio.wait_for(kinds(engine, 6), 120)
            await engine.close()
            return failed, len(one.requests) + len(two.requests)

    assert asyncio.run(main()) == (["retry"] * 6, 6)


# --- many at once, and the server itself


def test_a_sample_of_the_flaky_server_depends_on_prompt_and_seed_alone():
    long = expected_texts(MESSAGES, 3, 7)
    assert expected_texts(MESSAGES, 2, 8) == long[1:]
    assert expected_texts(MESSAGES, 3, 7, 4) == [" ".join(text.split()[:4]) for text in long]
    assert expected_texts([{"role": "user", "content": "?"}], 3, 7) != long
    assert len(set(long)) == 3


@pytest.fixture
def served(tmp_path):
    """A flaky server in a process of its own; returns how to start it."""
    started = []

    def start(*options) -> str:
        command = [sys.executable, str(ROOT / "tests" / "flaky_server.py"), *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_thousand_requests_at_once_all_come_back_even_where_few_files_may_be_open(
    served, tmp_path
):
    resource = pytest.importorskip("resource")
    url = served("--delay", "1", "--log", str(tmp_path / "log.jsonl"))

    async def main():
        engine = await OpenAIEngine.connect([url])
        replies = await asyncio.gather(*(engine.sample(request(seed=i)) for i in range(1000)))
        await engine.close()
        return [reply.completions[0].text for reply in replies]

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        texts = asyncio.run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert texts == [expected_texts(MESSAGES, 1, seed, 8)[0] for seed in range(1000)]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1000


def test_asked_until_all_is_answered_a_flaky_server_answers_nothing_twice(tmp_path):
    async def insist(engine, asked):
        while True:
            try:
                return await engine.sample(asked)
            except EngineError as problem:
                if problem.kind != "retry":
                    raise
                await asyncio.sleep(problem.retry_after or 0)

    async def main():
        log = tmp_path / "log.jsonl"
        async with FlakyServer(fail_rate=0.5, log=log) as server:
            engine = await OpenAIEngine.connect([server.url], timeout=3)
            await asyncio.gather(*(insist(engine, request(seed=i)) for i in range(60)))
            await engine.close()
            return server, [json.loads(line) for line in log.read_text().splitlines()]

    server, logged = asyncio.run(main())
    assert set(server.failed) == {"429", "500", "503", "reset", "hang"}
    assert len(server.requests) == len(server.failed) + 60
    assert logged == server.log
    assert sorted(entry["seed"] for entry in logged) == list(range(60))
    assert {entry["key"] for entry in logged} <= {digest([p, b]) for p, b in server.requests}


@pytest.mark.skipif(not find_spec("llamafactory"), reason="beside the newest vLLM it cannot be")
@pytest.mark.slow
def test_the_api_of_llamafactory_gives_n_samples(tmp_path, tiny_llama, ready_llamafactory):
    """It takes n, ignores seeds and refuses what is not a dialogue; the engine's docstring says so."""
    port = closed_port()
    config = tmp_path / "api.yaml"
    options = {"model_name_or_path": str(tiny_llama), "template": "aft_llama3"}
    config.write_text(json.dumps(options | {"infer_backend": "huggingface"}))  # JSON is YAML
    environment = {"API_HOST": "127.0.0.1", "API_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    environment["API_MODEL_NAME"] = "tiny"
    log = tmp_path / "output.txt"
    process = ready_llamafactory.start("llamafactory.cli", ["api", config], log, **environment)

    def said() -> str:
        return log.read_text(errors="replace")[-4000:]

    async def start() -> OpenAIEngine:
        deadline = time.monotonic() + 180
        while True:
            try:
                return await OpenAIEngine.connect([f"http://127.0.0.1:{port}/v1"])
            except UsageError:
                assert process.poll() is None, said()
                assert time.monotonic() < deadline, said()
                await asyncio.sleep(0.1)

    async def main():
        engine = await start()
        try:
            replies = [await engine.sample(request(n=2)) for _ in range(2)]
            greedy = Sampling(temperature=0, max_tokens=8)
            replies += [await engine.sample(request(n=n, sampling=greedy)) for n in (1, 1, 2)]
            with pytest.raises(EngineError) as refusal:
                await engine.sample(request(prompt=[*MESSAGES, *MESSAGES]))
            with pytest.raises(EngineError) as missing:
                await engine.sample(request(prompt="a text to complete"))
        finally:
            await engine.close()
        return engine.model, replies, refusal.value, missing.value

    try:
        model, replies, refusal, missing = asyncio.run(main())
    finally:
        process.end()
    first, again, greedy, greedy_again, greedy_two = replies
    assert model == "tiny"
    assert [len(reply.completions) for reply in replies] == [2, 2, 1, 1, 2]
    assert all(c.finish_reason in ("stop", "length") for c in first.completions)
    tokens = (first.usage.prompt, first.usage.cached, first.usage.requests, first.usage.samples)
    assert tokens == (greedy.usage.prompt, None, 1, 2)
    assert greedy.completions[0].tokens == greedy.usage.completion <= 8
    assert greedy == greedy_again
    # its quirks: no seed, and temperature 1 for two samples at temperature 0
    assert first.completions != again.completions
    assert greedy_two.completions[0].text != greedy_two.completions[1].text
    assert (refusal.kind, refusal.problem) == ("refused", "Only supports u/a/u/a/u...")
    assert (missing.kind, "404: Not Found" in missing.problem) == ("fatal", True)

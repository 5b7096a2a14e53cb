"""Answers and errors in the shapes that servers in use give them: what is read, what is told.

Each is a manner that somebody has reported of a server; most are of no one server alone.

Run: pytest tests/engines/test_server_shapes.py
"""

import asyncio
import contextlib
import json

import httpx
import pytest
from aiohttp import web
from flaky_server import FlakyServer

from aft_factory.asking.availability import Availability, Retries
from aft_factory.engines.engine import EngineError
from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.engines.openai_failures import MOST_WORDS, error_words, failure_of
from aft_factory.engines.openai_fields import Fields
from aft_factory.engines.openai_replies import parse_body, read_reply
from aft_factory.engines.openai_streams import BEGINNINGS, lines_of
from aft_factory.engines.sampling import Request, Sampling

ANSWER = {"choices": [{"message": {"content": "It is 42."}, "finish_reason": "stop"}]}
RAW = json.dumps({"error": {"message": "the prompt is odd", "param": "seed"}})
PASSED_ON = {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": RAW}}}
GOOGLE = [{"error": {"code": 400, "message": 'Unknown name "seed"', "status": "INVALID_ARGUMENT"}}]
SPENT = "You exceeded your current quota, please check your plan and billing details."


def event(delta, reason=None, key="delta", **more):
    part = {"index": 0, key: delta, "finish_reason": reason, **more}
    return b"data: " + json.dumps({"choices": [part]}, ensure_ascii=False).encode()


def read(body):
    """The one completion in a body."""
    [completion] = read_reply(parse_body(body, "URL"), 1, lambda *_: None).completions
    return completion


def failure(status, body, headers=None):
    return failure_of(httpx.Response(status, json=body, headers=headers), "URL")


def asked(answer, path="", **options):
    """Ask a server once; the reply or error, and its requests."""

    async def main():
        async with FlakyServer(answer=answer) as server:
            engine = await OpenAIEngine.connect([server.url + path], "flaky", **options)
            try:
                question = Request([{"role": "user", "content": "?"}], 1, Sampling(), 7)
                return await engine.sample(question)
            except EngineError as error:
                return error
            finally:
                await engine.close()

    return asyncio.run(main())


# Answers


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + json.dumps(ANSWER).encode(),
        b"\n  \n" + json.dumps(ANSWER).encode(),  # blanks keep a connection alive
        json.dumps(ANSWER).encode() + b"data: [DONE]\n\n",
    ],
    ids=["byte order mark", "blanks before", "end of a stream behind"],
)
def test_what_stands_around_an_answer_does_not_hide_it(body):
    assert read(body).text == "It is 42."


def test_the_tokens_of_a_thought_are_counted_apart_where_the_server_counts_them():
    message = {"reasoning": "6 x 7", "content": "It is 42."}
    details = {"completion_tokens_details": {"reasoning_tokens": 5}}
    for said, count in ((details, 5), ({}, None)):
        usage = {"prompt_tokens": 3, "completion_tokens": 9} | said
        reply = read_reply({"choices": [{"message": message}], "usage": usage}, 1, lambda *_: 0)
        assert (reply.usage.completion, reply.usage.thought) == (9, count)


def test_a_text_that_is_null_leaves_the_message_to_be_read():
    answer = {"choices": [{"text": None, "message": {"content": "It is 42."}}]}
    assert read(json.dumps(answer).encode()).text == "It is 42."


# Streams


@pytest.mark.parametrize(
    "lines",
    [
        [event({"content": "It is "}), event({"content": "42."}, "stop")],  # no [DONE]
        [event({"content": "It is "}), event({"content": "42."}), b"data: [DONE]"],  # no reason
        [event({"content": "It is "}, ""), event({"content": "42."}, "stop")],
        [event({"content": "It is 42."}, "stop", key="message"), b"data: [DONE]"],
        [event({"content": "It is 42."}), event({}, "stop", message={"content": "It is 42."})],
        [b"data: : PROCESSING", b": PROCESSING", event({"content": "It is 42."}, "stop")],
        [b"data: ", event({"content": "It is 42."}, "stop"), b"event: done", b"data: [DONE]"],
        *([name + b" 7", event({"content": "It is 42."}, "stop")] for name in BEGINNINGS[1:]),
    ],
)
def test_a_stream_that_came_to_an_end_is_read_however_it_says_so(lines):
    assert read(b"\n\n".join(lines)).text == "It is 42."
    assert read(b"\r\n\r\n".join(lines)).finish_reason == "stop"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([event({"content": "It is "}, "null")], "broke off"),
        ([event({"content": "It is "}), b'data: {"choices": [{"delta', b"data: [DONE]"], "no JSON"),
        ([b"data: [DONE]"], "broke off"),
        ([b'data: {"code": 429, "message": "slower, please"}'], "slower, please"),
        ([b'data: [{"error": {"code": 503, "message": "busy"}}]'], "busy"),
    ],
)
def test_a_stream_of_which_something_is_missing_is_no_answer(lines, words):
    with pytest.raises(EngineError, match=words) as caught:
        read(b"\n\n".join(lines))
    assert caught.value.kind == "retry"


def test_of_a_stream_in_parts_no_part_is_lost():
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hmm, "}]}]
    more = [{"type": "thinking", "thinking": [{"type": "text", "text": "six."}]}]
    parts = [{"content": ""}, {"content": thought}, {"content": more}]
    parts += [{"content": [{"type": "text", "text": "It "}]}, {"content": "is 42."}]
    completion = read(b"\n\n".join([*map(event, parts), event({}, "stop")]))
    assert (completion.text, completion.thought) == ("It is 42.", "Hmm, six.")


def test_only_line_breaks_end_a_line_of_a_stream():
    text = "a\u2028b\u0085c\x0cd"
    body = event({"content": text}, "stop") + b"\r\n\r\ndata: [DONE]"

    async def pieces():
        for byte in body:
            yield bytes([byte])

    async def main():
        return [line async for line in lines_of(pieces()) if line.strip()]

    lines = asyncio.run(main())
    assert [line.strip() for line in lines] == [event({"content": text}, "stop"), b"data: [DONE]"]


# Errors


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PASSED_ON, "Provider returned error: the prompt is odd"),
        ({"error": {"message": "no", "metadata": {"raw": "busy"}}}, "no: busy"),
        (GOOGLE, 'Unknown name "seed"'),
        ({"error": json.dumps(PASSED_ON)}, "Provider returned error: the prompt is odd"),
        ("{not json", "{not json"),
        ([7], "[7]"),
        ([], "[]"),
    ],
)
def test_the_words_of_an_error_are_those_of_whoever_refused(body, words):
    assert error_words(json.dumps(body).encode()) == words


def test_of_a_page_its_title_is_told():
    page = b"""<!DOCTYPE html><html><head><title>Blocked | Gate</title><style>body{}</style></head>
        <body><h1>You have <b>been</b> blocked</h1></body></html>"""
    assert error_words(page) == "a page of HTML: Blocked | Gate: You have been blocked"


def test_errors_in_errors_come_to_an_end():
    deep = "{}"
    for _ in range(60):
        deep = '{"error": ' + deep + "}"
    assert 0 < len(error_words(deep.encode())) <= MOST_WORDS


def test_a_field_that_is_named_in_an_error_that_was_passed_on_is_left_out():
    raw = json.dumps({"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]})
    refusal = {"error": {"message": "no", "metadata": {"raw": {"data": raw}}}}
    assert Fields().learn(refusal, {"seed": 7, "messages": []}) == ["seed is not sent"]


# Each by one word of its own; those that pass hold one of the others, too, which does not count.
PASSES = (
    *("Rate limit reached: only 20 a minute", "Too many requests; at least 3 s are required"),
    *("Model overloaded, expected a free slot", "Engine busy, missing a slot", "timeout: must end"),
    *("Expected an answer, timed out", "Service unavailable (invalid upstream)"),
    *("Temporarily not supported", "Not found. Try again later", "Only 3 a minute, again in 20 s"),
    *("Unknown to all nodes, try again soon", "Internal: invalid state", "Server error: missing x"),
    *("API error: invalid upstream", "Unexpected error", "Unknown error: expected an answer"),
)
OF_THE_REQUEST = (
    *("Invalid role", "Bad request", "1 validation problem", "'top_p' must be below 1"),
    *("'messages' is required", "expected a list", "'content' is missing", "cannot render it"),
    *("only texts", "unsupported role", "'seed' is not supported", "'n' is not_permitted"),
    *("'n' not allowed here", "'n' is not taken", "'n' was not accepted", "it does not support n"),
    *("it doesn't support n", "unknown field", "unrecognized field", "unrecognised field"),
    *("unexpected field", "extra fields are forbidden"),
)
OF_ALL_REQUESTS = (
    *("Billing hard limit has been reached", "Exceeded the quota: no credit left"),
    *("wrong API key", "Authentication failed", "Unauthorized", "unauthorised", "no permission"),
    *("No such endpoint", "model 'm' not found, try pulling it first", "no models loaded"),
    "The model `m` does not exist or you do not have access to it.",
)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"code": 429, "message": "Resource has been exhausted", "details": "X"}, "retry"),
        ({"status": 500, "message": "oops"}, "retry"),
        ([{"error": {"code": 429, "message": "exhausted"}}], "retry"),
        ({"error": {"code": 500, "message": "Context size has been exceeded."}}, "refused"),
        ({"error": {"status_code": 401, "message": "who?"}}, "fatal"),
        ({"error": {"code": 429, "message": SPENT}}, "fatal"),
        ({"code": 429, "message": SPENT, "retryDelay": "3s"}, "retry"),
        # without a status: by its type, else by its words
        (
            {"error": {"type": "invalid_request_error", "message": "please try again later"}},
            "refused",
        ),
        ({"error": {"type": "rate_limit_error", "message": "invalid burst"}}, "retry"),
        ({"error": {"code": "insufficient_quota", "message": "no"}}, "fatal"),
        ({"error": {"type": "authentication_error", "message": "no"}}, "fatal"),
        ({"error": "Incorrect API key provided"}, "fatal"),
        ({"error": "No models loaded. Please load a model in the developer page."}, "fatal"),
        ({"error": "Only user and assistant roles are supported!"}, "refused"),
        ({"error": "Invalid 'top_p': must be at most 1"}, "refused"),
        ({"error": "Trying to keep the first 9 tokens when context the overflows."}, "refused"),
        ({"error": "n_keep is greater than the context length"}, "refused"),
        ({"error": "The server is busy; the queue is full"}, "retry"),
        ({"error": "The model has crashed without additional information."}, "retry"),
        ({"error": "An unexpected error occurred"}, "retry"),
        ({"error": {"message": "Unknown error"}}, "retry"),
        *(({"error": words}, "retry") for words in PASSES),
        *(({"error": words}, "refused") for words in OF_THE_REQUEST),
        *(({"error": words}, "fatal") for words in OF_ALL_REQUESTS),
    ],
)
def test_an_error_behind_status_200_is_what_its_own_code_says(body, kind):
    with pytest.raises(EngineError) as caught:
        parse_body(json.dumps(body).encode(), "URL")
    assert caught.value.kind == kind


def test_an_answer_that_has_a_code_of_its_own_is_an_answer():
    assert parse_body(json.dumps({"code": 500, **ANSWER}).encode(), "URL")["choices"]


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "after"),
    [
        (500, {"error": {"message": "Context size has been exceeded."}}, {}, "refused", None),
        (503, {"error": {"message": "exceeding the context window"}}, {}, "refused", None),
        (503, {"error": {"message": "Loading model"}}, {}, "retry", None),
        (498, {"error": {"message": "capacity exceeded"}}, {"Retry-After": "3"}, "retry", 3),
        (400, {"error": {"message": "no"}}, {}, "refused", None),
        (500, {"error": {"message": "Error: Jinja Exception: no"}}, {}, "refused", None),
        (500, {"error": {"message": "{{ raise_exception('no') }}"}}, {}, "refused", None),
        (500, {"error": {"message": "Conversation roles must alternate"}}, {}, "refused", None),
        (500, {"error": {"message": "System role not supported"}}, {}, "refused", None),
        (429, {"error": {"message": f"Please try again in 20s. {SPENT}"}}, {}, "retry", 20),
        (429, {"error": {"message": f"Try again in 1h7m12.5s. {SPENT}"}}, {}, "retry", 4032.5),
        (429, {"error": {"message": f"Retry after 2 minutes. {SPENT}"}}, {}, "retry", 120),
        (429, {"error": {"message": f"Please wait 250 ms; {SPENT}"}}, {}, "retry", 0.25),
        (429, {"error": {"message": "Try again in 9s"}}, {"Retry-After": "3"}, "retry", 3),
        (503, {"error": {"message": "Please retry 3 more times"}}, {}, "retry", None),
        (400, {"error": {"message": "no 'try again in 9s'"}}, {}, "refused", None),
        (429, [{"error": {"message": SPENT}}], {}, "fatal", None),
        (
            429,
            [{"error": {"message": SPENT, "details": [{"@type": "x", "retryDelay": "17.5s"}]}}],
            {},
            "retry",
            17.5,
        ),
    ],
)
def test_what_passes_is_asked_again_and_what_does_not_is_not(status, body, headers, kind, after):
    error = failure(status, body, headers)
    assert (error.kind, error.retry_after) == (kind, after)


def test_a_limit_that_outlasts_all_attempts_ends_the_run_at_once():
    async def attempts(seconds, retries):
        asked = []

        async def ask():
            asked.append(1)
            raise EngineError("9 hours to go", "retry", seconds)

        silent = Availability("the model m", retries, asyncio.Event(), lambda: asyncio.sleep(0))
        with pytest.raises(EngineError, match="9 hours to go") as caught:
            await silent.insist(ask)
        return len(asked), caught.value.kind

    quick = Retries(3, 0.0001, 0.001)  # waits 0.01 s at most, three times
    assert asyncio.run(attempts(32400, quick)) == (1, "fatal")
    assert asyncio.run(attempts(0.02, quick)) == (4, "retry")
    assert asyncio.run(attempts(32400, Retries(0))) == (1, "retry")


# Addresses


@pytest.mark.parametrize("path", ["/", "/chat/completions", "/chat/completions/", "/completions"])
def test_the_address_of_an_endpoint_names_its_server(path):
    assert asked(None, path).completions


def test_a_deployment_may_have_the_name_of_an_endpoint():
    seen = []

    async def handle(request):
        seen.append(request.path)
        return web.json_response({"data": [{"id": "m"}]} if request.method == "GET" else ANSWER)

    ask_site(handle, "http://{}/deployments/chat")
    assert seen[-1] == "/deployments/chat/chat/completions"


@contextlib.asynccontextmanager
async def site(handle):
    """A server of which one function answers all; its host and port."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ask_site(handle, url, **options):
    """Ask it once by a URL with its host in it; return the engine and where it is."""

    async def main():
        async with site(handle) as host:
            engine = await OpenAIEngine.connect([url.format(host)], "m", **options)
            try:
                await engine.sample(Request([{"role": "user", "content": "?"}], 1, Sampling(), 7))
            finally:
                await engine.close()
            return engine, host

    return asyncio.run(main())


def test_what_follows_a_question_mark_is_sent_with_every_request():
    seen = []

    async def handle(request):
        seen.append((request.path, request.query_string))
        return web.json_response({"data": [{"id": "m"}]} if request.method == "GET" else ANSWER)

    engine, host = ask_site(handle, "http://me:xyzzy@{}/openai?api-version=1")
    assert ("/openai/models", "api-version=1") in seen
    assert ("/openai/chat/completions", "api-version=1") in seen
    # Neither a password nor what may be a key is in what is told.
    assert engine._servers[0].url == f"http://{host}/openai"


@pytest.mark.parametrize(("query", "header"), [("?api-version=1", "sk-1"), ("", None)])
def test_where_a_question_mark_is_a_key_is_sent_as_azure_wants_it(query, header, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    seen = []

    async def handle(request):
        seen.append((request.headers.get("api-key"), request.headers.get("Authorization")))
        return web.json_response({"data": [{"id": "m"}]} if request.method == "GET" else ANSWER)

    ask_site(handle, "http://{}/openai" + query)
    assert {seen[0], seen[-1]} == {(header, "Bearer sk-1")}


def test_a_redirection_that_loses_the_question_is_told_with_where_it_led():
    def answer(path, _):
        return web.Response(status=301, headers={"Location": "/v1/models"})

    error = asked(answer)
    assert error.kind == "fatal"
    assert "it was redirected to http://127.0.0.1:" in str(error)
    assert "/v1/models; name the server" in str(error)


def test_a_redirection_is_told_without_a_login_or_a_key():
    async def handle(request):
        if request.method == "POST":
            return web.Response(status=301, headers={"Location": "/v1/gone?key=a1b2"})
        return web.json_response({"data": [{"id": "m"}]})

    with pytest.raises(EngineError, match=r"was redirected to http://127\.0\.0\.1:") as caught:
        ask_site(handle, "http://me:xyzzy@{}/v1?key=a1b2")
    assert "xyzzy" not in str(caught.value)
    assert "a1b2" not in str(caught.value)


def test_what_is_no_list_of_models_says_where_the_list_may_be():
    async def handle(request):
        return web.json_response({"error": f"Unexpected endpoint or method. (GET {request.path})"})

    wanted = (
        r"^http://127.0.0.1:\d+: Unexpected .*/chat/completions\) \(should the URL end in /v1\?\)$"
    )
    with pytest.raises(EngineError, match=wanted) as caught:
        ask_site(handle, "http://{}")
    assert caught.value.kind == "fatal"


def test_an_answer_that_comes_by_drops_is_given_up_in_time():
    async def handle(request):
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        response = web.StreamResponse()
        await response.prepare(request)
        while True:  # until it is given up
            await response.write(b" ")
            await asyncio.sleep(0.05)

    with pytest.raises(EngineError, match=r"no whole answer within 0\.6 s") as caught:
        ask_site(handle, "http://{}/v1", timeout=0.3)
    assert caught.value.kind == "retry"

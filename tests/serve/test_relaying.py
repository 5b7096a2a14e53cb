"""What only an engine itself can do: at `plain`, it gets the request as it came.

Run: pytest tests/serve/test_relaying.py
"""

import asyncio
import json

import openai
import pytest
from aiohttp import web
from flaky_server import FlakyServer
from serve_tools import QUESTION, Watched, at_work, served

from aft_factory.engines.openai_engine import OpenAIEngine

TOOL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
MESSAGE = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {
    "id": "up-1",
    "model": "upstream",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls", "odd": [1.5]}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def asked(answer, ask, **settings):
    """Ask our server, in front of one that answers so; what comes of it, and what that one got."""

    async def run():
        async with FlakyServer(answer=answer) as up:
            engine = await OpenAIEngine.connect([up.url], "flaky")
            async with at_work(engine, base_url=[up.url], scripted=False, **settings) as server:
                client = openai.AsyncOpenAI(base_url=server.url, api_key="x", max_retries=0)
                [found] = await asyncio.gather(ask(client), return_exceptions=True)
                limiter = server.state.answering._asker.limiter
                assert (limiter.taken, limiter.waiting) == (0, 0)
            await engine.close()
            return found, [body for _, body in up.requests]

    return asyncio.run(run())


def posting(**fields):
    async def ask(client):
        body = {"model": "plain", "messages": QUESTION, **fields}
        return await client.post("/chat/completions", body=body, cast_to=object)

    return ask


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": "auto", "temperature": 0.3},
        {"logprobs": True, "top_logprobs": 3, "stream": False},
        {"response_format": {"type": "json_object"}, "max_completion_tokens": 9},
        {"guided_regex": "[0-9]", "n": 2},
        {"messages": [{"role": "user", "content": IMAGE}]},
        {"messages": [*QUESTION, MESSAGE, {"role": "tool", "tool_call_id": "1", "content": "6"}]},
        {"messages": [*QUESTION, {"role": "assistant", "content": "Si"}], "add_generation_prompt": False},
        {"tools": [TOOL], "model": "aft-l0", "aft": {"width": 3}},
    ],
)  # fmt: skip
def test_the_engine_gets_it_as_it_came_and_its_answer_is_handed_on(fields):
    found, [body] = asked(lambda *_: web.json_response(ANSWER), posting(**fields))
    named = fields.pop("model", "plain")
    fields.pop("aft", None), fields.pop("stream", None)
    assert found == ANSWER | {"model": named}
    assert {name: body[name] for name in fields} == fields
    assert body["model"] == "flaky"
    assert not {"aft", "stream", "max_tokens"} & body.keys()
    assert body["temperature"] == fields.get("temperature", 0.7)  # as the server's settings have it
    assert body["seed"] == 42


def test_a_stream_is_handed_on_chunk_by_chunk():
    parts = [
        {"role": "assistant", "content": "", "reasoning": "Hm."},
        {"tool_calls": [{"index": 0, **CALL}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]
    chunks = [{"id": "up", "model": "m", "choices": [{"index": 0, "delta": p}]} for p in parts]
    chunks.append(
        {
            "id": "up",
            "model": "m",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}],
        }
    )
    chunks.append({"id": "up", "model": "m", "choices": [], "usage": ANSWER["usage"]})
    sent = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    async def ask(client):
        found = []
        stream = await client.chat.completions.create(
            model="plain", messages=QUESTION, tools=[TOOL], stream=True
        )
        async for chunk in stream:
            found.append(chunk.model_dump(exclude_unset=True))
        return found

    events = web.Response(text=sent, content_type="text/event-stream")
    found, [body] = asked(lambda *_: events, ask)
    assert found == [chunk | {"model": "plain"} for chunk in chunks]
    assert body["stream"] is True
    assert "stream_options" not in body


@pytest.mark.parametrize(
    ("status", "words", "kind", "code"),
    [
        (400, "no such tool", openai.BadRequestError, "refused_by_model"),
        (400, "maximum context length is 10", openai.BadRequestError, "context_length_exceeded"),
        (404, "no such model", openai.InternalServerError, "model_failed"),
        (500, "it broke", openai.InternalServerError, "model_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_engine_is_told_as_always_and_asked_for_once(
    status, words, kind, code, stream
):
    def answer(_, body):
        if "tools" in body:
            return web.json_response({"error": {"message": words}}, status=status)
        return None

    async def ask(client):
        with pytest.raises(kind, match=words) as raised:
            await posting(tools=[TOOL], stream=stream)(client)
        await posting()(client)  # others are answered all the same
        return raised.value.code

    found, bodies = asked(answer, ask)
    assert (found, len([b for b in bodies if "tools" in b])) == (code, 1)


def test_the_servers_limits_hold():
    async def ask(client):
        for fields in ({"n": 17}, {"max_tokens": 51}):
            with pytest.raises(openai.BadRequestError):
                await posting(tools=[TOOL], **fields)(client)
        return await posting(tools=[TOOL])(client)

    _, [body] = asked(lambda *_: web.json_response(ANSWER), ask, max_answer=50)
    assert body["max_tokens"] == 50


def test_what_is_drafted_for_and_what_no_server_answers_is_refused_still():
    async def ask(client):
        with pytest.raises(openai.BadRequestError) as raised:
            await posting(logprobs=True, model="aft")(client)
        return raised.value.param

    found, bodies = asked(None, ask)
    assert (found, bodies) == ("logprobs", [])
    way = pytest.raises(openai.BadRequestError, match=r"leave it out, or .* by `vllm serve`")
    with served(Watched()) as one, way:
        one.ask("plain", logprobs=True)

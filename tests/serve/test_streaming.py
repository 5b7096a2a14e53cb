"""Streams of the server: what they show and when, and that nothing is made for nobody.

Run: pytest tests/serve/test_streaming.py
"""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import threading
import time
from dataclasses import replace

import openai
import pytest
from serve_tools import QUESTION, Watched, drafts_of, raw_request, served, until

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Piece, Reply
from aft_factory.prompts.markers import known_markers
from aft_factory.serve import chat, events
from aft_factory.serve.serving import listen
from aft_factory.serve.showing import Showing


@pytest.fixture(scope="module")
def server():
    with served(Watched(drafts_of)) as one:
        yield one


def told(stream, field="reasoning_content"):
    """What a stream says: drafts, answers by index, reasons, and its last chunk."""
    drafts, answers, reasons, last = "", {}, {}, None
    for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            drafts += getattr(choice.delta, field, None) or ""
            before = answers.get(choice.index, "")
            answers[choice.index] = before + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
    return drafts, answers, reasons, last


def test_a_stream_says_what_the_plain_answer_says(server):
    plain = server.ask(n=2, extra_body={"aft": {"keep_drafts": True}})
    options = {"include_usage": True}
    drafts, answers, reasons, last = told(server.ask(n=2, stream=True, stream_options=options))
    assert answers == {c.index: c.message.content for c in plain.choices}
    assert drafts == plain.choices[0].message.reasoning_content
    assert reasons == {0: "stop", 1: "stop"}
    assert last.usage == plain.usage
    assert last.aft == plain.aft


def test_the_bytes_of_a_stream_are_as_clients_read_them(server):
    with server.client().chat.completions.with_streaming_response.create(
        model="aft", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as response:
        headers, lines = response.headers, list(response.iter_lines())
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert lines[1::2] == [""] * (len(lines) // 2)
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2:2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}  # fmt: skip
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]]
    # A front end closes what it folds at the first content, be it empty.
    assert all(("content" in d) != ("reasoning_content" in d) for d in deltas)


def test_without_being_asked_a_stream_tells_no_usage(server):
    assert all(chunk.usage is None and chunk.choices for chunk in server.ask(stream=True))


@pytest.mark.parametrize(
    ("setting", "fields"),
    [
        ("reasoning_content", ["reasoning_content"]),
        ("reasoning", ["reasoning"]),
        ("both", ["reasoning", "reasoning_content"]),
        ("none", []),
    ],
)
def test_drafts_are_shown_in_the_field_of_choice(setting, fields):
    with served(Watched(drafts_of), reasoning_field=setting) as server:
        chunks = list(server.ask(stream=True))
        keys = {key for c in chunks for key in c.choices[0].delta.model_extra}
        assert sorted(keys & {"reasoning_content", "reasoning"}) == fields
        assert told(chunks)[1][0].startswith("aggregation")


def test_the_first_draft_is_shown_as_it_is_written_and_the_others_whole_as_they_end():
    words = {0: "a0 a1 a2 a3 a4 a5", 1: "b0 b1", 2: "c0 c1 c2 c3 c4 c5 c6 c7"}

    def script(request):
        return [words[i] for i in range(3)] if request.n == 3 else ["the answer"]

    with served(Watched(script, delay=0.2)) as server:
        shown = [
            getattr(choice.delta, "reasoning_content", None) or f"[{choice.delta.content}]"
            for chunk in server.ask(stream=True)
            for choice in chunk.choices
            if choice.finish_reason is None
        ]
    assert shown == [
        *("[]", "**Draft 1, layer 1**\n\na0", " a1", " a2", " a3", " a4", " a5"),
        "\n\n**Draft 2, layer 1**\n\nb0 b1",
        "\n\n**Draft 3, layer 1**\n\nc0 c1 c2 c3 c4 c5 c6 c7",
        *("[the]", "[ answer]"),
    ]


def test_drafts_of_every_layer_are_shown(server):
    drafts = told(server.ask("aft-k2-l3", stream=True))[0]
    headings = [line for line in drafts.splitlines() if line.startswith("**")]
    assert headings == [f"**Draft {i}, layer {layer}**" for layer in (1, 2, 3) for i in (1, 2)]


def test_an_answer_that_is_chosen_among_drafts_comes_whole():
    with served(Watched(drafts_of), variants={"vote": {"strategy": "majority_vote"}}) as server:
        answer = server.ask("vote").choices[0].message.content
        drafts, answers, _, _ = told(server.ask("vote", stream=True))
        assert answers == {0: answer}
        assert drafts.count("**Draft") == 5


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_control_tokens_are_mended_in_streams_however_they_are_cut(step):
    text = "say <\u200b|eot_id|> and [\u200bINST] but 1 <\u200b 2, <\u200b/s> <\u200b|e"

    class Cut(Watched):
        async def stream(self, request, told):
            for start in range(0, len(text), step):
                told(Piece(0, text[start : start + step], start, ended=start + step >= len(text)))
            return Reply.of([Completion(text, tokens=1)], 1, 0, 1)

        async def sample(self, request):
            return await self.stream(request, lambda _: None)

    with served(Cut()) as server:
        expected = server.ask("plain").choices[0].message.content
        assert "<|eot_id|>" in expected
        assert told(server.ask("plain", stream=True))[1] == {0: expected}


class Unsteady(Watched):
    """Fails in the middle of the first attempts at an answer, then writes another text."""

    def __init__(self, fails, texts):
        super().__init__()
        self.fails, self.texts = fails, itertools.chain(texts, itertools.repeat(texts[-1]))

    async def stream(self, request, told):
        text = next(self.texts)
        half = len(text) // 2
        told(Piece(0, text[:half], 0))
        if self.fails:
            self.fails -= 1
            raise EngineError("the connection broke", "retry")
        told(Piece(0, text[half:], half, ended=True))
        return Reply.of([Completion(text, tokens=1)], 1, 0, 1)


def test_a_model_that_begins_anew_with_the_same_words_is_not_noticed():
    with served(Unsteady(2, ["six pails are there"])) as server:
        assert told(server.ask("plain", stream=True))[1] == {0: "six pails are there"}


def test_what_was_shown_cannot_become_another_answer():
    with (
        served(Unsteady(1, ["six pails are there", "there are seven of them"])) as server,
        pytest.raises(openai.APIError, match="began anew"),
    ):
        told(server.ask("plain", stream=True))


def test_an_empty_answer_that_is_drawn_again_leaves_no_trace():
    class Blank(Watched):
        async def stream(self, request, told):
            text = " \n" if len(self.requests) == 0 else "six"
            self.requests.append(request)
            told(Piece(0, text, 0, ended=True))
            return Reply.of([Completion(text, tokens=1)], 1, 0, 1)

    with served(Blank()) as server:
        assert told(server.ask("plain", stream=True))[1] == {0: "six"}


def test_an_error_in_mid_stream_reaches_the_client_with_its_message(monkeypatch):
    monkeypatch.setattr(chat, "FIRST", 0.05)

    def script(request):
        return ["a b"] * request.n if request.n > 1 else EngineError("too many words", "refused")

    with served(Watched(script, delay=0.3)) as server:
        stream = server.ask(stream=True)
        with pytest.raises(openai.APIError, match="too many words") as raised:
            told(stream)
        assert raised.value.code == "refused_by_model"


def test_a_stream_begins_at_once_and_shows_signs_of_life(monkeypatch):
    monkeypatch.setattr(events, "SILENCE", 0.1)
    with served(Watched(lambda request: ["six"] * request.n, delay=1.2)) as server:
        began = time.monotonic()
        with server.client().chat.completions.with_streaming_response.create(
            model="plain", messages=QUESTION, stream=True
        ) as response:
            lines = response.iter_lines()
            first = next(lines)
            assert time.monotonic() - began < 1
            rest = list(lines)
        assert (
            json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        )
        assert ": keep-alive" in rest
        assert told(server.ask("plain", stream=True))[1] == {0: "six"}


def test_what_is_short_is_sent_at_once_nodelay():
    """Else every answer waits 40 ms for the client's system to say that it has the headers."""

    async def run():
        found = asyncio.get_running_loop().create_future()
        listener = listen("127.0.0.1", 0)
        told = lambda _, writer: found.set_result(writer.get_extra_info("socket"))  # noqa: E731
        async with await asyncio.start_server(told, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            one = await found
            writer.close()
            return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_client_that_goes_ends_its_drafts_in_every_layer(stream, layer):
    class Slow(Watched):
        async def _watched(self, request, work):
            self.delay = 30 if len(self.requests) == layer else 0
            return await super()._watched(request, work)

    with served(Slow(drafts_of)) as server:
        http = raw_request(server, "aft-l2", stream)
        until(lambda: len(server.engine.requests) == layer + 1 and server.engine.with_it, 10)
        time.sleep(0.1)
        http.close()
        assert until(lambda: not server.engine.with_it) < 1
        until(lambda: not server.state.under_way)


def test_two_hundred_clients_that_go_at_any_moment_leave_nothing_behind():
    draw = random.Random(0)
    engine = Watched(drafts_of, delay=0.05)
    with served(engine, layers=2, in_flight=16) as server:
        for i in range(200):
            messages = [{"role": "user", "content": f"question {i}"}]
            http = raw_request(server, "aft", draw.random() < 0.5, messages)
            time.sleep(draw.random() * 0.03)
            http.close()
        assert until(lambda: not (engine.with_it or server.state.under_way)) < 1
        asker = server.state.answering._asker
        assert (asker.limiter.taken, asker.limiter.waiting, asker._flights) == (0, 0, {})
        assert told(server.ask(stream=True))[1][0]

        async def tasks():
            await asyncio.sleep(0.1)
            return {task.get_coro().__qualname__ for task in asyncio.all_tasks()}

        left = server.run(tasks())
        assert not any("_Exchange" in name or "Asker" in name for name in left), left


def test_one_who_reads_nothing_is_given_up_when_time_is_over(monkeypatch):
    monkeypatch.setattr(chat, "LONGEST_LAST", 0.1)
    long = "x" * 2**24  # more than lies between the two of them
    with (
        served(Watched(lambda request: [long] * request.n), time_limit=1) as server,
        contextlib.closing(raw_request(server, "plain", True)),
    ):
        until(lambda: server.state.under_way, 10)
        until(lambda: not server.state.under_way, 10)

        async def left():
            return [task.get_coro().__qualname__ for task in asyncio.all_tasks()]

        until(lambda: not any("run_asgi" in name for name in server.run(left())), 5)


def test_one_who_goes_while_asking_is_no_failure_of_the_server(server, caplog):
    with contextlib.closing(raw_request(server, "aft", False, cut=10)):
        time.sleep(0.1)
    gone = 'aft_requests_total{status="gone",variant="unknown"} 1.0'
    until(lambda: gone in server.state.metrics.text().decode())
    assert caplog.text == ""


def test_one_who_goes_does_not_end_what_another_waits_for():
    with served(Watched(drafts_of, delay=1)) as server:
        expected = server.ask().choices[0].message.content
        http = raw_request(server, "aft", True)

        def leave():
            until(lambda: server.state.under_way.total() == 2, 10)
            http.close()

        threading.Thread(target=leave).start()
        drafts, answers, _, _ = told(server.ask(stream=True))
        assert answers == {0: expected}
        assert drafts.count("**Draft") == 3
        assert len(server.engine.requests) == 4  # two of them for both


def test_clients_have_their_turns_however_much_one_asks(tmp_path):
    (tmp_path / "keys").write_text("greedy\nmodest\n")
    engine = Watched(drafts_of, delay=0.1)
    with served(engine, client_key_file=tmp_path / "keys", in_flight=2, layers=0) as server:

        def ask(key, word):
            return raw_request(server, "plain", False, [{"role": "user", "content": word}], key)

        asked = [ask("greedy", f"many {i}") for i in range(30)]
        until(lambda: server.state.under_way.total() == 30)
        asked.append(ask("modest", "one"))
        for http in asked:
            assert http.recv(100).startswith(b"HTTP/1.1 200")
            http.close()
        order = [request.prompt[-1]["content"] for request in engine.requests]
    assert order.index("one") < 8
    assert len(order) == 31


def test_a_server_that_stops_lets_those_finish_who_are_in_and_nobody_else():
    with served(Watched(drafts_of, delay=0.5)) as server:
        found = []
        asking = threading.Thread(target=lambda: found.append(told(server.ask(stream=True))))
        asking.start()
        until(lambda: server.engine.with_it)
        stopping = asyncio.run_coroutine_threadsafe(server.state.stop(), server.loop)
        until(lambda: server.state.stopping)
        with pytest.raises(openai.InternalServerError) as raised:
            server.ask()
        assert (raised.value.status_code, raised.value.code) == (503, "unavailable")
        with pytest.raises(openai.APIStatusError) as raised:
            server.client(base_url=server.url.removesuffix("/v1")).get("/health", cast_to=object)
        assert raised.value.status_code == 503
        stopping.result(30)
        asking.join()
        assert found[0][1][0].startswith("aggregation")


@pytest.mark.parametrize("stream", [False, True])
def test_after_the_grace_those_who_are_in_are_given_up_and_told(stream):
    with served(Watched(drafts_of, delay=30), grace=0.7) as server:
        stopping = []

        def stop():
            stopping.append(asyncio.run_coroutine_threadsafe(server.state.stop(), server.loop))

        threading.Timer(0.2, stop).start()
        with pytest.raises(openai.APIError, match="the server stops"):
            told(server.ask(stream=True)) if stream else server.ask()
        until(lambda: not server.engine.with_it)
        stopping[0].result(30)


def test_while_the_model_is_loaded_a_client_is_asked_to_wait():
    with served(ready=False) as server:
        with pytest.raises(openai.InternalServerError, match="being loaded") as raised:
            server.ask()
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == "5"


def thinking(request):
    return [f"<think>\nHm, {text[:5]}.\n</think>\n\n{text}" for text in drafts_of(request)]


def test_the_thought_of_an_answer_is_shown_before_it_and_the_rest_is_as_without_one(server):
    with served(Watched(thinking)) as one:
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        stream = list(one.ask(n=2, **asked))
        whole = one.ask(n=2, extra_body={"aft": {"keep_drafts": True}}).choices
        short = one.ask(n=2).choices
    drafts, answers, reasons, last = told(
        c for c in stream if not c.choices or not c.choices[0].index
    )
    second = told(c for c in stream if c.choices and c.choices[0].index)
    plain_drafts, plain_answers, plain_reasons, plain_last = told(server.ask(n=2, **asked))
    assert drafts == f"{plain_drafts}\n\n**Thought of the answer**\n\nHm, aggre."
    assert second[0] == "Hm, aggre."
    assert answers | second[1] == plain_answers
    assert reasons | second[2] == plain_reasons
    assert last.usage.completion_tokens > plain_last.usage.completion_tokens  # it is paid for
    assert [c.message.reasoning_content for c in whole] == [drafts, "Hm, aggre."]
    assert [c.message.reasoning_content for c in short] == ["Hm, aggre."] * 2
    assert [c.message.content for c in whole] == [c.message.content for c in short]
    assert {i: c.message.content for i, c in enumerate(short)} == plain_answers


def test_without_drafts_the_reasoning_is_the_thought_alone():
    for setting, fields in (("both", {"reasoning", "reasoning_content"}), ("none", set())):
        with served(Watched(thinking), reasoning_field=setting) as one:
            message = one.ask("plain").choices[0].message
            assert message.model_extra == dict.fromkeys(fields, "Hm, draft.")
            chunks = list(one.ask("plain", stream=True))
            for field in fields:
                assert told(chunks, field)[:2] == ("Hm, draft.", {0: message.content})
            first = next(c for c in chunks if c.choices[0].delta.content)
            after = chunks[chunks.index(first) :]
            assert not any(
                field in c.choices[0].delta.model_extra for c in after for field in fields
            )


def test_a_thought_that_goes_on_behind_its_answer_is_not_shown():
    """A front end closes what it folds at the first content."""
    shown = []
    showing = Showing(
        known_markers(),
        lambda i, text: shown.append(text),
        lambda i, text: shown.append(f"({text})"),
    )
    told = showing.asked(0, 0, answers=True)
    for text, thought in (("Hm", True), ("Six", False), ("Hm, hm", True), ("Six.", False)):
        told(Piece(0, text, 0, thought=thought))
    assert shown == ["(Hm)", "Six", "."]


def test_drafts_are_shown_with_their_thoughts_where_these_are_read():
    with served(Watched(thinking), drafts="full") as one:
        shown = told(one.ask(stream=True))[0]
        message = one.ask(extra_body={"aft": {"keep_drafts": True}}).choices[0].message
    assert message.reasoning_content == shown
    assert shown.count("Hm, draft.\n\ndraft ") == 3


def test_the_thought_of_a_chosen_draft_goes_with_it():
    with served(Watched(thinking), variants={"vote": {"strategy": "majority_vote"}}) as one:
        assert one.ask("vote").choices[0].message.reasoning_content == "Hm, draft."


def test_a_thought_that_a_client_cuts_off_is_no_answer_and_costs_no_more():
    class Short(Watched):
        def _reply(self, request, texts):
            reply = super()._reply(request, texts)
            cut = (
                replace(c, text="", thought="Hm", finish_reason="length") for c in reply.completions
            )
            return replace(reply, completions=tuple(cut))

    with served(Short(lambda request: ["<think>Hm"] * request.n), layers=0) as one:
        choice = one.ask(max_tokens=40).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("", "length")
        assert choice.message.reasoning_content == "Hm"
        drafts, answers, reasons, _ = told(one.ask(max_tokens=40, seed=1, stream=True))
        assert (drafts, answers, reasons) == ("Hm", {0: ""}, {0: "length"})
        assert len(one.engine.requests) == 2
        with pytest.raises(openai.InternalServerError, match="no answer"):
            one.ask("aft-k2-l1", max_tokens=40)  # of drafts, the server says how long they are
        one.engine.requests.clear()
        with pytest.raises(openai.InternalServerError, match="unusable"):
            one.ask(max_tokens=40, extra_body={"aft": {"strategy": "majority_vote", "width": 2}})
        assert [r.sampling.max_tokens for r in one.engine.requests] == [40] * 5


def test_a_thought_that_the_server_cuts_off_is_drawn_again():
    class Short(Watched):
        def _reply(self, request, texts):
            reply = super()._reply(request, texts)
            if request.sampling.max_tokens > 50:
                return reply
            cut = tuple(
                replace(c, text="", thought="Hm", finish_reason="length") for c in reply.completions
            )
            return replace(reply, completions=cut)

    def thinking(request):
        whole = request.sampling.max_tokens > 50
        return ["<think>Hm" + ("</think>Six." if whole else "") for _ in range(request.n)]

    with served(Short(thinking), max_tokens=40) as one:
        drafts, answers, reasons, _ = told(one.ask("plain", stream=True))
    assert (drafts, answers, reasons) == ("Hm", {0: "Six."}, {0: "stop"})

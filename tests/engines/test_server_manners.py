"""What servers refuse and how they answer, as real ones do: what is learned, told and paid for once.

Run: pytest tests/engines/test_server_manners.py
"""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
from collections import Counter

import pytest
from aiohttp import web
from flaky_server import FlakyServer, serving, until
from reward_tools import free_port
from shared_data import CASES

from aft_factory.aggregate.__main__ import main as aggregate
from aft_factory.asking.asker import Asker, Retries
from aft_factory.asking.journal import Place
from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.engines.openai_failures import MOST_WORDS
from aft_factory.engines.openai_fields import Fields, hint, read_omission
from aft_factory.engines.openai_vetting import MOST_REFUSED, SHORT_QUESTION
from aft_factory.engines.sampling import Completion, Request, Sampling
from aft_factory.errors import UsageError
from aft_factory.prompts.thought_probes import Thoughts
from aft_factory.prompts.thoughts import ThoughtWords
from aft_factory.rank.__main__ import main as rank
from aft_factory.run.__main__ import main
from aft_factory.sample.__main__ import main as sample

QUESTIONS = [f"What is 6 times {i}?" for i in range(1, 7)]


def refuse(words, status=400, **more):
    return web.json_response({"error": {"message": words, **more}}, status=status)


def gathered(answer, *, n=1, sampling=None, questions=QUESTIONS, **options):
    """Ask many questions at once; return their replies or errors, and what was sent."""

    async def run():
        async with FlakyServer(answer=answer) as server:
            engine = await OpenAIEngine.connect([server.url], **options)
            async with Asker({"": engine}, None, 100, Retries(2, 0.001, 0.002)) as asker:
                asked = (
                    asker.ask(
                        Request([{"role": "user", "content": text}], n, sampling or Sampling(), i),
                        Place(text, 0, 0, 0),
                    )
                    for i, text in enumerate(questions, start=7)
                )
                replies = await asyncio.gather(*asked, return_exceptions=True)
            await engine.close()
            return replies, [body for _, body in server.requests]

    return asyncio.run(run())


def texts(replies):
    return [[c.text for c in reply.completions] for reply in replies]


# What a server does not take


@pytest.mark.parametrize(
    ("field", "refusal"),
    [
        ("top_p", lambda f: refuse(f"Unsupported parameter: {f}", param=f)),
        ("seed", lambda f: web.json_response({"detail": [{"type": "extra_forbidden", "loc": ["body", f]}]}, status=422)),
        ("temperature", lambda f: refuse("Only the default is supported", param=f, code="unsupported_value")),
    ],
)  # fmt: skip
def test_a_field_that_is_refused_by_name_is_left_out_from_then_on_and_told(field, refusal, caplog):
    replies, sent = gathered(lambda _, body: refusal(field) if field in body else None)
    assert len(texts(replies)) == len(QUESTIONS)
    assert [field in body for body in sent] == [True] + [False] * len(QUESTIONS)
    assert caplog.text.count(f"{field} is not sent; its words: ") == 1


def test_a_length_is_sent_by_its_newer_name_where_that_is_wanted():
    wanted = lambda _, b: refuse("Unsupported", param="max_tokens") if "max_tokens" in b else None  # noqa: E731
    replies, sent = gathered(wanted, sampling=Sampling(max_tokens=9))
    assert all(texts(replies))
    assert {body.get("max_completion_tokens") for body in sent[1:]} == {9}


def test_where_n_is_not_taken_samples_are_asked_for_one_by_one_under_their_own_seeds():
    taken = lambda _, body: refuse("unknown field", param="n") if "n" in body else None  # noqa: E731
    [reply], sent = gathered(taken, n=3, questions=QUESTIONS[:1])
    assert len(reply.completions) == reply.usage.requests == 3
    assert sorted(body["seed"] for body in sent[1:]) == [7, 8, 9]


def test_n_is_not_sent_where_it_is_1():
    _, sent = gathered(None)
    assert not any("n" in body for body in sent)


def test_fields_are_left_out_and_named_otherwise_as_the_user_says():
    _, sent = gathered(None, omit=["top_p", "max_tokens=max_new_tokens"])
    assert all("top_p" not in body and "max_tokens" not in body for body in sent)
    assert {body["max_new_tokens"] for body in sent} == {4096}
    for wrong in ("messages", "a b", "top_p=", ""):
        with pytest.raises(UsageError, match="omit: expected a field of requests"):
            read_omission(wrong)


def test_a_value_that_is_refused_is_not_left_out():
    """Temperature 3 is the user's mistake: to send nothing instead would hide it."""
    fields = Fields()
    sent = {"temperature": 3.0, "messages": []}
    refusal = {
        "error": {"message": "must be at most 2", "param": "temperature", "code": "too_large"}
    }
    assert fields.learn(refusal, sent) == []
    assert fields.applied(sent) == sent


def untaken(name):
    return {"error": {"message": "Unknown field", "param": name}}


def test_a_stream_is_asked_for_once_and_without_what_is_left_out():
    fields, refusal = Fields(["stream_options"]), {"error": "answers are streams only"}
    assert fields.learn(refusal, {"messages": []}) == ["answers are read as streams"]
    streamed = fields.applied({"messages": []})
    assert streamed == {"messages": [], "stream": True}
    assert fields.learn(refusal, streamed) == []  # or it would be asked for ever


def test_what_belongs_to_a_stream_is_left_out_too_where_it_is_refused():
    fields = Fields()
    fields.learn({"error": "streams only"}, {"messages": []})
    streamed = fields.applied({"messages": []})
    assert streamed["stream_options"] == {"include_usage": True}
    assert fields.learn(untaken("stream_options"), streamed) == ["stream_options is not sent"]
    assert fields.applied({"messages": []}) == {"messages": [], "stream": True}


@pytest.mark.parametrize(
    ("refused", "sent", "told"),
    [
        ("messages", ["messages"], []),  # without these there is no request
        ("max_completion_tokens", ["max_completion_tokens"], []),  # nor one without a limit
        ("max_tokens", ["max_tokens"], ["max_tokens is sent as max_completion_tokens"]),
        ("max_tokens", ["max_tokens", "max_completion_tokens"], ["max_tokens is not sent"]),
    ],
)
def test_what_a_request_needs_is_sent_whatever_is_refused(refused, sent, told):
    assert Fields().learn(untaken(refused), dict.fromkeys(sent)) == told


def test_a_limit_of_tokens_by_any_name_has_one_flag():
    assert hint(["max_tokens", "max_completion_tokens"]) == "; see --max-tokens"


# What is refused for every row


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("give temperature or top_p, not both", "--omit temperature or --omit top_p"),
        ("n must be 1", "--split-samples"),
    ],
)
def test_settings_that_a_server_speaks_of_cost_one_request_and_end_everything(words, flags):
    replies, sent = gathered(lambda *_: refuse(words), n=2)
    assert len(sent) == 1
    assert {error.kind for error in replies} == {"fatal"}
    assert {str(error).partition(" refuses these settings: ")[2] for error in replies} == {
        f"{words}; see {flags}"
    }


def test_what_is_refused_behind_a_status_of_200_is_refused_all_the_same(caplog):
    disguised = lambda words, **more: refuse(words, 200, **more)  # noqa: E731
    replies, sent = gathered(lambda *_: disguised("'top_p' must be below 1"))
    assert ([error.kind for error in replies], len(sent)) == (["fatal"] * len(QUESTIONS), 1)
    assert str(replies[0]).endswith("'top_p' must be below 1; see --omit top_p")
    untaken = lambda _, body: disguised("Unknown", param="seed") if "seed" in body else None  # noqa: E731
    replies, sent = gathered(untaken)
    assert len(texts(replies)) == len(QUESTIONS)
    assert len(sent) == 1 + len(QUESTIONS)
    assert "seed is not sent; its words: Unknown" in caplog.text


def test_settings_that_do_not_even_do_for_a_short_question_end_everything():
    replies, sent = gathered(lambda *_: refuse("computer says no"))
    assert [error.kind for error in replies] == ["fatal"] * len(QUESTIONS)
    assert len(sent) == 2  # the first, and the short one
    assert sent[1] | {"messages": 0} == sent[0] | {"messages": 0}


@pytest.mark.parametrize("choices", [{}, {"choices": None}, {"choices": []}])
def test_an_answer_without_choices_is_a_refusal_of_one_or_of_all(choices):
    """Some tell a wrong key or a spent balance so, in words of their own behind status 200."""
    none = lambda *_: web.json_response({"base_resp": {"status_msg": "no balance"}, **choices})  # noqa: E731
    replies, sent = gathered(none)
    assert ({error.kind for error in replies}, len(sent)) == ({"fatal"}, 2)
    assert "expected choices, got none: " in str(replies[0])
    assert "no balance" in str(replies[0])
    first = lambda _, b: none() if b["messages"][0]["content"] == QUESTIONS[0] else None  # noqa: E731
    replies, sent = gathered(first)
    assert (replies[0].kind, len(texts(replies[1:]))) == ("refused", len(QUESTIONS) - 1)


# As vLLM 0.23 says it, and transformers 5.
TEMPLATELESS = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a "
    "chat template if the tokenizer does not define one.",
    "Cannot use chat template functions because tokenizer.chat_template is not set",
)


@pytest.mark.parametrize("words", TEMPLATELESS)
@pytest.mark.parametrize("command", ["run", "aggregate"])
def test_a_served_model_without_chat_template_is_one_error_before_anything_is_paid(
    command, words, tmp_path, capsys
):
    source = tmp_path / "in.jsonl"
    rows = [{"query": text, "proposals": ["Six", "6"]} for text in QUESTIONS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    do = {"run": main, "aggregate": aggregate}[command]
    with serving(answer=lambda *_: refuse(words)) as server:
        argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--base-url", server.url]
        assert do([*argv, "--quiet"]) == 2
    told = "".join(capsys.readouterr())
    assert told.count("the served model has no chat template") == 1
    assert "start the server with one (vLLM's --chat-template), or serve a model that has" in told
    assert words in told
    assert "takes no system message" not in told
    assert "refuses these settings" not in told
    assert not (tmp_path / "out.jsonl").exists()


def test_a_variable_that_a_chat_template_does_not_take_is_no_missing_chat_template():
    [error, *_], _ = gathered(lambda *_: refuse("chat_template_kwargs: not for this model"))
    assert "refuses these settings" in str(error)


def test_what_the_short_question_is_refused_for_tells_the_flag():
    def answer(_, body):
        short = body["messages"][0]["content"] == SHORT_QUESTION
        return refuse("top_p is out of place" if short else "computer says no")

    [error, *_], _ = gathered(answer)
    assert str(error).endswith("refuses these settings: computer says no; see --omit top_p")


def test_rows_that_are_refused_first_do_not_keep_the_others_from_an_answer():
    bad = lambda _, b: refuse("too long") if b["messages"][0]["content"] in QUESTIONS[:3] else None  # noqa: E731
    replies, sent = gathered(bad)
    assert [(error.kind, str(error)) for error in replies[:3]] == [("refused", "too long")] * 3
    assert len(texts(replies[3:])) == len(QUESTIONS) - 3
    assert [body["messages"][0]["content"] for body in sent].count(SHORT_QUESTION) == 1


def test_a_first_request_that_fails_for_a_while_fails_alone():
    failures = iter([refuse("not now", 500)])

    async def run():
        async with FlakyServer(answer=lambda *_: next(failures, None)) as server:
            engine = await OpenAIEngine.connect([server.url])
            asked = [Request([{"role": "user", "content": q}], 1, Sampling(), 7) for q in QUESTIONS]
            found = await asyncio.gather(*map(engine.sample, asked), return_exceptions=True)
            await engine.close()
            return [getattr(one, "kind", "answered") for one in found]

    assert asyncio.run(run()) == ["retry"] + ["answered"] * (len(QUESTIONS) - 1)


def test_a_short_question_that_fails_for_another_reason_blames_no_settings():
    def answer(_, body):
        said = body["messages"][0]["content"]
        if said == SHORT_QUESTION:
            return refuse("not now", 500)
        return refuse("too long") if said in QUESTIONS[:4] else None

    replies, _ = gathered(answer)
    assert [error.kind for error in replies[:4]] == ["refused"] * 4
    assert len(texts(replies[4:])) == 2


def test_a_setting_that_a_row_alone_is_too_long_for_is_not_to_blame():
    """The limit of tokens is spoken of wherever a prompt is too long."""

    def bad(_, body):
        first = body["messages"][0]["content"] == QUESTIONS[0]
        return refuse("too long beside max_tokens 9") if first else None

    first, *others = gathered(bad, sampling=Sampling(max_tokens=9))[0]
    assert first.kind == "refused"
    assert len(texts(others)) == len(QUESTIONS) - 1


def test_one_of_two_servers_that_refuses_the_settings_is_left_alone():
    async def run():
        odd = FlakyServer(answer=lambda *_: refuse("no top_p here"))
        async with odd, FlakyServer() as sound:
            engine = await OpenAIEngine.connect([odd.url, sound.url])
            async with Asker({"": engine}, None, 1, Retries(2, 0.001, 0.002)) as asker:
                for i in range(6):
                    request = Request([{"role": "user", "content": "?"}], 1, Sampling(), i)
                    await asker.ask(request, Place("q", 0, 0, i))
            await engine.close()
            return len(odd.requests), len(sound.requests)

    assert asyncio.run(run()) == (1, 6)


def test_words_that_repeat_the_question_blame_no_settings():
    """ "seed" and "n" are words of questions as well, and a line break that is spelled out has one."""
    questions = ["Which seed\n\ngrows?", "And which\n\ndoes not?", *QUESTIONS]
    odd = lambda _, b: refuse(repr(b["messages"][0]["content"]))  # noqa: E731
    bad = lambda path, b: odd(path, b) if "\n" in b["messages"][0]["content"] else None  # noqa: E731
    replies, sent = gathered(bad, n=2, questions=questions)
    assert [error.kind for error in replies[:2]] == ["refused"] * 2
    assert len(texts(replies[2:])) == len(QUESTIONS)
    assert len(sent) == len(questions) + 1


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("status", [403, 404])
def test_what_a_filter_forbids_is_one_question_where_a_short_one_is_answered(place, status):
    """A moderation's 403, a firewall's page, or no provider left for it."""
    flagged = lambda b: b["messages"][0]["content"] == QUESTIONS[place]  # noqa: E731
    replies, sent = gathered(lambda _, b: refuse("flagged", status) if flagged(b) else None)
    if (place, status) == (0, 404):  # nothing was answered: there may be no such model
        assert ({error.kind for error in replies}, len(sent)) == ({"fatal"}, 1)
    else:
        assert (replies[place].kind, "flagged" in str(replies[place])) == ("refused", True)
        assert len(texts([r for r in replies if r is not replies[place]])) == len(QUESTIONS) - 1
        assert len(sent) == len(QUESTIONS) + 1


def test_a_key_that_may_not_costs_a_short_question():
    replies, sent = gathered(lambda *_: refuse("not with this key", 403))
    assert ({error.kind for error in replies}, len(sent)) == ({"fatal"}, 2)


def spent_after(answers, *, short=False):
    """A budget that is used up on the way, said so by a 400; short questions may be free."""
    left = [answers]

    def answer(_, body):
        if short and body["messages"][0]["content"] == SHORT_QUESTION:
            return None
        left[0] -= 1
        return refuse("Budget has been exceeded!") if left[0] < 0 else None

    return answer


def test_what_refuses_everybody_by_now_ends_everything():
    replies, sent = gathered(spent_after(2), questions=[*QUESTIONS, *"abcdef"])
    kinds = Counter(getattr(reply, "kind", "answered") for reply in replies)
    assert kinds == {"answered": 2, "refused": MOST_REFUSED - 1, "fatal": 7}
    assert "refuses even a short question by now: Budget has been exceeded!" in str(replies[-1])
    assert len(sent) == len(replies) + 1


def test_rows_that_are_refused_one_after_the_other_are_doubted_ever_less():
    replies, sent = gathered(spent_after(2, short=True), questions=[str(i) for i in range(30)])
    assert [reply.kind for reply in replies[2:]] == ["refused"] * 28
    short = [body for body in sent if body["messages"][0]["content"] == SHORT_QUESTION]
    assert len(short) == 3  # after 4, 8 and 16
    answered, _ = gathered(
        lambda _, b: refuse("no") if int(b["messages"][0]["content"]) % 2 else None,
        questions=[str(i) for i in range(30)],
    )
    assert [getattr(one, "kind", "answered") for one in answered] == ["answered", "refused"] * 15


def test_what_was_answered_before_is_not_the_settings_fault():
    """A refusal of one row may speak of settings: of max_tokens, beside a prompt that is long."""
    last = lambda _, b: refuse("temperature") if b["messages"][0]["content"] == "last" else None  # noqa: E731

    async def run():
        async with FlakyServer(answer=last) as server:
            engine = await OpenAIEngine.connect([server.url])
            found = []
            for text in ("first", "last"):
                request = Request([{"role": "user", "content": text}], 1, Sampling(), 7)
                found += await asyncio.gather(engine.sample(request), return_exceptions=True)
            await engine.close()
            return found

    assert asyncio.run(run())[1].kind == "refused"


@pytest.mark.parametrize(
    ("headers", "words", "kind"),
    [
        (
            {},
            "You exceeded your current quota, please check your plan and billing details",
            "fatal",
        ),
        ({}, "Insufficient balance", "fatal"),
        ({"Retry-After": "0"}, "Quota exceeded for requests per minute; see billing", "retry"),
        ({}, "Rate limit reached", "retry"),
    ],
)
def test_a_quota_that_is_used_up_ends_everything_and_a_rate_passes(headers, words, kind):
    def answer(*_):
        return web.json_response({"error": {"message": words}}, status=429, headers=headers)

    [error], sent = gathered(answer, questions=QUESTIONS[:1])
    assert error.kind == kind
    assert words in str(error)
    assert len(sent) == (1 if kind == "fatal" else 3)


# How servers answer


def stream(*chunks, end=b"data: [DONE]\n\n"):
    data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + end
    return web.Response(body=data, content_type="text/event-stream")


def chunk(text, reason=None, index=0, **more):
    return {
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}],
        **more,
    }


def test_a_stream_is_read_as_the_answer_that_it_stands_for():
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    parts = [chunk("It is "), chunk("So ", index=1), chunk("42", "stop"), chunk("it", "length", 1)]
    [reply], _ = gathered(
        lambda *_: stream(*parts, {"choices": [], "usage": usage}), n=2, questions=["?"]
    )
    assert [(c.text, c.finish_reason) for c in reply.completions] == [
        ("It is 42", "stop"),
        ("So it", "length"),
    ]
    assert (reply.usage.prompt, reply.usage.completion) == (5, 4)


def streamed(answer, n=1, thoughts=(), **more):
    """Ask one question by `stream`; the reply or error, what was told of texts, the bodies sent."""
    pieces = []

    async def run():
        async with FlakyServer(answer=answer) as server:
            engine = await OpenAIEngine.connect([server.url], **more)
            request = Request([{"role": "user", "content": "?"}], n, Sampling(), 7)
            [reply] = await asyncio.gather(
                engine.stream(request, pieces.append), return_exceptions=True
            )
            await engine.close()
            return reply, [body for _, body in server.requests]

    reply, sent = asyncio.run(run())
    assert "".join(piece.text for piece in pieces if piece.thought) == "".join(thoughts)
    told = [(p.index, p.start, p.text, p.ended) for p in pieces if not p.thought]
    return reply, told, sent


def test_a_stream_is_told_while_it_is_read():
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    parts = [chunk("It is "), chunk("So ", index=1), chunk("42", "stop"), chunk("it", "length", 1)]
    last = {"choices": [], "usage": usage}
    reply, told, [body] = streamed(lambda *_: stream(*parts, last), n=2)
    assert told == [
        *((0, 0, "It is ", False), (1, 0, "So ", False)),
        *((0, 6, "42", True), (1, 3, "it", True)),
    ]
    assert [c.text for c in reply.completions] == ["It is 42", "So it"]
    assert reply.usage.prompt == 5
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_a_thought_is_told_apart_while_it_is_streamed():
    texts = ["<thi", "nk>6 x", " 7</think>", "\n\nIt is ", "42."]
    last = chunk("", "stop")
    beside = [{"choices": [{"index": 0, "delta": delta}]} for delta in (
        {"role": "assistant", "content": "", "reasoning_content": "6 x", "reasoning": "6 x"},
        {"content": None, "reasoning_content": " 7", "reasoning": " 7"},
    )]  # fmt: skip
    for chunks in ([*map(chunk, texts), last], [*beside, chunk("It is "), chunk("42.", "stop")]):
        reply, told, _ = streamed(lambda *_, parts=chunks: stream(*parts), thoughts=["6 x 7"])
        assert [(c.thought, c.text) for c in reply.completions] == [("6 x 7", "It is 42.")]
        assert "".join(text for _, _, text, _ in told) == "It is 42."


def test_a_server_that_streams_nothing_is_read_all_the_same():
    reply, told, _ = streamed(lambda *_: None)
    assert reply.completions[0].text
    assert told == []


def test_samples_that_are_asked_for_one_by_one_are_told_at_their_places():
    def answer(_, body):
        if "n" in body:
            return refuse("unknown field", param="n")
        return stream(chunk(f"by {body['seed']}", "stop"))

    reply, told, _ = streamed(answer, n=3)
    assert sorted(told) == [(i, 0, f"by {7 + i}", True) for i in range(3)]
    assert [c.text for c in reply.completions] == ["by 7", "by 8", "by 9"]


def test_samples_that_were_left_out_and_asked_for_again_are_told_at_their_places():
    reply, told, sent = streamed(lambda _, body: stream(chunk(f"by {body['seed']}", "stop")), n=3)
    assert told == [(i, 0, f"by {7 + i}", True) for i in range(3)]
    assert [c.text for c in reply.completions] == ["by 7", "by 8", "by 9"]
    assert [body.get("n", 1) for body in sent] == [3, 2, 1]


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (b"", "retry", "the stream of the answer broke off"),
        (b'data: {"error": {"message": "no room", "code": 503}}\n\n', "retry", "no room"),
    ],
)
def test_a_stream_that_fails_is_no_answer(end, kind, words):
    error, told, _ = streamed(lambda *_: stream(chunk("It is "), end=end))
    assert (error.kind, told) == (kind, [(0, 0, "It is ", False)])
    assert words in str(error)


@pytest.mark.parametrize("way", ["sample", "stream"])
def test_a_request_that_is_given_up_is_given_up_by_the_server(way):
    async def run():
        async with FlakyServer(delay=30) as server:
            engine = await OpenAIEngine.connect([server.url])
            request = Request([{"role": "user", "content": "?"}], 1, Sampling(), 7)
            told = [] if way == "sample" else [lambda _: None]
            asking = asyncio.create_task(getattr(engine, way)(request, *told))
            while not server.in_flight:
                await asyncio.sleep(0.01)
            asking.cancel()
            async with asyncio.timeout(1):
                while server.in_flight:
                    await asyncio.sleep(0.01)
            await engine.close()

    asyncio.run(run())


def test_a_stream_that_is_refused_is_no_answer():
    error, told, _ = streamed(lambda *_: refuse("too long by far"))
    assert "too long by far" in str(error)
    assert told == []


def test_a_stream_that_breaks_off_is_no_answer():
    [error], sent = gathered(lambda *_: stream(chunk("It is "), end=b""), questions=["?"])
    assert (error.kind, len(sent)) == ("retry", 3)
    assert "the stream of the answer broke off" in str(error)


def test_a_server_that_only_streams_is_asked_for_a_stream():
    def answer(_, body):
        if not body.get("stream"):
            return refuse("this model only supports stream=true")
        return stream(chunk("42", "stop"))

    replies, sent = gathered(answer)
    assert texts(replies) == [["42"]] * len(QUESTIONS)
    assert [body.get("stream") for body in sent] == [None] + [True] * len(QUESTIONS)


@pytest.mark.parametrize(
    ("message", "text", "instead"),
    [
        ({"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "4"}, {"type": "text", "text": "2"}]}, "42", None),
        ({"content": None, "reasoning_content": "Hm."}, "", "a thought without an answer"),
        ({"content": "", "reasoning": "Hm."}, "", "a thought without an answer"),
        ({"content": [{"type": "thinking", "thinking": "Hm."}]}, "", "a thought without an answer"),
        ({"content": None, "tool_calls": [{"id": "t"}]}, "", "a call of a tool"),
        ({"content": None, "refusal": "I cannot."}, "", "a refusal"),
        ({"content": None, "refusal": "I cannot.", "reasoning": "Hm."}, "", "a refusal"),
        ({"content": "42", "refusal": None}, "42", None),
        ({"content": None}, "", None),
        ({"content": "42", "reasoning": "Hm."}, "42", None),
    ],
)  # fmt: skip
def test_of_an_answer_the_text_is_read_and_what_came_instead_is_told(message, text, instead):
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    [reply], _ = gathered(lambda *_: web.json_response(body), questions=["?"])
    assert (reply.completions[0].text, reply.completions[0].instead) == (text, instead)


@pytest.mark.parametrize("way", ["sample", "stream"])
@pytest.mark.parametrize(
    ("told", "stopped"),
    [
        ({}, None),
        ({"stop_reason": None}, False),
        ({"stop_reason": 7}, False),
        ({"stop_reason": "Q:"}, True),
        ({"matched_stop": "Q:"}, True),
        ({"matched_stop": 7}, False),
    ],
)
def test_whether_a_text_of_stop_ended_an_answer_is_what_the_server_tells(told, stopped, way):
    choice = {"index": 0, "message": {"content": "It is 42."}, "finish_reason": "stop"} | told
    if way == "sample":
        [reply], _ = gathered(lambda *_: web.json_response({"choices": [choice]}), questions=["?"])
    else:
        first, last = chunk("It is "), chunk("42.", "stop")
        last["choices"][0] |= told
        reply, _, _ = streamed(lambda *_: stream(first, last))
    assert [(one.text, one.stopped) for one in reply.completions] == [("It is 42.", stopped)]


@pytest.mark.parametrize(("more", "told"), [({}, 1), ({"stop_reason": None}, 0)])
def test_who_does_not_tell_what_ended_an_answer_of_a_thinking_model_is_told_once(
    more, told, monkeypatch, caplog
):
    monkeypatch.setattr(Thoughts, "__call__", lambda *_: ThoughtWords(opened=True))
    choice = {"message": {"content": "It is 42."}, "finish_reason": "stop"} | more
    answer = lambda *_: web.json_response({"choices": [choice]})  # noqa: E731
    gathered(answer, sampling=Sampling(stop=("Q:",)))
    assert caplog.text.count("does not tell what ended an answer") == told


def test_a_thought_that_the_prompt_opens_and_a_text_of_stop_ends_is_no_answer():
    words = ThoughtWords(opened=True)
    ended = Completion("First, the", stopped=True).split(words)
    assert (ended.thought, ended.text, ended.instead) == (
        *("First, the", ""),
        "a thought without an answer",
    )
    for whole in (
        Completion("It is 42.", stopped=False),
        Completion("It is", "length", thought="6 x 7"),  # apart already, by the server
        Completion("It is", thought="6 x 7", stopped=True),
    ):
        assert whole.split(words) == whole


@pytest.mark.parametrize("word", ["network_error", "insufficient_system_resource", "error"])
def test_an_answer_that_broke_off_with_the_server_is_asked_for_again(word):
    bodies = (
        {"choices": [{"message": {"content": text}, "finish_reason": reason}]}
        for text, reason in (("The ans", word), ("The answer is 42.", "stop"))
    )
    [reply], sent = gathered(lambda *_: web.json_response(next(bodies)), questions=["?"])
    assert (reply.completions[0].text, len(sent)) == ("The answer is 42.", 2)


@pytest.mark.parametrize("more", [b'"logprobs": [NaN, -Infinity],', b""])
def test_a_body_that_python_reads_is_read(more):
    body = (
        b'{"choices": [{%b "message": {"content": "Well done \\ud83d"}, "finish_reason": "stop"}]}'
        % more
    )
    answer = lambda *_: web.Response(body=body, content_type="application/json")  # noqa: E731
    [reply], sent = gathered(answer, questions=["?"])
    assert reply.completions[0].text == "Well done \ufffd"
    assert len(sent) == 1


def test_words_of_a_server_do_not_steer_the_terminal():
    [error], _ = gathered(lambda *_: refuse("\x1b[2Jtemperature"), questions=["?"])
    assert "\x1b" not in str(error)


# Keys


def test_a_login_in_an_address_is_used_and_stands_in_no_file_nor_message(tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"query": "?"}\n')
    with serving() as server:
        url = server.url.replace("://", "://me:topsecret@") + "?api-version=a1b2"
        argv = [str(source), "--output", str(output), "--base-url", url, "--layers", "0"]
        assert main(argv) == 0
        assert main([*argv, "--export", "--overwrite"]) == 0
    said = "".join(capsys.readouterr())
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not [name for name, data in left.items() if b"topsecret" in data or b"a1b2" in data]
    assert "topsecret" not in said
    assert "export writes by" not in said
    settings = json.loads(left["out.summary.json"])["settings"]
    assert settings["base_url"] == [server.url + "?api-version=..."]


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_key_that_a_server_repeats_is_in_no_message(status, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-xyzzy-12345")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"query": text}) + "\n" for text in QUESTIONS))
    words = "Received API Key = Bearer sk-xyzzy-12345, of none"
    words = f"{words:-<{MOST_WORDS - 9}}sk-xyzzy-12345"  # which is cut off in the middle
    with serving(answer=lambda *_: refuse(words, status)) as server:
        argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--base-url", server.url]
        assert main(argv) != 0
    told = "".join(capsys.readouterr())
    assert "Received API Key = Bearer ..., of none" in told
    assert not any(b"xyzzy" in path.read_bytes() for path in tmp_path.iterdir())
    assert "sk-" not in told


def test_each_server_gets_its_own_key(monkeypatch, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "?"}\n{"query": "!"}\n')
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")
    argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet", "--layers", "0"]
    with serving(api_key="1") as one, serving(api_key="2") as two:
        argv += ["--base-url", one.url, two.url]
        assert main([*argv, "--api-key-env", "ONE", "TWO"]) == 0
        assert len(one.log) == len(two.log) == 1
        assert main([*argv, "--overwrite", "--api-key-env", "sk-secret"]) == 2
    told = capsys.readouterr().err
    assert "no environment variable of that name is set" in told
    assert "sk-secret" not in told


# Real manners

# The server says of any prompt that it read 10 tokens: so it is asked twice, with one token each,
# whether it takes system messages.
EXPECTED = {  # of run, by mode: (exit code, rows answered, POSTs), or words of the error
    **dict.fromkeys(("good", "no_list", "list_forbidden", "bare_array", "parts"), (0, 6, 14)),
    "null_usage": (0, 6, 13),
    **dict.fromkeys(("one_choice", "event_stream", "half_emoji", "not_a_number"), (0, 6, 26)),
    "model_length": (0, 6, 14),
    "max_completion_tokens": (0, 6, 17),
    "strict": (0, 6, 27),
    "stream_only": (0, 6, 27),
    "v1only": (2, "should the URL end in /v1?", 1),
    "small_context": (2, "lower --max-tokens", 0),
    "exclusive": (2, "--omit temperature or --omit top_p", 3),
    "one_only": (2, "--split-samples", 3),
    "no_quota": (2, "the quota is used up; see billing", 1),
    "reasoning_only": (1, "a thought without an answer", 8),
    "tool_calls": (1, "a call of a tool", 8),
    "think": (0, 6, 14),
    "think_cut": (1, "an unfinished thought", 44),
    "reasoning_cut": (1, "an unfinished thought", 44),
    "no_system": (0, 6, 14),
}  # fmt: skip

OF_SAMPLE = {  # where it is not (0, 6, 6): one request for the drafts of each row
    **dict.fromkeys(("one_choice", "event_stream", "half_emoji", "not_a_number"), (0, 6, 18)),
    **{mode: (*EXPECTED[mode][:2], 1) for mode in ("v1only", "no_quota", "exclusive", "one_only")},
    "tool_calls": (*EXPECTED["tool_calls"][:2], 6),
    # Each draft once more without `stop`, which may be what ended its thought.
    "reasoning_only": (*EXPECTED["reasoning_only"][:2], 24),
    "reasoning_cut": (*EXPECTED["reasoning_cut"][:2], 42),
    "max_completion_tokens": (0, 6, 8),
    "stream_only": (0, 6, 19),
    "strict": (2, "see --chat", 1),  # no text to complete is taken
}  # fmt: skip
OF_AGGREGATE = {  # where it is not (0, 6, 8): whether system messages are taken, and a row each
    "null_usage": (0, 6, 7),
    **{mode: EXPECTED[mode] for mode in ("v1only", "small_context", "exclusive", "no_quota")},
    **{mode: EXPECTED[mode] for mode in ("reasoning_only", "tool_calls")},
    **{mode: (*EXPECTED[mode][:2], 20) for mode in ("think_cut", "reasoning_cut")},
    **dict.fromkeys(("strict", "stream_only"), (0, 6, 9)),
    "max_completion_tokens": (0, 6, 11),
}  # fmt: skip
NO_REWARD = (2, "a reward model is served with: vllm serve MODEL --runner pooling", 2)
OF_RANK = {"no_quota": (2, EXPECTED["no_quota"][1], 1)}  # else none of them gives logits
COMMANDS = {
    "sample": (sample, ["--samples", "3"], lambda mode: OF_SAMPLE.get(mode, (0, 6, 6))),
    "aggregate": (aggregate, [], lambda mode: OF_AGGREGATE.get(mode, (0, 6, 8))),
    "rank": (rank, None, lambda mode: OF_RANK.get(mode, NO_REWARD)),
}


@contextlib.contextmanager
def mannered(mode, log):
    """A server of that mode; its URL."""
    port = free_port()
    command = [sys.executable, str(CASES / "server.py"), str(port), mode, str(log)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port))
        yield f"http://127.0.0.1:{port}" + ("" if mode == "v1only" else "/v1")
    finally:
        server.kill()
        server.wait()


def test_every_manner_of_the_server_is_tried():
    modes = re.search(r"^MODES = (\[.*?\])", (CASES / "server.py").read_text(), re.DOTALL | re.M)
    assert set(EXPECTED) == set(json.loads(re.sub(r",\s*\]", "]", modes[1])))


@pytest.mark.parametrize("mode", EXPECTED)
def test_what_is_refused_for_every_row_costs_one_request_by_every_command(
    mode, tiny_reward_model, tmp_path, capsys
):
    source, log = tmp_path / "in.jsonl", tmp_path / "log"
    rows = [{"query": text, "proposals": ["It is 6.", "6", "Six"]} for text in QUESTIONS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with mannered(mode, log) as url:
        for name, (command, more, expected) in COMMANDS.items():
            log.write_text("")
            output = tmp_path / f"{name}.jsonl"
            by = ["--base-url", url, "--model", "m", *(more or ())]
            if command is rank:
                by = ["--reward-url", url, "--reward-model", "m"]
                by += ["--reward-tokenizer", str(tiny_reward_model)]
            code = command([str(source), "--output", str(output), "--quiet", *by])
            told = "".join(capsys.readouterr())
            wanted, answered, asked = expected(mode)
            assert (code, log.read_text().count('"POST"')) == (wanted, asked), (name, told)
            if isinstance(answered, int):
                assert len(output.read_text().splitlines()) == answered
            else:
                assert answered in told
                assert not output.exists()


@pytest.mark.parametrize("mode", EXPECTED)
def test_servers_as_they_are(mode, tmp_path, capsys):
    source, output, log = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "log"
    source.write_text("".join(json.dumps({"query": text}) + "\n" for text in QUESTIONS))
    with mannered(mode, log) as url:
        flags = ["--base-url", url, "--model", "m", "--width", "3", "--layers", "1", "--quiet"]
        code = main([str(source), "--output", str(output), *flags])
    expected, answered, asked = EXPECTED[mode]
    told = capsys.readouterr()
    assert code == expected
    lines = output.read_text().splitlines() if output.exists() else []
    if isinstance(answered, int):
        assert len(lines) == answered
        assert not any(mark in line for line in lines for mark in ("think>", "6 times 7"))
    else:
        assert answered in told.out + told.err
    sent = log.read_text()
    assert sent.count('"POST"') == asked
    assert "6 times 7" not in sent  # no thought is in a prompt
    if mode == "no_system":
        messages = [
            json.loads(line)["body"]["messages"] for line in sent.splitlines() if '"POST"' in line
        ]
        assert [m["role"] for m in messages[0]] == ["system", "user"]
        assert all([m["role"] for m in asked] == ["user"] for asked in messages[1:])
        aggregated = [asked[0]["content"] for asked in messages if "Draft" in asked[0]["content"]]
        assert len(aggregated) == 6
        assert all(text.startswith("You have been provided") for text in aggregated)
        assert {text.rpartition("\n\n")[2] for text in aggregated} == set(QUESTIONS)
    if mode.endswith("_cut"):  # a thought that does not end is given twice the room each time
        bodies = [json.loads(line)["body"] for line in sent.splitlines() if '"POST"' in line]
        budgets = Counter(body["max_tokens"] for body in bodies)
        assert budgets == {1: 2, 4096: 6, 8192: 18, 16384: 18}


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_engine_error_of_settings_is_what_ends_a_run(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"query": text}) + "\n" for text in QUESTIONS))
    with serving(answer=lambda *_: refuse("give temperature or top_p")) as server:
        argv = [str(source), "--output", str(tmp_path / "out.jsonl"), "--quiet"]
        assert main([*argv, "--base-url", server.url]) == 2
        assert (len(server.requests), len(server.probes)) == (1, 2)
    assert "--omit temperature or --omit top_p" in capsys.readouterr().err

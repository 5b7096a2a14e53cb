"""The server, asked by the official client: answers, variants, refusals, limits.

Run: pytest tests/serve/test_serve.py
"""

import http.client
import json
import threading
import urllib.request

import openai
import pytest
from serve_tools import QUESTION, Watched, drafts_of, raw_request, served, until

from aft_factory import __version__
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion
from aft_factory.errors import UsageError
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def server():
    """One server for tests that need no settings of their own."""
    variants = {"aft-fast": {"width": 2, "layers": 1}, "vote": {"strategy": "majority_vote"}}
    with served(Watched(drafts_of), variants=variants, max_width=4, max_layers=2) as one:
        yield one


@pytest.fixture
def sent(server):
    """The requests that the engine gets in this test."""
    server.engine.requests.clear()
    return server.engine.requests


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, answer.headers, answer.read()


def test_an_answer_is_an_aggregation_of_drafts_and_tells_what_all_of_it_took(server, sent):
    answer = server.ask()
    [draft, final] = sent
    assert (draft.n, final.n, draft.prompt) == (3, 1, QUESTION)
    assert all(f"draft {i}" in final.prompt[0]["content"] for i in range(3))
    [choice] = answer.choices
    assert choice.message.content == f"aggregation 0 at 0.7 by {final.seed % 1000}"
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    usage = answer.usage
    rows = answer.aft["layers"]
    assert [row["samples"] for row in rows] == [3, 1]
    assert usage.completion_tokens == sum(row["completion"] for row in rows)
    assert usage.prompt_tokens == sum(row["prompt"] for row in rows)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == rows[0]["completion"]
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert not hasattr(choice.message, "reasoning_content")


def test_equal_requests_get_equal_answers_and_another_seed_others(server):
    def ask(**fields):
        return server.ask(**fields).choices[0].message.content

    assert ask() == ask() == ask(seed=42) != ask(seed=43)


def test_drafts_come_with_the_answer_if_they_are_wanted(server):
    message = server.ask(extra_body={"aft": {"keep_drafts": True}}).choices[0].message
    for i in range(3):
        assert f"**Draft {i + 1}, layer 1**\n\ndraft {i} at 0.7" in message.reasoning_content
    assert "aggregation" not in message.reasoning_content


def test_what_is_said_of_decoding_holds_for_the_answer_and_not_for_drafts(server, sent):
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    fields = {"temperature": 0, "top_p": 0.5, "stop": ["x", "y"], "presence_penalty": 0.5}
    server.ask(**fields, max_tokens=7, max_completion_tokens=9, extra_body=more)
    [draft, final] = (request.sampling for request in sent)
    assert (draft.temperature, draft.top_p, draft.top_k, draft.max_tokens) == (
        0.7,
        0.95,
        None,
        4096,
    )
    assert (draft.stop, draft.extra) == ((), {})
    assert (final.temperature, final.top_p, final.top_k, final.max_tokens) == (0, 0.5, 5, 9)
    assert final.stop == ("x", "y")
    assert final.extra == {"min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5}


def test_what_is_said_of_drafts_holds_for_drafts_only(server, sent):
    proposal = {"temperature": 1.5, "top_p": 0.3, "top_k": 3, "max_tokens": 5}
    server.ask(extra_body={"aft": {"proposal": proposal}})
    [draft, final] = (request.sampling for request in sent)
    assert (draft.temperature, draft.top_p, draft.top_k, draft.max_tokens) == (1.5, 0.3, 3, 5)
    assert (final.temperature, final.top_p, final.top_k, final.max_tokens) == (
        0.7,
        0.95,
        None,
        4096,
    )


@pytest.mark.parametrize(
    ("model", "aft", "shape"),
    [
        ("aft", {}, [3, 1]),
        ("plain", {}, [1]),
        ("aft-fast", {}, [2, 1]),
        ("aft-k2", {}, [2, 1]),
        ("aft-l2", {}, [3, 3, 1]),
        ("aft-k4-l0", {}, [1]),
        ("aft-fast-k1-l2", {}, [1, 1, 1]),
        ("aft-k2", {"width": 4}, [4, 1]),
        ("aft", {"width": 2, "layers": 2}, [2, 2, 1]),
        ("vote", {}, [5]),
        ("vote-k2", {}, [2]),
        ("aft", {"strategy": "majority_vote", "width": 3}, [3]),
        ("vote", {"strategy": "self_moa_seq", "width": 4, "window": 3}, [4, 1, 1]),
    ],
)
def test_name_suffix_and_body_choose_width_and_layers(server, sent, model, aft, shape):
    answer = server.ask(model, extra_body={"aft": aft})
    assert [request.n for request in sent] == shape
    assert answer.model == model


@pytest.mark.parametrize(
    ("model", "aft", "status", "param"),
    [
        ("aft-k5", {}, 400, "aft.width"),
        ("aft-l3", {}, 400, "aft.layers"),
        ("aft", {"width": 5}, 400, "aft.width"),
        ("aft", {"strategy": "rsa"}, 400, "aft.width"),
        ("aft", {"strategy": "moa"}, 400, "aft.strategy"),
        ("aft", {"strategy": "best_of_n"}, 400, "aft.strategy"),
        ("aft", {"strategy": "guess"}, 400, "aft"),
        ("aft", {"width": 0}, 400, "aft"),
        ("aft", {"width": "many"}, 400, "aft.width"),
        ("aft", {"strategy": 5}, 400, "aft.strategy"),
        ("aft", {"window": 3}, 400, "aft"),
        ("aft", {"seed": 3}, 400, "aft.seed"),
        ("aft", {"proposal": {"stop": "x"}}, 400, "aft.proposal.stop"),
        ("aft", {"proposal": {"temperature": 9}}, 400, "aft.proposal.temperature"),
        ("vote-l1", {}, 400, "aft"),
        ("aft-x1", {}, 404, "model"),
        ("AFT", {}, 404, "model"),
        ("gpt-4", {}, 404, "model"),
    ],
)
def test_what_no_model_here_can_do_is_refused_by_name(server, sent, model, aft, status, param):
    with pytest.raises(openai.APIStatusError) as raised:
        server.ask(model, extra_body={"aft": aft})
    assert (raised.value.status_code, raised.value.param, sent) == (status, param, [])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": [{"name": "count"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"tempreature": 1}, "tempreature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"model": "vote", "n": 2}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "Six."}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*QUESTION, {"role": "system", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0]"),
        ({"aft": 5}, "aft"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_followed_is_refused_by_name(server, sent, fields, param):
    body = {"model": "aft", "messages": QUESTION, **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        server.client().post("/chat/completions", body=body, cast_to=object)
    assert (raised.value.param, sent) == (param, [])
    assert param.partition("[")[0].split(".")[0] in raised.value.message
    if param in ("logprobs", "functions", "response_format", "tempreature"):
        assert raised.value.code == "unsupported_parameter"


def test_tools_that_need_not_be_used_are_not_and_that_is_told(server):
    """Open WebUI offers tools with every question."""
    tools = [{"type": "function", "function": {"name": "count"}}]
    answer = server.ask(tools=tools, tool_choice="auto")
    assert answer.choices == server.ask().choices
    assert [e["event"] for e in answer.aft["events"]] == ["tools not used, as drafts call none"]


def test_neighbours_of_one_role_are_one_message_as_agents_send_them(server, sent):
    said = [("system", "Be short."), ("developer", "Be kind."), ("user", "How"), ("user", "many?")]
    messages = [{"role": role, "content": text} for role, text in said]
    server.ask("plain", messages)
    [request] = sent
    assert request.prompt == [
        {"role": "system", "content": "Be short.\n\nBe kind."},
        {"role": "user", "content": "How\n\nmany?"},
    ]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # curl's, if nothing is said
        ({"Content-Type": "text/plain", "Origin": "https://evil.example"}, 415),
        (
            {"Content-Type": "application/json", "Origin": "https://evil.example"},
            200,
        ),  # asks before
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_what_pages_may_send_unasked_and_what_is_compressed_is_not_read(server, headers, status):
    body = json.dumps({"model": "plain", "messages": QUESTION}).encode()
    wire = http.client.HTTPConnection(server.url.split("/")[2])
    wire.request("POST", "/v1/chat/completions", body, headers)
    answer = wire.getresponse()
    assert answer.status == status
    assert (b"invalid_body" in answer.read()) == (status == 415)
    wire.close()


def test_a_path_is_answered_as_it_stands_and_never_leads_elsewhere(server):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{server.url}/models/")


def test_a_value_that_asks_for_nothing_is_no_reason_to_refuse(server):
    body = {
        "model": "aft",
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "many?"}]},
            {"role": "assistant", "content": "Six.", "refusal": None, "tool_calls": None},
            {"role": "user", "content": "Why?", "name": "Ann"},
        ],
        "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "tools": [], "functions": None,
        "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
        "user": "ann", "metadata": {"a": "b"}, "store": False, "stop": None, "seed": None, "n": 1,
        "top_k": -1, "frequency_penalty": 0.0, "stream": False, "stream_options": None,
        "parallel_tool_calls": True, "service_tier": "auto", "chat_template_kwargs": {},
    }  # fmt: skip
    answer = server.client().post("/chat/completions", body=body, cast_to=object)
    assert answer["choices"][0]["message"]["content"].startswith("aggregation 0")


def test_several_answers_come_from_the_same_drafts(server, sent):
    answer = server.ask(n=3, temperature=1)
    assert [request.n for request in sent] == [3, 3]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    alike = server.ask(n=3, temperature=0)
    assert len({choice.message.content for choice in alike.choices}) == 1


def test_a_greedy_request_does_not_make_equal_drafts(server, sent):
    told = server.ask("vote", temperature=0, max_tokens=5, stop="x").aft["events"]
    [drafts] = sent
    assert (drafts.n, drafts.sampling.temperature, drafts.sampling.max_tokens) == (5, 0.7, 5)
    assert told[0]["event"] == "temperature not used, as majority_vote chooses among drafts"


def test_the_models_are_listed_with_names_for_people(server):
    listed = {one.id: one.name for one in server.client().models.list()}
    assert listed == {
        "aft": "aft: 3 drafts, 1 layer",
        "plain": "plain: no drafts",
        "aft-fast": "aft-fast: 2 drafts, 1 layer",
        "vote": "vote: 5 drafts",
    }
    assert server.client().models.retrieve("plain").owned_by == "aft-factory"
    with pytest.raises(openai.NotFoundError) as raised:
        server.client().models.retrieve("gpt-4")
    assert raised.value.code == "model_not_found"


def test_health_version_and_metrics_are_told(server):
    server.ask("aft-k2")
    root = server.url.removesuffix("/v1")
    assert get(f"{root}/health")[::2] == (200, b"")
    assert json.loads(get(f"{root}/version")[2]) == {"version": __version__}
    told = get(f"{root}/metrics")[2].decode()
    assert 'aft_requests_total{status="200",variant="aft"}' in told
    assert 'aft_tokens_total{kind="completion",layer="1"}' in told
    assert "aft_samples_in_flight 0.0" in told
    assert "aft-k2" not in told  # or whoever asks could make ever more rows


def test_paths_without_v1_are_the_same_and_others_are_errors_as_clients_read_them(server):
    assert server.client(base_url=server.url.removesuffix("/v1")).models.list().data
    with pytest.raises(openai.NotFoundError) as raised:
        server.client().embeddings.create(model="aft", input="x")
    assert "/v1/embeddings" in raised.value.body["message"]
    with pytest.raises(openai.APIStatusError) as raised:
        server.client().get("/chat/completions", cast_to=object)
    assert raised.value.status_code == 405


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"a": NaN}', b"[" * 10**5]
)
def test_a_body_that_is_no_request_is_refused(server, body):
    with pytest.raises(openai.BadRequestError):
        server.client().post("/chat/completions", content=body, cast_to=object)


def test_the_number_of_a_request_is_told(server):
    root = server.url.removesuffix("/v1")
    assert get(f"{root}/health", **{"X-Request-Id": "mine"})[1]["x-request-id"] == "mine"
    assert len(get(f"{root}/health")[1]["x-request-id"]) == 32


def test_hostile_content_becomes_neither_template_code_nor_control_tokens(server, sent):
    hostile = "{{ 7 * 7 }} {% raw %} <|eot_id|> [INST] </s>"
    server.ask(messages=[{"role": "user", "content": hostile}])
    for request in sent:
        said = json.dumps(request.prompt, ensure_ascii=False)
        assert "{{ 7 * 7 }} {% raw %}" in said
        assert not any(marker in said for marker in ("<|eot_id|>", "[INST]", "</s>"))


def test_two_clients_never_see_each_others_settings(server):
    """Peers keep parameters of requests globally."""

    def script(request):
        return [
            f"{request.sampling.temperature} {[stop[1:] for stop in request.sampling.stop]}"
        ] * request.n

    engine = Watched(script, delay=0.02)
    found = {}
    with served(engine) as one:

        def ask(i):
            client = one.client()
            for turn in range(5):
                messages = [{"role": "user", "content": f"{i} {turn}"}]
                answer = client.chat.completions.create(
                    model=f"aft-k{1 + i % 3}",
                    messages=messages,
                    temperature=i / 10,
                    stop=[f"s{i}"],
                    extra_body={"aft": {"proposal": {"temperature": 1 + i / 10}}},
                )
                found[i, turn] = (answer.choices[0].message.content, answer.aft["options"]["width"])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == {
        (i, turn): (f"{i / 10} ['{i}']", 1 + i % 3) for i in range(8) for turn in range(5)
    }
    drafts = [r for r in engine.requests if not r.sampling.stop]
    assert {r.sampling.temperature for r in drafts} == {1 + i / 10 for i in range(8)}


def test_what_the_model_cannot_do_has_the_error_that_clients_know():
    problems = {
        "refused": (EngineError("maximum context length is 10 tokens", "refused"), openai.BadRequestError, "context_length_exceeded"),
        "picky": (EngineError("no such word", "refused"), openai.BadRequestError, "refused_by_model"),
        "fatal": (EngineError("no such key", "fatal"), openai.InternalServerError, "model_failed"),
        "empty": ([""], openai.InternalServerError, "no_answer"),
    }  # fmt: skip

    def script(request):
        found = problems[request.prompt[-1]["content"]][0]
        return found * request.n if isinstance(found, list) else found

    with served(Watched(script)) as server:
        for word, (_, kind, code) in problems.items():
            for stream in (False, True):
                with pytest.raises(kind) as raised:
                    server.ask("plain", [{"role": "user", "content": word}], stream=stream)
                assert raised.value.code == code, word
                if word == "fatal":
                    server.state.answering.failure = None


def test_a_model_that_has_died_makes_the_server_unhealthy():
    with served(Watched(lambda _: EngineError("vLLM has died", "fatal"))) as server:
        with pytest.raises(openai.InternalServerError):
            server.ask()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(f"{server.url.removesuffix('/v1')}/health")


def test_an_answer_that_was_cut_off_says_so():
    class Cut(Watched):
        async def sample(self, request):
            reply = await super().sample(request)
            reason = "length" if request.n == 1 else "stop"
            cut = tuple(Completion(c.text, reason, c.tokens) for c in reply.completions)
            return type(reply)(cut, reply.usage)

    with served(Cut(drafts_of), on_truncated="reject", on_filtered="reject") as server:
        assert server.ask().choices[0].finish_reason == "length"


@pytest.mark.parametrize("way", ["environment", "file"])
def test_who_shows_no_key_is_sent_away(monkeypatch, tmp_path, way):
    settings = {}
    if way == "environment":
        monkeypatch.setenv("AFT_API_KEY", "first")
    else:
        (tmp_path / "keys").write_text("first\n\nsecond \n")
        settings["client_key_file"] = tmp_path / "keys"
    with served(allow_origin=["https://chat.example.org"], **settings) as server:
        root = server.url.removesuffix("/v1")
        assert get(f"{root}/health")[0] == 200
        assert server.client(api_key="first").models.list().data
        if way == "file":
            assert server.client(api_key="second").models.list().data
        for key in ("", "firs", "first2", "SECOND"):
            for base in (server.url, root):
                with pytest.raises(openai.AuthenticationError) as raised:
                    server.client(api_key=key or "x", base_url=base).models.list()
                assert raised.value.code == "invalid_api_key"
                assert "first" not in str(raised.value)
        asked = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
        ask = urllib.request.Request(f"{server.url}/models", headers=asked, method="OPTIONS")
        with urllib.request.urlopen(ask) as answer:  # a browser's, which shows no key
            assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"


def test_pages_of_others_are_not_let_in_unless_told(server):
    assert (
        "access-control-allow-origin" not in get(f"{server.url}/models", Origin="https://x.org")[1]
    )


def test_limits_of_body_answer_and_queue():
    engine = Watched(drafts_of, delay=30)
    with served(engine, max_body=1000, max_answer=50, queue=2, client_queue=3) as server:
        with pytest.raises(openai.APIStatusError) as raised:
            server.ask(messages=[{"role": "user", "content": "x" * 1001}])
        assert (raised.value.status_code, raised.value.code) == (413, "too_long")
        for fields in (
            {"max_tokens": 51},
            {"extra_body": {"aft": {"proposal": {"max_tokens": 51}}}},
        ):
            with pytest.raises(openai.BadRequestError, match="up to 50 tokens"):
                server.ask(**fields)
        waiting = [raw_request(server, "plain", False) for _ in range(2)]
        until(lambda: server.state.under_way.total() == 2)
        with pytest.raises(openai.RateLimitError) as raised:
            server.ask(max_tokens=50)
        assert raised.value.response.headers["retry-after"] == "5"
        assert raised.value.code == "queue_full"
        [http.close() for http in waiting]


def test_one_client_cannot_fill_the_queue(tmp_path):
    (tmp_path / "keys").write_text("greedy\nmodest\n")
    with served(
        Watched(drafts_of, delay=0.5), client_key_file=tmp_path / "keys", queue=4
    ) as server:
        many = [raw_request(server, "plain", False, key="greedy") for _ in range(2)]
        until(lambda: server.state.under_way.total() == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests of yours"):
            server.client(api_key="greedy").chat.completions.create(model="aft", messages=QUESTION)
        modest = server.client(api_key="modest").chat.completions
        assert modest.create(model="plain", messages=QUESTION).choices
        [http.close() for http in many]
        until(lambda: not server.state.under_way)


def test_lengths_are_limited_by_the_models_context():
    engine = Watched(drafts_of)
    engine.context = 5000
    with served(engine) as server:
        with pytest.raises(openai.BadRequestError) as raised:
            server.ask(max_tokens=5000)
        assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "max_tokens")
        assert server.ask(max_tokens=4999).choices
        assert [one.max_model_len for one in server.client().models.list()] == [5000, 5000]


def test_a_variant_that_the_models_context_has_no_room_for_is_told_at_the_start(tiny_llama):
    engine = Watched(drafts_of)
    engine.context, engine.tokenizer = 100, load_tokenizer(str(tiny_llama))
    engine.chat_template = chat_template("llama3")
    variants = {"long": {"max_tokens": 200}}
    with (
        pytest.raises(UsageError, match="variants: long: max_tokens 200 leaves no room"),
        served(engine, max_tokens=50, variants=variants),
    ):
        pass


def test_drafts_are_fitted_to_the_context_and_a_query_that_is_too_long_is_refused(tiny_llama):
    engine = Watched(lambda request: ["six pails " * 200] * request.n)
    engine.context, engine.tokenizer = 1200, load_tokenizer(str(tiny_llama))
    engine.chat_template = chat_template("llama3")
    with served(engine, max_tokens=300) as server:
        events = [event["event"] for event in server.ask().aft["events"]]
        assert "3 drafts shortened" in events
        assert b'aft_events_total{event="N drafts shortened"} 1.0' in server.state.metrics.text()
        [*_, final] = engine.requests
        assert len(final.prompt_ids) <= 900
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                server.ask(messages=[{"role": "user", "content": "pails " * 3000}], stream=stream)
            assert raised.value.code == "context_length_exceeded"


def test_a_request_that_takes_too_long_is_given_up():
    engine = Watched(drafts_of, delay=30)
    with served(engine, time_limit=0.3) as server:
        with pytest.raises(openai.InternalServerError) as raised:
            server.ask()
        assert (raised.value.status_code, raised.value.code) == (504, "timeout")
        assert raised.value.response.headers["x-should-retry"] == "false"
        until(lambda: not engine.with_it)


def test_layers_between_have_settings_of_their_own():
    deep = {"layers": 2, "middle_temperature": 0.3, "middle_max_tokens": 70, "drafts": "full"}
    thinking = Watched(lambda request: ["<think>Hm.</think>Six."] * request.n)
    with served(thinking, variants={"deep": deep, "vote": {"strategy": "majority_vote"}}) as one:
        one.ask("deep", temperature=0.1)
        samplings = [request.sampling for request in thinking.requests]
        assert [s.temperature for s in samplings] == [0.7, 0.3, 0.1]
        assert [s.max_tokens for s in samplings] == [4096, 70, 4096]
        assert "Hm." in thinking.requests[-1].prompt[0]["content"]  # all of a draft is read
        one.ask("deep", extra_body={"aft": {"strategy": "majority_vote"}})  # has none between


def test_a_client_sets_variables_of_the_chat_template_and_nothing_else(tiny_llama):
    engine = Watched(drafts_of)
    engine.context, engine.tokenizer = 9000, load_tokenizer(str(tiny_llama))
    brief = "{% if brief %}Be brief. {% endif %}{{ messages | map(attribute='content') | join }}"
    engine.chat_template = brief
    with served(engine, sampling_args={"chat_template_kwargs": {"a": 1}}) as one:
        one.ask(extra_body={"chat_template_kwargs": {"brief": True}})
        for request in engine.requests:
            assert request.sampling.extra["chat_template_kwargs"] == {"a": 1, "brief": True}
            assert engine.tokenizer.decode(request.prompt_ids).startswith("Be brief.")
        for name in ("chat_template", "tokenize", "messages", "truncation", "barf"):
            with pytest.raises(openai.BadRequestError, match="these are: brief"):
                one.ask(extra_body={"chat_template_kwargs": {name: "{{ 1 }}"}})


def test_a_model_without_system_messages_is_sent_none():
    engine = Watched(lambda request: ["Six."] * request.n)
    with served(engine, no_system=[""]) as one:
        one.ask()
    [*_, final] = engine.requests
    assert [message["role"] for message in final.prompt] == ["user"]
    assert "Six." in final.prompt[0]["content"]

"""Real clients: LangChain's and lm-eval's, each as it asks by itself. The openai package's is in every test here.

Run: pytest tests/serve/test_clients.py
"""

import time

import openai
import pytest
from serve_tools import QUESTION, Watched, drafts_of, served

ASKED = QUESTION[0]["content"]


@pytest.fixture(scope="module")
def server():
    with served(Watched(drafts_of)) as one:
        yield one


@pytest.fixture
def langchain(server):
    module = pytest.importorskip(
        "langchain_openai", reason="asks by it: pip install langchain-openai"
    )
    return lambda **more: module.ChatOpenAI(base_url=server.url, api_key="x", model="aft", **more)


def test_langchain_reads_answer_and_usage(server, langchain):
    aft = {"aft": {"width": 2}}
    message = langchain(temperature=0.1, seed=5, max_tokens=20, stop=["x"], extra_body=aft).invoke(
        ASKED
    )
    expected = server.ask(temperature=0.1, seed=5, max_tokens=20, stop="x", extra_body=aft)
    assert message.content == expected.choices[0].message.content
    assert message.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    details = message.usage_metadata["output_token_details"]
    assert details["reasoning"] == expected.usage.completion_tokens_details.reasoning_tokens


def test_langchain_streams_the_same(server, langchain):
    chunks = list(langchain(stream_usage=True).stream(ASKED))
    expected = server.ask()
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == expected.choices[0].message.content
    assert whole.usage_metadata["total_tokens"] == expected.usage.total_tokens
    assert len(chunks) > 3


def test_langchain_is_told_what_cannot_be_had(langchain):
    def count(number: int) -> int:
        """Count."""

    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        langchain().bind_tools([count], tool_choice="required").invoke(ASKED)
    assert langchain().bind_tools([count]).invoke(ASKED).content.startswith("aggregation")


def test_the_official_client_gives_up_and_asks_again_as_it_is_set():
    """Each attempt that times out is given up in the engine, too."""
    engine = Watched(drafts_of, delay=1)
    with served(engine) as one:
        began = time.monotonic()
        client = one.client(timeout=0.3, max_retries=1)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="plain", messages=QUESTION)
        assert time.monotonic() - began < 5
        assert len(engine.requests) == 2
        deadline = time.monotonic() + 1
        while engine.with_it:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
def test_lm_eval_scores_what_it_asks_for(server, monkeypatch):
    """Its model `local-chat-completions`, as `lm_eval --model` builds it, on two problems."""
    pytest.importorskip("lm_eval")
    import lm_eval.models  # noqa: F401 - registers them
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    monkeypatch.setenv("OPENAI_API_KEY", "x")
    arguments = f"model=aft,base_url={server.url}/chat/completions,num_concurrent=2,tokenized_requests=False"
    model = get_model("local-chat-completions").create_from_arg_string(arguments)
    settings = {"until": ["Question:"], "max_gen_toks": 30, "do_sample": False, "temperature": 0.0}
    prompts = [
        model.apply_chat_template([{"role": "user", "content": text}]) for text in ("1?", "2?")
    ]
    server.engine.requests.clear()
    asked = [
        Instance("generate_until", {}, (prompt, settings), i) for i, prompt in enumerate(prompts)
    ]
    texts = model.generate_until(asked, disable_tqdm=True)
    assert all(text.startswith("aggregation 0 at 0.0") for text in texts)
    finals = [r.sampling for r in server.engine.requests if r.n == 1]
    assert [(s.temperature, s.max_tokens, s.stop) for s in finals] == [
        (0.0, 30, ("Question:",))
    ] * 2
    drafts = [r.sampling for r in server.engine.requests if r.n == 3]
    assert [s.temperature for s in drafts] == [0.7] * 2

"""What a command opens to ask. Run: pytest tests/stage/test_stage_engines.py"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web
from flaky_server import FlakyServer

from aft_factory.engines.sampling import Request, Sampling
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.errors import UsageError
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.run.settings import RunSettings
from aft_factory.stage.engines import Proposer, open_engines
from aft_factory.stage.job_settings import DEFAULT_IN_FLIGHT, AskSettings

OWN = "{% for m in messages %}<|start_header_id|>{{ m['content'] }} and much more{% endfor %}"


def opening(*servers: dict, others=None, base=None, look=None, **settings):
    """Open engines on flaky servers of these options, and return them, or what `look` does.

    Args:
        servers: Their options.
        others: Further models, by name: the numbers of their servers.
        base: The numbers of the run's own servers; None for all.
        look: Looks at the engines and the servers.
        settings: Of the command.
    """

    async def main():
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(FlakyServer(**s)) for s in servers]
            urls = [server.url for server in running]
            named = {name: Proposer([urls[i] for i in own]) for name, own in (others or {}).items()}
            own = urls if base is None else [urls[i] for i in base]
            asked = AskSettings(base_url=own, **settings)
            engines = await stack.enter_async_context(open_engines(asked, "paper", named))
            return await look(engines, running) if look else engines

    return asyncio.run(main())


def test_each_server_adds_to_the_samples_in_flight():
    assert opening({}).in_flight == DEFAULT_IN_FLIGHT
    assert opening({}, {}).in_flight == 2 * DEFAULT_IN_FLIGHT
    assert opening({}, {}, in_flight=7).in_flight == 7


def test_the_servers_of_further_models_count_once_each():
    others = {"flaky": [], "other": [1, 2]}
    two = {"models": ("other",)}
    assert opening({}, two, two, base=[0], others=others).in_flight == 3 * DEFAULT_IN_FLIGHT
    assert opening({}, two, two, others=others, model="flaky").in_flight == 3 * DEFAULT_IN_FLIGHT


def test_several_models_may_be_at_the_same_urls_each_at_its_own():
    async def look(engines, servers):
        for name in ("", "b"):
            asked = Request("?", 1, Sampling(max_tokens=1), 1, name or None)
            await engines.engines[name].sample(asked)
        return [[body["model"] for _, body in server.requests] for server in servers]

    offers = ({"models": ("a",)}, {"models": ("b",)})
    assert opening(*offers, others={"b": []}, look=look, model="a") == [["a"], ["b"]]


@pytest.fixture
def served(tiny_llama, tmp_path):
    """A tokenizer that knows Llama 3's headers and has a longer chat template; its folder."""
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_prompts_are_fitted_by_the_served_models_own_template(served):
    def templates(**settings):
        engines = opening({"max_model_len": 5000}, tokenizer=served, **settings)
        assert set(engines.fitters) == {""}
        assert engines.fitters[""].limit == 5000
        return engines.engines[""].chat_template

    assert templates() == templates(chat_template="own") == OWN
    assert templates(chat_template="llama3") != OWN


def test_prompts_are_fitted_as_they_are_sent_to_a_model_without_system_messages(served):
    assert opening({"max_model_len": 5000}, tokenizer=served).fitters[""].system
    chat = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content }}{% endfor %}"
    (Path(served) / "chat_template.jinja").write_text(chat)
    engines = opening({"max_model_len": 5000}, tokenizer=served)
    assert (engines.no_system, engines.fitters[""].system) == ({""}, False)


def test_without_its_own_the_vocabulary_tells_the_template(served):
    (Path(served) / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(served)
    assert tokenizer.chat_template is None
    told = opening({}, tokenizer=served).engines[""].chat_template
    assert told == resolve_chat_template("llama3", tokenizer)


def test_prompts_that_cannot_be_fitted_are_told_of(tmp_path, caplog):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    assert not opening({"max_model_len": 5000}, tokenizer=str(tmp_path)).fitters
    assert "has no chat template: drafts are not fitted" in caplog.text


@pytest.mark.parametrize(("read", "told"), [(60, True), (48, False), (2 * 40 + 8, False)])
def test_a_tokenizer_by_which_the_server_does_not_read_is_told_of_once(served, caplog, read, told):
    def answer(path, body):
        choice = {"index": 0, "message": {"content": "So"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice] * 2, "usage": {"prompt_tokens": read}})

    async def look(engines, servers):
        asked = Request("?", 2, Sampling(), 1, prompt_ids=range(40))
        for _ in range(2):
            await engines.engines[""].sample(asked)

    opening({"max_model_len": 5000, "answer": answer}, tokenizer=served, look=look)
    words = (
        "flaky reads 60 tokens where the tokenizer counts 40, by which drafts are fitted to the "
    )
    words += "context: --tokenizer and --chat-template are to be the served model's own"
    assert [r.message for r in caplog.records if "reads" in r.message] == [words] * told


THINKS = {"chat_template_kwargs": {"thinking": False}}


def test_a_variable_that_the_served_template_may_not_know_is_told_of(served, caplog):
    opening({}, tokenizer=served, sampling_args=THINKS)
    assert "has 'thinking', of which the chat template of flaky knows nothing" in caplog.text
    caplog.clear()
    (Path(served) / "chat_template.jinja").write_text(OWN + "{{ thinking }}")
    opening({}, tokenizer=served, sampling_args=THINKS)
    opening({}, sampling_args=THINKS)  # whose chat template is not known
    assert [r.message for r in caplog.records if r.name.startswith("aft_factory")] == []


@pytest.mark.parametrize("layer", ["sampling_args", "middle_sampling_args", "final_sampling_args"])
def test_a_variable_that_a_model_in_process_does_not_know_is_refused(layer, monkeypatch):
    """Else it would be handed to a chat template that ignores it without a word."""
    engine = ScriptedEngine()
    engine.chat_template = OWN + "{{ enable_thinking }}"
    vllm_engine = pytest.importorskip("aft_factory.engines.vllm_engine")

    async def start(*_, **__):
        return engine

    monkeypatch.setattr(vllm_engine.VllmEngine, "start", start)
    monkeypatch.setattr(engine, "max_sequences", 1, raising=False)

    async def opened(extra):
        settings = RunSettings(**{layer: extra}, model="m")
        async with open_engines(settings, "paper"):
            return "opened"

    with pytest.raises(
        UsageError, match=r"'thinking'.* its variables are enable_thinking, messages"
    ):
        asyncio.run(opened(THINKS))
    with pytest.raises(UsageError, match="vLLM has no 'min_pp'"):
        asyncio.run(opened({"min_pp": 0.1}))
    known = {"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1}
    assert asyncio.run(opened(known)) == "opened"


def test_markers_are_those_of_the_models_own_tokenizer_where_it_is_known(served):
    texts = ["<|start_header_id|>", "</s>"]  # the second is HTML to this model
    own = opening({}, tokenizer=served).markers[""]
    assert [own.sanitise(text) != text for text in texts] == [True, False]
    assert [opening({}).markers[""].sanitise(text) != text for text in texts] == [True, True]


@pytest.mark.parametrize(("thinking", "told"), [(True, 1), (False, 0)])
def test_an_aggregator_prompt_in_the_place_of_a_request_for_thoughts_is_told(
    thinking, told, tmp_path, llama3_tokenizer_dir, caplog
):
    asks = "{{ 'Think after \\'I think:\\' and answer after \\'I say:\\'.' if thinking and messages[0].role != 'system' }}"
    (tmp_path / "own.jinja").write_text(asks + OWN)
    opening(
        {},
        tokenizer=str(llama3_tokenizer_dir),
        chat_template=str(tmp_path / "own.jinja"),
        sampling_args={"chat_template_kwargs": {"thinking": thinking}},
    )
    assert caplog.text.count("asked for thoughts by its chat template's own") == told

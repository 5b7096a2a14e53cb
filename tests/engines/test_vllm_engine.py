"""vLLM in this process: equal to Hugging Face and to training, one engine for the whole file."""

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import demo_rows
from flaky_server import until
from serve_tools import QUESTION as ASKED
from serve_tools import at_work, raw_request
from shared_data import CASES

from aft_factory.asking.asker import Asker
from aft_factory.engines.engine import EngineError
from aft_factory.engines.identity import fingerprint
from aft_factory.engines.sampling import Request, Sampling
from aft_factory.engines.vllm_engine import VllmEngine
from aft_factory.engines.vllm_loading import adapter_rank
from aft_factory.engines.vllm_sampling import check_samplings, stop_token_ids
from aft_factory.errors import UsageError
from aft_factory.inference.queries import read_record
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template, with_aggregator
from aft_factory.prompts.thought_probes import Thoughts
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.records.record import record_from_row
from aft_factory.run.settings import RunSettings

QUESTION = [{"role": "user", "content": "How many pails are there, if each of six holds one?"}]
ARGS = {"enforce_eager": True, "dtype": "float32", "max_model_len": 2048, "max_num_seqs": 64}
GREEDY = Sampling(temperature=0, max_tokens=24, extra={"ignore_eos": True})
SHORT = Sampling(max_tokens=1)
EOT = 5  # <|eot_id|> in the tiny tokenizer


@pytest.fixture(scope="module")
def run():
    """Runs a coroutine in the one event loop that an engine lives in."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(240)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class TellingEngine(VllmEngine):
    """An engine that keeps what vLLM gave for each sample: the tokens it read, and wrote."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.outputs, self.asked = {}, []

    async def _one(self, ids, request, index):
        output = await super()._one(ids, request, index)
        self.outputs[id(request), index] = output
        self.asked.append(request)  # so that its id stays its own
        return output

    def read(self, request):
        return list(self.outputs[id(request), 0].prompt_token_ids)

    def written(self, request, index=0):
        return tuple(self.outputs[id(request), index].outputs[0].token_ids)


@pytest.fixture(scope="module")
def engine(run, tiny_llama):
    engine = run(TellingEngine.start(str(tiny_llama), engine_args=ARGS))
    yield engine
    run(engine.close())


@pytest.fixture
def ask(run, engine):
    """Sends requests all at once and returns their replies."""
    return lambda *requests: run(gather(engine, requests))


async def gather(engine, requests):
    return await asyncio.gather(*map(engine.sample, requests))


def save_adapter(model, folder, *, random_weights=True, **options):
    """Write a LoRA adapter whose weights change the model's text; the peft model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=12, lora_alpha=24, target_modules=["q_proj", "down_proj"], **options)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, config)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name and random_weights:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(folder)
    return adapted.eval()


def hugging_face_greedy(model, ids, count):
    import torch

    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(ids) :].tolist())


# Without vLLM


def test_an_adapter_that_vllm_cannot_serve_is_refused_before_loading(run, tiny_llama, tmp_path):
    def refused(folder, words):
        with pytest.raises(UsageError, match=words):
            run(VllmEngine.start(str(tiny_llama), adapter=str(folder)))

    refused(tmp_path / "none", "has no adapter_config.json")
    save_adapter(tiny_llama, tmp_path / "whole", modules_to_save=["lm_head"])
    refused(
        tmp_path / "whole", r"modules_to_save=\['lm_head'\]; merge it .*llamafactory-cli export"
    )
    save_adapter(tiny_llama, tmp_path / "dora", use_dora=True)
    refused(tmp_path / "dora", "use_dora=True; merge it")
    config = tmp_path / "whole" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None}))
    refused(tmp_path / "whole", "cannot serve the trained .*lm_head.weight; merge it")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 1024}))
    (tmp_path / "whole" / "adapter_model.safetensors").unlink()
    refused(tmp_path / "whole", "ranks up to 512, this is 1024; merge it")
    config.write_text("[]")
    refused(tmp_path / "whole", "not an adapter's")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_pattern", {"q_proj": 64}),
        ("rank_pattern", {"q_proj": 4}),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [1, 2]),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("alora_invocation_tokens", [7]),
        ("a_field_of_tomorrow", "on"),
    ],
)
def test_a_field_of_an_adapter_that_vllm_does_not_read_is_refused_by_name(
    field, value, tiny_llama, tmp_path
):
    save_adapter(tiny_llama, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UsageError, match=f"vLLM cannot serve {field}=.*; merge it into the model"):
        adapter_rank(tmp_path)


def test_adapters_as_they_are_usually_trained_are_served(tiny_llama, tmp_path):
    usual = {
        "plain": {},
        "rslora": {"use_rslora": True},
        "some layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
        "dropout": {"lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    }
    for name, options in usual.items():
        save_adapter(tiny_llama, tmp_path / name, **options)
        assert adapter_rank(tmp_path / name) == 16  # room for 12


def test_the_rank_of_an_adapter_is_the_largest_of_its_weights(tiny_llama, tmp_path):
    save_adapter(tiny_llama, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 4}))
    assert adapter_rank(tmp_path) == 16


def test_a_real_adapter_with_an_alpha_pattern_is_refused():
    with pytest.raises(UsageError, match=r"alpha_pattern=.*merge it"):
        adapter_rank(CASES / "adapter_alpha_pattern")


def test_a_sampling_setting_that_vllm_has_not_is_refused_before_loading():
    with pytest.raises(UsageError, match="vLLM has no 'min_pp'; did you mean 'min_p'"):
        check_samplings([Sampling(extra={"min_pp": 0.1})])
    check_samplings([Sampling(extra={"min_p": 0.1, "ignore_eos": True})])


def test_a_model_or_template_that_is_not_there_is_refused_before_loading(run, tiny_llama, tmp_path):
    with pytest.raises(UsageError, match=f"no model folder '{tmp_path}/none'"):
        run(VllmEngine.start(f"{tmp_path}/none"))
    with pytest.raises(UsageError, match="cannot load the tokenizer"):
        run(VllmEngine.start(str(tmp_path)))
    with pytest.raises(UsageError, match="no chat template 'lama3'; did you mean 'llama3'"):
        run(VllmEngine.start(str(tiny_llama), chat_template="lama3"))


def test_answers_end_at_the_end_of_text_and_at_the_templates_end_of_a_turn(
    tiny_llama, tiny_mistral
):
    llama, mistral = load_tokenizer(str(tiny_llama)), load_tokenizer(str(tiny_mistral))
    ends = stop_token_ids(llama, chat_template("llama3"))
    assert llama.convert_ids_to_tokens(ends) == ["<|end_of_text|>", "<|eot_id|>"]
    assert stop_token_ids(mistral, chat_template("mistral")) == [mistral.eos_token_id]
    assert stop_token_ids(llama, None) == [llama.eos_token_id]
    assert stop_token_ids(llama, "{{ raise_exception('no') }}") == [llama.eos_token_id]
    several = "{% for m in messages %}{{ m.content }}<|eom_id|>{% endfor %}<|eot_id|>"
    ends = stop_token_ids(llama, several)
    assert llama.convert_ids_to_tokens(ends) == ["<|end_of_text|>", "<|eom_id|>"]


def test_a_model_is_known_by_its_place_and_its_files(tiny_llama, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(str(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    assert {fingerprint("model"), fingerprint("./link"), fingerprint("model/")} == {first}
    (folder / "trainer_log.jsonl").write_text("{}")
    assert fingerprint(str(folder)) == first
    os.utime(folder / "model.safetensors", ns=(1, 1))
    trained_anew = fingerprint(str(folder))
    assert trained_anew != first
    (folder / "adapter_config.json").write_text("{}")
    assert fingerprint(str(folder)) not in (first, trained_anew)
    assert fingerprint("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


def engine_of_nothing(tokenizer, **caching):
    """An engine without vLLM behind it, to say what its samples do."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=2048),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        cache_config=SimpleNamespace(**{"enable_prefix_caching": True, **caching}),
    )
    llm = SimpleNamespace(vllm_config=config, shutdown=lambda: None)
    return VllmEngine(llm, model="m", tokenizer=tokenizer, chat_template=None)


def test_without_prefix_caching_samples_are_asked_for_one_by_one(tiny_llama):
    """So that a prompt, which each sample then reads by itself, is counted as often."""
    tokenizer = load_tokenizer(str(tiny_llama))
    assert engine_of_nothing(tokenizer).most_samples is None
    assert engine_of_nothing(tokenizer, enable_prefix_caching=False).most_samples == 1


@pytest.mark.parametrize("end", ["failure", "cancellation"])
def test_when_one_sample_fails_the_others_have_ended_before_that_is_said(tiny_llama, end):
    """Or the next attempt would run beside them, beyond what may be in flight."""
    engine, running = engine_of_nothing(load_tokenizer(str(tiny_llama))), set()

    async def one(ids, request, index):
        running.add(index)
        try:
            while index != 1 or end == "cancellation" or len(running) < 3:
                await asyncio.sleep(0.01)
            raise EngineError("it failed", "retry")
        finally:
            await asyncio.sleep(0.01)  # to abort takes a while
            running.remove(index)

    async def main():
        engine._one = one
        asking = asyncio.create_task(engine.sample(Request("Six pails", 3, SHORT, 0)))
        while len(running) < 3:
            await asyncio.sleep(0.01)
        if end == "cancellation":
            asking.cancel()
        await asyncio.wait([asking])
        still = set(running)
        await engine.close()
        return still, asking

    still, asking = asyncio.run(main())
    assert (still, asking.cancelled()) == (set(), end == "cancellation")
    if end == "failure":
        assert str(asking.exception()) == "it failed"


PARENT = """
import subprocess, sys, time
from aft_factory.engines.vllm_loading import _watch
child, other = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
_watch([child.pid])
print(child.pid, other.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("seconds", ["1000", "0"])
def test_what_is_watched_dies_with_its_parent_however_that_ends(seconds):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, seconds], stdout=subprocess.PIPE)
    child, other = map(int, parent.stdout.readline().split())
    assert is_alive(other)
    if seconds != "0":
        assert is_alive(child)
        parent.kill()
    until(lambda: not is_alive(child))
    assert is_alive(other)
    os.kill(other, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()


def is_alive(process):
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_an_unknown_engine_argument_is_refused_with_a_suggestion(run, tiny_llama):
    with pytest.raises(UsageError, match="'max_model_length'; did you mean 'max_model_len'"):
        run(VllmEngine.start(str(tiny_llama), engine_args={"max_model_length": 10}))


# With one engine


@pytest.mark.slow
def test_what_the_engine_tells_of_itself(engine, tiny_llama):
    assert engine.model.startswith(f"{fingerprint(str(tiny_llama))}+")
    assert (engine.context, engine.max_sequences, engine.most_samples) == (2048, 64, None)
    assert engine.chat_template == resolve_chat_template("llama3", engine.tokenizer)


@pytest.mark.slow
def test_it_works_on_as_much_at_once_as_vllms_offline_inference(engine):
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens, _ = AsyncEngineArgs.get_batch_defaults(world_size=1)
    scheduler = engine._llm.vllm_config.scheduler_config
    offline = tokens[UsageContext.LLM_CLASS]
    assert scheduler.max_num_batched_tokens == offline > scheduler.DEFAULT_MAX_NUM_BATCHED_TOKENS


@pytest.mark.slow
def test_samples_come_in_order_each_as_if_asked_alone_under_its_seed(ask, engine):
    request = Request(QUESTION, 5, Sampling(max_tokens=20), 100)
    [reply] = ask(request)
    alone = [Request(QUESTION, 1, Sampling(max_tokens=20), 100 + i) for i in range(5)]
    texts = [single.completions[0].text for single in ask(*alone)]
    assert [c.text for c in reply.completions] == texts
    assert [engine.written(request, i) for i in range(5)] == list(map(engine.written, alone))
    assert len({c.text for c in reply.completions}) == 5


@pytest.mark.slow
def test_equal_seeds_give_equal_texts_alone_and_among_others(ask):
    requests = [Request(f"Question {i}: why?", 1, Sampling(max_tokens=16), i) for i in range(20)]
    alone = [ask(request)[0].completions for request in requests]
    together = [reply.completions for reply in ask(*requests)]
    assert together == alone


@pytest.mark.slow
def test_greedy_text_is_that_of_hugging_face(ask, engine, tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    requests = [Request(QUESTION, 1, GREEDY, 0), Request("Six pails", 1, GREEDY, 0)]
    for request, reply in zip(requests, ask(*requests), strict=True):
        [completion] = reply.completions
        expected = hugging_face_greedy(model, engine.read(request), 24)
        assert engine.written(request) == expected
        assert completion.text == engine.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.slow
def test_prompts_are_the_training_tokens_of_the_same_record(ask, engine):
    records = [record_from_row(row) for row in demo_rows()[:30]]
    template = load_template("paper")
    prompts = [
        with_aggregator(
            r.messages, [known_markers().sanitise(text) for text in r.proposals], template
        )
        for r in records
    ]
    requests = [Request(prompt, 1, SHORT, 0) for prompt in prompts]
    ask(*requests)
    for record, request in zip(records, requests, strict=True):
        trained = engine.tokenizer.apply_chat_template(
            record.messages,
            proposals=record.proposals,
            chat_template=chat_template("llama3"),
            add_generation_prompt=True,
            return_dict=False,
        )
        assert engine.read(request) == trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_a_twins_chat_template_reads_proposals_and_whether_to_think(ask, engine, name, monkeypatch):
    """As asked by `chat_template_kwargs`, and as the runner asks: the same tokens."""
    pytest.importorskip("llamafactory")
    from llamafactory.data.template import TEMPLATES

    from aft_factory.plugin.twin import chat_template_for, prelude_for

    template = TEMPLATES[name]
    prelude = prelude_for(template, engine.tokenizer, "paper", name)
    chat, _ = chat_template_for(template, prelude, engine.tokenizer, None, name)
    monkeypatch.setattr(engine, "chat_template", chat)
    drafts, read = ["Six.\n", "5 + 1 = 6"], []
    for switch in ({"enable_thinking": True}, {"enable_thinking": False}):
        given = [
            (QUESTION, {"proposals": drafts}),
            (with_aggregator(QUESTION, drafts, load_template("paper")), {}),
        ]
        requests = [
            Request(prompt, 1, replace(SHORT, extra={"chat_template_kwargs": own | switch}), 0)
            for prompt, own in given
        ]
        ask(*requests)
        expected = engine.tokenizer.apply_chat_template(
            QUESTION,
            proposals=drafts,
            chat_template=chat,
            add_generation_prompt=True,
            return_dict=False,
            **switch,
        )
        assert list(map(engine.read, requests)) == [expected] * 2
        read.append(expected)
    assert (read[0] == read[1]) == (name == "gemma2")


@pytest.mark.slow
def test_a_text_prompt_begins_with_the_beginning_of_text(ask, engine):
    request = Request("Six pails", 1, SHORT, 0)
    ask(request)
    assert engine.read(request) == [
        engine.tokenizer.bos_token_id,
        *engine.tokenizer.encode("Six pails", add_special_tokens=False),
    ]


@pytest.mark.slow
def test_release_prompts_are_those_of_the_published_code(ask, engine, real):
    """Restated from Linzwcs/AFT; LLM.chat renders, then encodes without special tokens."""
    rows = real.rows("alpaca_eval_v2.aft.jsonl")[:100]
    responses = real.rows("alpaca_eval_proposals.jsonl")[:100]
    head = load_template("release").render([])  # compared with the code's own text elsewhere
    requests, expected = [], []
    for row, answers in zip(rows, responses, strict=True):
        [user] = row["query"]
        drafts = [answer["response"][:120] for answer in answers["responses"][-5:]]
        assert drafts == [known_markers().sanitise(draft) for draft in drafts]
        joined = head + "\n" + "\n".join(f"{i + 1}. {draft}" for i, draft in enumerate(drafts))
        requests.append([{"role": "system", "content": "\n"}, user])
        requests.append(with_aggregator([user], drafts, load_template("release")))
        for system in ("\n", joined):
            text = engine.tokenizer.apply_chat_template(
                [{"role": "system", "content": system}, user],
                chat_template=engine.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            expected.append(engine.tokenizer(text, add_special_tokens=False)["input_ids"])
    requests = [Request(prompt, 1, SHORT, 0) for prompt in requests]
    ask(*requests)
    assert list(map(engine.read, requests)) == expected


@pytest.mark.slow
def test_usage_counts_the_prompt_once_and_what_was_cached_before(ask, engine):
    prompt = "A prompt nobody asked before. " * 40
    size = len(engine.tokenizer.encode(prompt))
    sampling = Sampling(max_tokens=7, extra={"ignore_eos": True})
    [first] = ask(Request(prompt, 3, sampling, 0))
    assert (first.usage.prompt, first.usage.cached, first.usage.completion) == (size, 0, 21)
    assert [c.tokens for c in first.completions] == [7, 7, 7]
    [again] = ask(Request(prompt, 3, sampling, 0))
    assert size - 129 <= again.usage.cached < size  # whole blocks of it


@pytest.mark.slow
def test_an_answer_ends_at_the_end_of_a_turn_at_a_stop_text_or_at_the_limit(ask, engine):
    ending = Sampling(max_tokens=9, extra={"logit_bias": {EOT: 100.0}})
    request = Request(QUESTION, 1, ending, 0)
    [reply] = ask(request)
    [completion] = reply.completions
    assert (completion.text, completion.finish_reason) == ("", "stop")
    assert engine.tokenizer.convert_ids_to_tokens(engine.written(request)) == ["<|eot_id|>"]
    request = Request(QUESTION, 1, GREEDY, 0)
    [reply] = ask(request)
    [whole] = reply.completions
    assert (whole.finish_reason, whole.tokens, whole.stopped) == ("length", 24, False)
    word = engine.tokenizer.decode(engine.written(request)[4:6]).strip()
    stopping = Sampling(temperature=0, max_tokens=24, stop=(word,))
    [reply] = ask(Request(QUESTION, 1, stopping, 0))
    [cut] = reply.completions
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(word)], "stop")
    assert (completion.stopped, cut.stopped) == (False, True)


@pytest.mark.slow
def test_a_request_that_cannot_be_answered_is_refused(ask, run):
    def problem(prompt, **sampling):
        with pytest.raises(EngineError) as caught:
            ask(Request(prompt, 2, Sampling(**sampling), 0))
        return caught.value.kind, str(caught.value)

    kind, words = problem("word " * 4000)
    assert kind == "refused"
    assert "longer than the maximum model length of 2048" in words
    kind, words = problem("word", extra={"min_p": 3})
    assert (kind, words) == ("refused", "vLLM: min_p must be in [0, 1], got 3.")
    [reply] = ask(
        Request("word " * 900, 1, Sampling(max_tokens=5000, extra={"ignore_eos": True}), 0)
    )
    assert reply.usage.prompt + reply.usage.completion in (2048, 2049)  # the context's end
    assert reply.completions[0].finish_reason == "length"


@pytest.mark.slow
def test_many_long_prompts_at_once_are_answered(ask):
    requests = [
        Request(f"{i} " + f"word{i} " * 150, 2, Sampling(max_tokens=4), i) for i in range(24)
    ]
    assert [len(reply.completions) for reply in ask(*requests)] == [2] * 24


@pytest.mark.slow
def test_a_cancelled_request_is_given_up_in_vllm(run, engine):
    async def cancel():
        long = Sampling(max_tokens=1900, extra={"ignore_eos": True})
        task = asyncio.create_task(engine.sample(Request("Go on", 3, long, 0)))
        while engine._llm.output_processor.get_num_unfinished_requests() < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine._llm.output_processor.get_num_unfinished_requests()

    assert run(cancel()) == 0


@pytest.mark.slow
def test_a_stream_tells_each_sample_as_it_is_written_and_gives_the_same_reply(ask, run, engine):
    request = Request(QUESTION, 3, Sampling(max_tokens=20), 100)
    [expected] = ask(request)
    pieces = []
    reply = run(engine.stream(request, pieces.append))
    assert reply.completions == expected.completions
    assert reply.usage.prompt == expected.usage.prompt
    assert reply.usage.completion == sum(c.tokens for c in expected.completions) > 20
    for i, completion in enumerate(reply.completions):
        own = [piece for piece in pieces if piece.index == i]
        assert "".join(piece.text for piece in own) == completion.text
        assert len(own) > 5
        assert [p.ended for p in own] == [False] * (len(own) - 1) + [True]
        assert all(p.start == len("".join(q.text for q in own[:at])) for at, p in enumerate(own))


@pytest.mark.slow
def test_a_stop_text_is_not_told(ask, run, engine):
    [whole] = ask(Request(QUESTION, 1, GREEDY, 0))
    word = whole.completions[0].text.split()[3]
    stopping = Sampling(temperature=0, max_tokens=24, stop=(word,), extra={"ignore_eos": True})
    pieces = []
    reply = run(engine.stream(Request(QUESTION, 1, stopping, 0), pieces.append))
    assert "".join(piece.text for piece in pieces) == reply.completions[0].text
    assert word not in reply.completions[0].text


def unfinished(engine):
    return engine._llm.output_processor.get_num_unfinished_requests()


@pytest.mark.slow
def test_a_server_streams_what_it_says_at_once_and_what_a_run_says(run, engine, tmp_path):
    """By the official client, on the real engine, in the order of the tokens."""
    work = at_work(engine, width=3, layers=2, max_tokens=24, seed=7)
    server = run(work.__aenter__())
    try:
        plain = server.ask(extra_body={"aft": {"keep_drafts": True}})
        drafts = text = ""
        for chunk in server.ask(stream=True):
            [choice] = chunk.choices
            assert not (text and getattr(choice.delta, "reasoning_content", None))
            drafts += getattr(choice.delta, "reasoning_content", None) or ""
            text += choice.delta.content or ""
        [choice] = plain.choices
        assert text == choice.message.content
        assert shown(drafts) == shown(choice.message.reasoning_content)
        settings = RunSettings(scripted=True, width=3, layers=2, max_tokens=24, seed=7)
        outcome = run(answered(engine, settings, server.state.answering))
        assert outcome.answers == [text]
        assert plain.usage.completion_tokens == sum(row["completion"] for row in outcome.usage)
    finally:
        run(work.__aexit__(None, None, None))


def shown(drafts):
    """The drafts in a text, whatever the order in which those of a layer ended."""
    return sorted(draft.strip() for draft in drafts.split("**Draft "))


async def answered(engine, settings, answering):
    """Answer the question as `aft run` does, by a runner of its own."""
    async with Asker({"": engine}, None, 100) as asker:
        strategy = STRATEGIES[settings.strategy]
        runner = Runner(
            *(strategy, settings.options(), settings.drafting(), asker, engine.model),
            answering._opened.fitters,
            markers={"": answering.markers},
        )
        return await runner.answer(read_record({"messages": ASKED}))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_samples_in_vllm(run, engine, stream):
    work = at_work(engine, width=3, layers=1, max_tokens=1900, sampling_args={"ignore_eos": True})
    server = run(work.__aenter__())
    try:
        http = raw_request(server, "aft", stream)
        until(lambda: unfinished(engine) == 3)
        http.close()
        began = time.monotonic()
        until(lambda: unfinished(engine) == 0)
        assert time.monotonic() - began < 1
    finally:
        run(work.__aexit__(None, None, None))


@pytest.mark.slow
def test_ctrl_c_does_not_reach_vllms_processes(run, engine):
    psutil = pytest.importorskip("psutil")

    async def interrupt():
        long = Sampling(max_tokens=300, extra={"ignore_eos": True})
        task = asyncio.create_task(engine.sample(Request("Go on", 2, long, 0)))
        while engine._llm.output_processor.get_num_unfinished_requests() < 2:
            await asyncio.sleep(0.01)
        for core in multiprocessing.active_children():  # other tests' servers are none of them
            process = psutil.Process(core.pid)
            for each in (process, *process.children(recursive=True)):
                each.send_signal(signal.SIGINT)
        return await task

    assert run(interrupt()).usage.completion == 600


# The first engine ends here


@pytest.mark.slow
def test_a_cancelled_start_leaves_no_process_behind(run, engine, tiny_llama):
    async def cancel():
        await engine.close()
        await engine.close()  # once more does no harm
        assert await left_alone()
        start = asyncio.create_task(VllmEngine.start(str(tiny_llama), engine_args=ARGS))
        while not multiprocessing.active_children():
            await asyncio.sleep(0.1)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert await left_alone()

    async def left_alone():
        for _ in range(300):
            if not multiprocessing.active_children():
                return True
            await asyncio.sleep(0.1)
        return False

    run(cancel())


@pytest.mark.slow
def test_an_adapter_is_served_with_its_own_tokenizer_as_peft_would(
    run, engine, tiny_llama, tmp_path
):
    [plain_ids] = [engine.tokenizer.encode("Six pails")]
    run(engine.close())  # one engine at a time
    adapted = save_adapter(tiny_llama, tmp_path)
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.eos_token = "<|eot_id|>"  # as LLaMA-Factory does, with its chat template
    tokenizer.chat_template = chat_template("llama3", "moa")
    tokenizer.save_pretrained(tmp_path)
    args = ARGS | {"enable_prefix_caching": False, "distributed_executor_backend": "uni"}
    second = run(TellingEngine.start(str(tiny_llama), adapter=str(tmp_path), engine_args=args))
    try:
        assert second.most_samples == 1
        assert second.model.startswith(
            f"{fingerprint(str(tiny_llama))}+{fingerprint(str(tmp_path))}+"
        )
        assert second.chat_template == chat_template("llama3", "moa")
        assert second.tokenizer.eos_token == "<|eot_id|>"
        request = Request("Six pails", 1, GREEDY, 0)
        run(gather(second, [request]))
        with adapted.disable_adapter():
            base = hugging_face_greedy(adapted, plain_ids, 24)
        assert second.written(request) == hugging_face_greedy(adapted, plain_ids, 24) != base
        dies(run, second)
    finally:
        run(second.close())


def dies(run, engine):
    """An engine whose process is gone says so, for good."""
    [process] = multiprocessing.active_children()
    process.kill()

    def says_so():
        with pytest.raises(EngineError) as caught:
            run(gather(engine, [Request("Six pails", 1, Sampling(max_tokens=2000), 0)]))
        return caught.value.kind == "fatal"

    until(says_so)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_ends_as_if_nothing_had_been(
    tiny_llama, tmp_path, ready_vllm
):
    psutil = pytest.importorskip("psutil")
    rows = [{"id": str(i), "query": row["query"]} for i, row in enumerate(demo_rows()[:40])]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "aft_factory.run", str(source), "--output", str(output)]
    command += ["--model", str(tiny_llama), "--width", "3", "--layers", "2", "--max-tokens", "24"]
    command += ["--in-flight", "6", "--quiet", "--keep-drafts"]
    command += ["--sampling-args", "ignore_eos=true"]  # or a draft may be empty, and drawn anew
    for name, value in ARGS.items():
        command += ["--engine-args", f"{name}={value}"]

    def kept():
        """What was answered so far, by key."""
        try:
            uri = f"file:{output}.journal?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as database:
                return dict(database.execute("SELECT key, reply FROM replies"))
        except sqlite3.OperationalError:  # it is just being made
            return {}

    null, apart = subprocess.DEVNULL, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # a worker, too
    process = subprocess.Popen(command, stdout=null, stderr=null, env=os.environ | apart)
    until(lambda: len(kept()) >= 10 or process.poll() is not None, 900)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()  # it alone
    assert process.wait() == -signal.SIGKILL
    assert len(family) >= 3  # vLLM's core and worker, at least, and who watches them
    until(lambda: not any(map(is_alive, family)))

    before = kept()
    code, said = ready_vllm.run("aft_factory.run", command[3:], tmp_path / "log")
    assert code == 0, said
    after = kept()
    assert len(after) == 3 * len(rows)  # of 3, 3 and 1 samples
    assert before.items() <= after.items()
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["session"]["requests_asked"] == len(after) - len(before)
    assert (summary["read"], summary["written"], summary["rejected"]) == (40, 40, 0)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert {len(layer["drafts"]) for row in written for layer in row["layers"]} == {1, 3}


CHANNELS = (
    "{% for m in messages %}{{ m.role }}:{% if m.thinking %}<|reserved_special_token_5|>{{ m.thinking }}"
    "<|reserved_special_token_6|>{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<|reserved_special_token_5|>Hm.<|reserved_special_token_6|>Six.", ("Hm.", "Six.")),
        ("<|reserved_special_token_5|>Hm.", ("Hm.", "")),
        ("Six.<|reserved_special_token_7|>", ("", "Six.")),
    ],
)
def test_a_thought_between_control_tokens_is_told_apart_and_counted(tiny_llama, written, expected):
    """Their text is not in what vLLM hands out, unless it is asked to leave them."""
    tokenizer = load_tokenizer(str(tiny_llama))
    engine = engine_of_nothing(tokenizer)
    engine.chat_template, engine._thoughts = CHANNELS, Thoughts(tokenizer, CHANNELS)
    ids = tokenizer.encode(written, add_special_tokens=False)

    async def outputs(_, request, index, kind):
        flags = {"skip_special_tokens": True, **request.sampling.extra}
        flags.pop("min_p"), flags.pop("spaces_between_special_tokens", None)
        for some in [ids] if kind == "FINAL_ONLY" else [[token] for token in ids]:
            text = tokenizer.decode(some, **flags)
            sample = SimpleNamespace(
                text=text, finish_reason="length", stop_reason=None, token_ids=some
            )
            yield SimpleNamespace(
                outputs=[sample], num_cached_tokens=0, finished=some[-1:] == ids[-1:]
            )

    engine._outputs = outputs
    conversation = [{"role": "user", "content": "How many?"}]
    request = Request(conversation, 2, replace(SHORT, extra={"min_p": 0.1}), 0)
    reply = asyncio.run(engine.sample(request))
    assert [(c.thought, c.text) for c in reply.completions] == [expected] * 2
    assert reply.completions[0].tokens == len(ids)
    thought = len(tokenizer.encode(expected[0], add_special_tokens=False))
    assert reply.usage.thought == 2 * thought
    pieces = []
    assert asyncio.run(engine.stream(request, pieces.append)) == reply
    for part, thought in zip(expected, (True, False), strict=True):
        own = [piece for piece in pieces if piece.index == 0 and piece.thought == thought]
        assert "".join(piece.text for piece in own) == part
    asyncio.run(engine.close())


def test_what_is_completed_by_a_base_model_holds_no_thought(tiny_llama):
    engine = engine_of_nothing(load_tokenizer(str(tiny_llama)))
    text = "<think>Hm.</think>Six."

    async def one(_, request, index):
        sample = SimpleNamespace(
            text=text, finish_reason="stop", stop_reason=None, token_ids=[1, 2]
        )
        return SimpleNamespace(outputs=[sample], num_cached_tokens=0)

    engine._one = one
    [completion] = asyncio.run(engine.sample(Request("# Query", 1, SHORT, 0))).completions
    assert (completion.text, completion.thought) == (text, "")
    asyncio.run(engine.close())

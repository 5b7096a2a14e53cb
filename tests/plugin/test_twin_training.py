"""Models trained and exported with twins ask by the trained tokens, in transformers and in vLLM.

Run: pytest tests/plugin/test_twin_training.py
"""

import json
import shutil
import types
import urllib.request

import pytest
from llamafactory_tools import tokenize, write_dataset
from test_training import quick_cli, settings
from test_twin_tokens import ROWS, before_target
from vllm_tools import vllm_server_of

from aft_factory.engines.vllm_engine import VllmEngine
from aft_factory.engines.vllm_loading import engine_tokenizer, own_template
from aft_factory.prompts.prelude import made_by
from aft_factory.records.record import record_from_row

pytestmark = pytest.mark.slow

TOKENS = {
    "aft_qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "aft_gemma2": ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"],
}
# What a training says that its export does not say again.
TRAINED = {"aft_qwen3": {"enable_thinking": False}, "aft_gemma2": {"default_system": "Be kind."}}


def with_tokens(model, target, tokens):
    """A tiny model that knows more control tokens; the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    network = AutoModelForCausalLM.from_pretrained(model)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module", params=TOKENS)
def exported(request, tmp_path_factory, tiny_llama, ready_llamafactory):
    """(Template, folder, model before training, exported model)."""
    twin = request.param
    folder = tmp_path_factory.mktemp(twin)
    model = with_tokens(tiny_llama, folder / "model", TOKENS[twin])
    write_dataset(folder, "rows", ROWS)
    more = {"template": twin, "max_steps": 2, **TRAINED[twin]}
    quick_cli(ready_llamafactory, folder, "train", settings(folder, model, "rows", **more))
    merged = folder / "merged"
    export = {"model_name_or_path": str(model), "adapter_name_or_path": str(folder / "adapter")}
    export |= {"template": twin, "finetuning_type": "lora", "export_dir": str(merged)}
    said = quick_cli(ready_llamafactory, folder, "export", export)
    assert "as the training has saved it" in said
    return twin, folder, model, merged


def test_the_exported_model_asks_by_the_trained_tokens_in_transformers_and_in_vllm(
    exported, ready_vllm, monkeypatch
):
    from llamafactory.data.template import TEMPLATES
    from transformers import AutoTokenizer

    twin, folder, model, merged = exported
    for name in ("enable_thinking", "default_system"):
        monkeypatch.setattr(TEMPLATES[twin], name, getattr(TEMPLATES[twin], name))  # put back
    _, trained = tokenize(folder, "rows", model, template=twin, **TRAINED[twin])
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert made_by(tokenizer.chat_template) == twin
    asked = [record_from_row(row) for row in ROWS]
    wanted = [before_target(row) for row in trained]
    assert len(wanted) == len(asked)
    for record, ids in zip(asked, wanted, strict=True):
        rendered = tokenizer.apply_chat_template(
            record.messages,
            proposals=record.proposals,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == ids

    with vllm_server_of(ready_vllm, merged, folder, "--max-model-len", "4096") as url:

        def ask(path, **body):
            data = json.dumps({"model": "tiny", **body}).encode()
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as reply:
                return json.load(reply)

        for record, ids in zip(asked, wanted, strict=True):
            given = {"messages": record.messages}
            given["chat_template_kwargs"] = {"proposals": record.proposals}
            assert ask("/tokenize", **given)["tokens"] == ids
        reply = ask("/v1/chat/completions", max_tokens=2, **given)
        assert reply["usage"]["prompt_tokens"] == len(ids)

        engine = in_process(merged)
        for record, ids in zip(asked, wanted, strict=True):
            own = {"proposals": record.proposals}
            for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                settings = {"chat_template_kwargs": own | switch}
                tokens = ask("/tokenize", messages=record.messages, **settings)["tokens"]
                assert engine._encode(record.messages, settings) == tokens
                same = not switch or twin == "aft_gemma2" or not switch["enable_thinking"]
                assert (tokens == ids) == same  # as trained, without thinking


def in_process(folder):
    """The engine in process, around no model: what it hands to vLLM are tokens."""
    config = types.SimpleNamespace(
        model_config=types.SimpleNamespace(max_model_len=4096),
        cache_config=types.SimpleNamespace(enable_prefix_caching=True),
        scheduler_config=types.SimpleNamespace(max_num_seqs=1),
    )
    tokenizer = engine_tokenizer(str(folder), {})
    chat = own_template("auto", tokenizer)
    llm = types.SimpleNamespace(vllm_config=config)
    return VllmEngine(llm, model="tiny", tokenizer=tokenizer, chat_template=chat)


def test_a_processor_that_is_saved_last_carries_the_chat_template_too(tmp_path, tiny_llama):
    """As of models that take images: LLaMA-Factory saves their processor after the tokenizer."""
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer
    from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    folder = with_tokens(tiny_llama, tmp_path / "model", ["<start_of_turn>", "<image>"])
    own = "{{ 'Mine.' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    LlavaProcessor(
        CLIPImageProcessor(), AutoTokenizer.from_pretrained(folder), chat_template=own
    ).save_pretrained(folder)
    arguments = {"model_name_or_path": str(folder), "template": "aft_gemma3"}
    model_args, data_args, *_ = get_infer_args(arguments)
    loaded = load_tokenizer(model_args)
    assert loaded["processor"].chat_template == own
    get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    shutil.rmtree(folder)
    for part in (loaded["tokenizer"], loaded["processor"]):
        part.save_pretrained(folder)
    (folder / "config.json").write_text((tiny_llama / "config.json").read_text())
    saved = [kind.from_pretrained(folder).chat_template for kind in (AutoTokenizer, AutoProcessor)]
    assert [made_by(chat) for chat in saved] == ["aft_gemma3"] * 2
    assert "<start_of_turn>user" in saved[1]

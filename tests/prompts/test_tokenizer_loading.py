"""Tokenizers as users have them: revisions, code of their own, several chat templates.

Run: pytest tests/prompts/test_tokenizer_loading.py
"""

import json
import shutil

import pytest
from asking_tools import write_lines
from flaky_server import serving
from shared_data import CASES

from aft_factory.convert.__main__ import main as convert
from aft_factory.engines.reward import PairEncoder
from aft_factory.engines.vllm_loading import engine_tokenizer, own_template
from aft_factory.errors import UsageError
from aft_factory.prompts.tokenizer import load_tokenizer, own_chat_template, resolve_chat_template
from aft_factory.run.__main__ import main as run
from aft_factory.stats.__main__ import main as stats

ROW = {"query": "What is 1+1?", "proposals": ["1", "2"], "aggregation": "2"}
CODE = """
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    brought = True
"""
SEVERAL = {"tool_use": "TOOLS{{ messages[0].content }}", "rag": "RAG{{ messages[0].content }}"}


@pytest.fixture
def source(tmp_path):
    return str(write_lines(tmp_path / "in.jsonl", [ROW]))


@pytest.fixture
def made(tmp_path):
    """Make the folder of a tokenizer with these chat templates and settings."""

    def make(name, templates, *, beside=False, **settings):
        folder = tmp_path / name
        shutil.copytree(CASES / "tokenizer_named_templates", folder)
        config = json.loads((folder / "tokenizer_config.json").read_text()) | settings
        del config["chat_template"]
        if isinstance(templates, str):
            config["chat_template"] = templates
        elif not beside:
            config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
        else:
            (folder / "additional_chat_templates").mkdir()
            for kind, text in templates.items():
                place = f"additional_chat_templates/{kind}.jinja"
                (folder / ("chat_template.jinja" if kind == "default" else place)).write_text(text)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def with_code(made):
    """A tokenizer whose class is its own."""
    own = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
    folder = made("code", "CODE", **own)
    (folder / "own.py").write_text(CODE)
    return folder


@pytest.fixture
def hub(tmp_path, made):
    """A cache of the hub with `org/tok` in it: no chat template, and one in the revision v1."""
    repository = tmp_path / "cache" / "models--org--tok"
    for revision, commit, templates in (("main", "a" * 40, {}), ("v1", "b" * 40, "V1")):
        for part in ("snapshots", "refs"):
            (repository / part).mkdir(parents=True, exist_ok=True)
        folder = made(f"made-{revision}", templates).rename(repository / "snapshots" / commit)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (repository / "refs" / revision).write_text(commit)
    return repository.parent


# Engine arguments


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"revision": "v1"}, "V1"),
        ({"tokenizer_revision": "v1"}, "V1"),
        ({"tokenizer_revision": "v1", "revision": "main"}, "V1"),
        ({"tokenizer_mode": "slow", "revision": "v1"}, "V1"),
        ({"tokenizer_mode": "hf", "revision": "v1"}, "V1"),
    ],
)
def test_a_models_revision_is_its_tokenizers_as_in_vllm(hub, given, expected):
    tokenizer = engine_tokenizer("org/tok", {"download_dir": str(hub), **given})
    assert own_chat_template(tokenizer) == expected


def test_code_that_a_tokenizer_brings_is_run_if_the_engine_arguments_say_so(with_code):
    tokenizer = engine_tokenizer(str(with_code), {"trust_remote_code": True})
    assert tokenizer.brought
    for flag in ("--engine-args", "--reward-engine-args"):
        with pytest.raises(UsageError, match=rf"\(here: {flag} trust_remote_code=true\)"):
            engine_tokenizer(str(with_code), {"tokenizer_mode": "auto"}, flag)


def test_a_slow_tokenizer_is_asked_for(monkeypatch):
    from transformers import AutoTokenizer

    asked = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **more: asked.append(more))
    for mode in ("slow", "auto"):
        engine_tokenizer("org/tok", {"tokenizer_mode": mode})
    assert asked == [
        {"trust_remote_code": False, "use_fast": False},
        {"trust_remote_code": False},
    ]


# --tokenizer


def test_a_named_tokenizer_has_a_revision_in_every_command(
    hub, source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    given = ["--tokenizer", "org/tok", "--chat-template", "own"]
    with serving(max_model_len=8192) as server:
        served = ["--base-url", server.url, "--layers", "1", "--width", "1", "--quiet"]
        for command in (
            lambda *more: convert(["proposals", source, "--output", f"{tmp_path}/c.jsonl", *more]),
            lambda *more: stats([source, *more]),
            lambda *more: run([source, "--output", f"{tmp_path}/r.jsonl", *served, *more]),
        ):
            assert command(*given) == 2
            assert "this tokenizer has no chat template" in capsys.readouterr().err
            assert command(*given, "--tokenizer-revision", "v1") == 0


def test_a_named_tokenizer_may_bring_code_if_it_is_said(with_code, source, tmp_path, capsys):
    served = ["--layers", "1", "--width", "1", "--quiet", "--overwrite"]
    with serving(max_model_len=8192) as server:
        served += ["--base-url", server.url]
        for command in (
            lambda *more: convert(["proposals", source, "--output", f"{tmp_path}/c.jsonl", *more]),
            lambda *more: stats([source, *more]),
            lambda *more: run([source, "--output", f"{tmp_path}/r.jsonl", *served, *more]),
        ):
            given = ("--tokenizer", str(with_code))
            assert command(*given) == 2
            assert "(here: --trust-remote-code)" in capsys.readouterr().err
            assert command(*given, "--trust-remote-code") == 0
            assert command("--trust-remote-code") == 2
            assert (
                "trust_remote_code: for the tokenizer that --tokenizer" in capsys.readouterr().err
            )


# Several chat templates


@pytest.mark.parametrize("beside", [False, True])
def test_of_several_chat_templates_the_default_is_the_one_or_the_named_one(made, beside):
    tokenizer = load_tokenizer(str(made("t", SEVERAL | {"default": "PLAIN"}, beside=beside)))
    for name, expected in {
        "auto": "PLAIN",
        "own": "PLAIN",
        "default": "PLAIN",
        "rag": SEVERAL["rag"],
        "tool_use": SEVERAL["tool_use"],
    }.items():
        assert resolve_chat_template(name, tokenizer) == expected
        assert own_template(name, tokenizer) == expected
        assert PairEncoder(tokenizer, name, None)._chat_template == expected
    assert resolve_chat_template("llama3", tokenizer) != "PLAIN"
    with pytest.raises(UsageError, match="no chat template 'ragg'"):
        resolve_chat_template("ragg", tokenizer)


@pytest.mark.parametrize("beside", [False, True])
def test_without_a_default_one_error_lists_the_names_in_every_command(
    made, beside, source, tmp_path, capsys
):
    folder = str(made("t", SEVERAL, beside=beside))
    tokenizer = load_tokenizer(folder)
    told = "several chat templates and none is its default; pass {} with the name of one: rag, tool"
    for name in ("auto", "own"):
        for find in (resolve_chat_template, own_template):
            with pytest.raises(UsageError, match=told.format("--chat-template")):
                find(name, tokenizer)
        with pytest.raises(UsageError, match=told.format("--reward-chat-template")):
            PairEncoder(tokenizer, name, None)
    with serving(max_model_len=8192) as server:
        served = ["--base-url", server.url, "--layers", "1", "--width", "1", "--quiet"]
        for command in (
            lambda *more: convert(["proposals", source, "--output", f"{tmp_path}/c.jsonl", *more]),
            lambda *more: stats([source, *more]),
            lambda *more: run([source, "--output", f"{tmp_path}/r.jsonl", *served, *more]),
        ):
            assert command("--tokenizer", folder) == 2
            assert told.format("--chat-template") in capsys.readouterr().err
            assert command("--tokenizer", folder, "--chat-template", "rag") == 0
        assert server.requests


def test_an_adapters_chat_template_is_the_models_where_it_has_none(made):
    adapter = load_tokenizer(str(made("adapter", {})))
    model = load_tokenizer(str(made("model", {"default": "MODEL"})))
    assert own_template("auto", adapter, lambda: model) == "MODEL"
    assert own_template("auto", adapter) is None

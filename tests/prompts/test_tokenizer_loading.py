"""Tokenizers as users have them: revisions, code of their own, several chat templates.

Run: pytest tests/prompts/test_tokenizer_loading.py
"""

import json
import shutil

import pytest
from asking_tools import write_lines
from flaky_server import serving
from hub_cache import cache_of
from reward_tools import http_server, logits
from shared_data import CASES

from aft_factory.convert.__main__ import main as convert
from aft_factory.engines.reward import PairEncoder
from aft_factory.engines.transformers_reward import TransformersReward
from aft_factory.engines.vllm_loading import engine_tokenizer, own_template
from aft_factory.errors import UsageError
from aft_factory.inference.accounting import ModelShape
from aft_factory.prompts.tokenizer import Pretrained, load_tokenizer, resolve_chat_template
from aft_factory.rank.__main__ import main as rank
from aft_factory.run.__main__ import main as run
from aft_factory.stats.__main__ import main as stats
from aft_factory.template.__main__ import main as template

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
    revisions = {"main": made("made-main", {}), "v1": made("made-v1", "V1")}
    for folder in revisions.values():
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return cache_of(tmp_path / "cache", "org/tok", revisions)


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
    assert (tokenizer.chat_template or None) == expected


def test_code_that_a_tokenizer_brings_is_run_if_the_engine_arguments_say_so(with_code):
    tokenizer = engine_tokenizer(str(with_code), {"trust_remote_code": True})
    assert tokenizer.brought
    for flag in ("--engine-args", "--reward-engine-args"):
        with pytest.raises(UsageError, match=rf"\(here: {flag} trust_remote_code=true\)"):
            engine_tokenizer(str(with_code), {"tokenizer_mode": "auto"}, flag)


def test_a_slow_tokenizer_is_asked_for(monkeypatch, tmp_path):
    from transformers import AutoTokenizer

    asked = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **more: asked.append(more))
    for mode in ("slow", "auto"):
        engine_tokenizer(str(tmp_path), {"tokenizer_mode": mode})
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


def test_a_folder_has_no_revisions(made, source, tmp_path, capsys):
    folder = str(made("t", "T"))
    served = ["--base-url", "http://127.0.0.1:1/v1", "--output", f"{tmp_path}/o.jsonl"]
    scored = ["--reward-revision", "v1", "--strategy", "best_of_n"]
    for command, flag in (
        (lambda: stats([source, "--tokenizer", folder, "--tokenizer-revision", "v1"]), "tokenizer"),
        (lambda: run([source, *served, *scored, "--reward-model", folder]), "reward"),
        (lambda: template([folder, "--tokenizer-revision", "v1"]), "tokenizer"),
    ):
        assert command() == 2
        said = f"{flag}_revision: {folder} is a folder, which has no revisions"
        assert said in capsys.readouterr().err


def test_the_tokenizer_of_a_chat_template_to_make_has_a_revision_and_code(
    hub, with_code, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    assert template(["org/tok"]) == 2
    assert "org/tok has no chat template" in capsys.readouterr().err
    assert template(["org/tok", "--tokenizer-revision", "v1"]) == 2
    assert "V1" not in capsys.readouterr().out  # read, but no template that shows a query
    assert template([str(with_code)]) == 2
    assert "(here: --trust-remote-code)" in capsys.readouterr().err
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert template([str(mine), "--tokenizer", str(with_code), "--trust-remote-code"]) == 0
    assert template([str(mine), "--trust-remote-code"]) == 2
    assert "none is loaded here; name it by --tokenizer" in capsys.readouterr().err


# Other models than the one that is asked


def test_a_proposers_tokenizer_has_a_revision_and_code_of_its_own(
    hub, with_code, source, tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    moa = ["--strategy", "moa", "--layers", "1", "--proposers", "flaky", "--quiet", "--overwrite"]
    with serving(max_model_len=8192) as server:

        def ask(tokenizer, *more):
            output = ["--output", f"{tmp_path}/r.jsonl", "--base-url", server.url]
            given = ["--proposer-tokenizers", f"flaky={tokenizer}"]
            caplog.clear()
            code = run([source, *output, *moa, *given, *more])
            return code, capsys.readouterr().err + caplog.text

        assert "org/tok has no chat template" in ask("org/tok")[1]
        code, told = ask("{name: org/tok, revision: v1}")
        assert (code, "no chat template" in told) == (0, False)
        code, told = ask(with_code)
        assert code == 2
        hint = f"(here: --proposer-tokenizers 'flaky={{name: {with_code}, trust_remote_code: true}}"
        assert hint in told
        # What was said of the run's own model is not said of a proposer's.
        own = ["--tokenizer", str(with_code), "--trust-remote-code"]
        assert ask(f"{{name: {with_code}}}", *own)[0] == 2
        assert ask(with_code, *own)[0] == 0
        assert ask(f"{{name: {with_code}, trust_remote_code: true}}")[0] == 0
        for wrong in ("{name: org/tok, revison: v1}", "{revision: v1}", "{name: a/b, revision: 7}"):
            code, told = ask(wrong)
            assert (code, "expected a name, or {name: NAME, revision" in told) == (2, True)


def test_a_chat_template_by_its_name_is_the_runs_own(made, source, tmp_path, capsys):
    own, other = made("own", SEVERAL), made("other", "OTHER{{ messages[0].content }}")
    moa = ["--strategy", "moa", "--layers", "1", "--proposers", "flaky", "--quiet"]
    with serving(max_model_len=8192) as server:
        given = ["--tokenizer", str(own), "--chat-template", "rag"]
        given += ["--proposer-tokenizers", f"flaky={other}", "--base-url", server.url]
        assert run([source, "--output", f"{tmp_path}/r.jsonl", *moa, *given]) == 0


@pytest.fixture
def reward_hub(tmp_path, tiny_reward_model, tiny_llama, monkeypatch):
    """A hub with `org/rm`: a reward model in the revision v1, and another model."""
    cache = cache_of(tmp_path / "c", "org/rm", {"main": tiny_llama, "v1": tiny_reward_model})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def test_a_reward_model_has_a_revision(reward_hub, tiny_reward_model):
    with pytest.raises(UsageError, match="no weights for score"):
        TransformersReward.load("org/rm")
    loaded = TransformersReward.load(Pretrained("org/rm", {"revision": "v1"}))
    assert loaded.identity.endswith("+revision=v1")  # another's scores are none of it
    assert ModelShape.load(
        Pretrained("org/rm", {"revision": "v1"}), classifier=True
    ) == ModelShape.load(str(tiny_reward_model), classifier=True)


def test_the_tokenizer_of_a_reward_server_has_a_revision_and_code(
    hub, with_code, source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with http_server(lambda body: (200, {}, logits(1))) as url:

        def ask(*more):
            output = ["--output", f"{tmp_path}/o.jsonl", "--quiet", "--overwrite"]
            code = rank([source, *output, "--reward-url", url, *more])
            return code, capsys.readouterr().err

        assert "pass --reward-chat-template" in ask("--reward-tokenizer", "org/tok")[1]
        assert ask("--reward-tokenizer", "org/tok", "--reward-revision", "v1")[0] == 0
        code, told = ask("--reward-tokenizer", str(with_code))
        assert (code, "(here: --reward-trust-remote-code)" in told) == (2, True)
        assert ask("--reward-tokenizer", str(with_code), "--reward-trust-remote-code")[0] == 0


def test_a_reward_model_on_vllm_has_them_as_engine_arguments(source, tmp_path, capsys):
    given = ["--reward-revision", "v1", "--reward-trust-remote-code", "--reward-engine", "vllm"]
    assert rank([source, "--output", f"{tmp_path}/o.jsonl", *given]) == 2
    told = capsys.readouterr().err
    assert "reward_revision: for vLLM: --reward-engine-args revision=REVISION" in told
    assert "reward_trust_remote_code: for vLLM: --reward-engine-args trust_remote_code=true" in told


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

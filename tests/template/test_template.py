"""`aft template`: a chat template that takes proposals, in files and folders of every layout.

Run: pytest tests/template/test_template.py
"""

import json
import shutil

import pytest
import yaml
from conftest import ROOT

from aft_factory.prompts.prelude import chat_template, made_by, without_prelude
from aft_factory.prompts.probing import ChatTemplate
from aft_factory.prompts.rendering import TEMPLATES
from aft_factory.template.__main__ import main

BODY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + BODY
QUERY = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def model(tmp_path, tiny_llama):
    """A model's folder without a chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(tiny_llama / name, folder)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def run(capsys, *arguments):
    """Exit code, stdout and stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "templates/chat").glob("*.jinja")])
def test_the_shipped_chat_templates_are_made_by_it(name, capsys):
    code, out, err = run(capsys, name)
    assert code == 0
    assert out == (TEMPLATES / "chat" / f"{name}.jinja").read_text() == chat_template(name)
    assert err.startswith(f"{name}: made from LLaMA-Factory's '{name}': no model is named\n")


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        (BODY, "the aggregator prompt is the system message"),
        (
            NO_SYSTEM,
            "the aggregator prompt opens the user's first turn: there is no system message",
        ),
    ],
)
def test_of_a_file_it_prints_the_same_with_a_prelude_and_tells_the_form(
    chat, told, tmp_path, capsys
):
    path = tmp_path / "own.jinja"
    path.write_text("\ufeff" + chat)
    code, out, err = run(capsys, path, "--template", "moa")
    assert code == 0
    assert without_prelude(out) == chat
    assert err.splitlines()[0] == f"{path}: {told}"
    assert "open-source models" in ChatTemplate(out).render(QUERY, proposals=["a"])
    path.write_text(out)
    assert run(capsys, path, "--template", "moa")[1] == out
    assert run(capsys, path, "--check")[:2] == (
        0,
        f"{path}: takes proposals; each text is in the prompt once\n",
    )


def test_a_system_message_of_the_templates_own_gives_way_and_that_is_told(tmp_path, capsys):
    path = tmp_path / "own.jinja"
    own = "{% if messages[0].role != 'system' %}Think first.\n{% endif %}"
    path.write_text(own + BODY)
    note = "the aggregator prompt stands in the place of its own system message: 'Think first.'"
    code, out, err = run(capsys, path)
    assert (code, err.splitlines()[-1]) == (0, f"note: {note}")
    assert "Think first." not in ChatTemplate(out).render(QUERY, proposals=["a"])
    path.write_text(
        own.replace("!=", "==").replace("Think first.", "{{ raise_exception('no') }}") + own + BODY
    )
    assert "note" not in run(capsys, path)[2]  # beside it, in the user's turn
    path.write_text(own.replace("% if ", "% if thinking and ") + BODY)
    assert "note" not in run(capsys, path)[2]
    assert note in run(capsys, path, "--thinking", "on")[2]


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_whether_to_think_is_said_by_the_switch_that_the_template_has(switch, tmp_path, capsys):
    """`enable_thinking` is nothing to one that reads `thinking`, and the other way round."""
    path = tmp_path / "own.jinja"
    path.write_text(BODY + "{{ '<think>' if " + switch + " else '</think>' }}")
    for given, before, says in (("on", "<think>", False), ("off", "</think>", True)):
        code, out, _ = run(capsys, path, "--thinking", given)
        assert code == 0
        assert ChatTemplate(out).render(QUERY).endswith(f"assistant\n{before}")
        told = ChatTemplate(out).render(QUERY, **{switch: says})
        assert told.endswith("<think>" if says else "</think>")
        (tmp_path / "made.jinja").write_text(out)
        assert run(capsys, tmp_path / "made.jinja", "--check")[0] == 0


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("own.jinja", "neither enable_thinking nor thinking changes a prompt of it"),
        ("qwen", "this template of LLaMA-Factory has no thoughts"),
    ],
)
def test_one_that_cannot_be_told_whether_to_think_is_refused(source, why, tmp_path, capsys):
    path = tmp_path / "own.jinja"
    path.write_text(BODY)
    code, _, err = run(capsys, path if source == path.name else source, "--thinking", "off")
    assert code == 2
    assert f"cannot be told whether to think: {why}" in err


def test_what_the_template_itself_cannot_render_is_told(tmp_path, capsys):
    path = tmp_path / "own.jinja"
    path.write_text("{% if messages | length > 1 %}{{ messages.none.none }}{% endif %}" + BODY)
    note = "note: with proposals or without, it cannot render conversations of 3 turns (Undefined"
    code, out, err = run(capsys, path)
    assert (code, err.splitlines()[-1].startswith(note)) == (0, True)
    path.write_text(out)
    code, out, _ = run(capsys, path, "--check")
    assert (code, out.splitlines()[-1].startswith(note)) == (0, True)


def test_a_template_that_fails_the_check_is_told_with_what_it_writes(tmp_path, capsys):
    path = tmp_path / "own.jinja"
    path.write_text(BODY)
    assert run(capsys, path, "--check") == (1, f"{path}: it has no variable `proposals`\n", "")
    run(capsys, path)
    text = chat_template("llama3")
    path.write_text(text.replace("'system', 'content': aft.given", "'system', 'content': ''"))
    code, out, _ = run(capsys, path, "--check")
    assert code == 1
    assert "for no system message, 1 turns, proposals it writes" in out
    path.write_text(text.replace("{%- if aft.drafts -%}", "{%- if true -%}"))
    code, out, _ = run(capsys, path, "--check")
    assert code == 1
    assert "for no system message, 1 turns it writes" in out


def layouts(folder):
    """Every file that transformers or vLLM may take a chat template from, each with one."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": BODY}, {"name": "tool_use", "template": "T" + BODY}]
    yield "nothing", {}
    yield "file", {"chat_template.jinja": BODY}
    yield "tokenizer", {"tokenizer_config.json": json.dumps(config | {"chat_template": BODY})}
    yield "named", {"tokenizer_config.json": json.dumps(config | {"chat_template": named})}
    yield "processor", {"chat_template.json": json.dumps({"chat_template": BODY})}
    yield (
        "all",
        {
            "chat_template.jinja": BODY,
            "additional_chat_templates/rag.jinja": NO_SYSTEM,
            "tokenizer_config.json": json.dumps(config | {"chat_template": "old"}),
            "processor_config.json": json.dumps({"chat_template": BODY, "processor_class": "P"}),
        },
    )


@pytest.mark.parametrize("number", range(6))
def test_written_into_a_folder_every_carrier_takes_proposals_and_all_can_be_undone(
    number, model, capsys
):
    name, files = list(layouts(model))[number]
    for path, text in files.items():
        (model / path).parent.mkdir(exist_ok=True)
        (model / path).write_text(text)
    before = contents(model)
    source = "chatml" if name == "nothing" else model
    code, out, err = run(capsys, source, "--write", model)
    assert (code, out) == (0, "")
    assert err.count("written: ") == max(1, len(files))
    for path in files:
        assert (model / f"{path}.before-aft").read_bytes() == before[path]

    after = contents(model)
    chat = tokenizer_of(model).chat_template
    if name == "processor":
        chat = json.loads((model / "chat_template.json").read_text())["chat_template"]
    texts = chat if isinstance(chat, dict) else {"default": chat}
    assert len(texts) == {"named": 2, "all": 2}.get(name, 1)
    for text in texts.values():
        assert "1. five" in ChatTemplate(text).render(QUERY, proposals=["five"])
    # The same once more changes nothing; another aggregator prompt only the text.
    assert "as it was, it has this already" in run(capsys, source, "--write", model)[2]
    assert contents(model) == after
    run(capsys, source, "--write", model, "--template", "moa")
    assert contents(model).keys() == after.keys()
    assert run(capsys, model, "--check")[0] == 0

    assert run(capsys, model, "--undo")[0] == 0
    assert contents(model) == before
    code, _, err = run(capsys, model, "--undo")
    assert code == 2
    assert "nothing to undo" in err


def test_in_a_folder_the_tokenizers_own_control_tokens_are_broken(model, capsys):
    (model / "chat_template.jinja").write_text(BODY)
    run(capsys, model, "--write", model)
    text = "<|eot_id|> <|im_start|> </s>"
    rendered = tokenizer_of(model).apply_chat_template(
        [{"role": "user", "content": text}], proposals=["a"], tokenize=False
    )
    assert "<\u200b|eot_id|> <\u200b|im_start|> </s>" in rendered


def test_a_folder_gets_what_training_with_a_template_of_llamafactory_writes(model, capsys):
    (model / "chat_template.jinja").write_text(BODY)
    assert (
        "the model's own, which writes what 'chatml' trains"
        in run(capsys, "chatml", "--write", model)[2]
    )
    assert without_prelude((model / "chat_template.jinja").read_text()) == BODY
    _, _, err = run(capsys, "qwen3", "--write", model, "--thinking", "off")
    assert "made from LLaMA-Factory's 'qwen3': the model's own writes something else: for" in err
    chat = tokenizer_of(model).chat_template
    assert made_by(chat) == "aft template qwen3"
    assert ChatTemplate(chat).render(QUERY).endswith("assistant\n<think>\n\n</think>\n\n")
    run(capsys, model, "--undo")
    assert (model / "chat_template.jinja").read_text() == BODY


def test_new_files_in_a_folder_are_what_undo_puts_back(model, capsys):
    path = model / "chat_template.jinja"
    path.write_text(BODY)
    run(capsys, model, "--write", model)
    path.write_text("v2" + BODY)  # a new version of the model
    run(capsys, model, "--write", model)
    run(capsys, model, "--undo")
    assert path.read_text() == "v2" + BODY


def test_a_file_of_the_hubs_cache_is_not_changed(model, tmp_path, capsys):
    blob = tmp_path / "blob"
    blob.write_text(BODY)
    (model / "chat_template.jinja").symlink_to(blob)
    run(capsys, model, "--write", model)
    assert blob.read_text() == BODY
    assert without_prelude((model / "chat_template.jinja").read_text()) == BODY


def test_for_llamafactorys_v1_engine_it_prints_the_setting(tmp_path, capsys):
    path = tmp_path / "own.jinja"
    path.write_text(BODY)
    _, plain, _ = run(capsys, path)
    _, out, _ = run(capsys, path, "--yaml")
    assert yaml.safe_load(out) == {"custom_chat_template": plain}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["qwem"],
            "'qwem' is no folder, no file and no template of LLaMA-Factory; did you mean 'qwen'?",
        ),
        (
            ["yuan"],
            "no chat template writes what 'yuan' trains: it writes the token '<sep>' by its number",
        ),
        (["none.jinja"], "none.jinja: no such file"),
        (["{model}"], "has no chat template; name one of LLaMA-Factory's, or a file, as SOURCE"),
        (["{model}", "--check"], "has no chat template to check"),
        (
            ["{model}", "--undo", "--check"],
            "--write, --undo, --check, --yaml, --table: give one of them",
        ),
        (["chatml", "--write", "{model}/none"], "none: no such folder"),
        (["chatml", "--undo"], "--undo: chatml is no folder"),
        (
            ["chatml", "--template", "papper"],
            "no aggregator template 'papper'; did you mean 'paper'?",
        ),
        (["chatml", "--thinking", "perhaps"], "thinking"),
    ],
)
def test_what_cannot_be_is_one_clear_error(arguments, told, model, capsys):
    try:
        code = main([argument.format(model=model) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert told in err


def test_a_chat_template_that_loses_the_drafts_is_refused(tmp_path, capsys):
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content[:40] }}|{{ messages[-1].content[:40] }}")
    code, out, err = run(capsys, path)
    assert (code, out) == (2, "")
    assert "proposals do not get through this chat template: it does not show a plain query" in err
    path.write_text(
        "{{ messages[-1].content }}{{ messages[:-1] | map(attribute='content') | join | truncate(9) }}"
    )
    code, out, err = run(capsys, path)
    assert (code, out) == (2, "")
    assert "in the form 'system': for no system message, 1 turns, proposals it writes" in err


def test_the_table_in_the_documentation_is_true(capsys):
    from importlib.metadata import version

    text = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    if f"LLaMA-Factory {version('llamafactory')} (`aft template --table`)" not in text:
        pytest.skip("another version of LLaMA-Factory is installed")
    code, out, _ = run(capsys, "--table")
    assert code == 0
    assert text.endswith(f"\n\n{out}")

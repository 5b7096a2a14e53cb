"""Text files: a byte order mark is no character of any of them, and other encodings are refused."""

import ast
import codecs
import json

import pytest
from conftest import ROOT
from shared_data import CASES

from aft_factory.convert.register import check_registration, dataset_entry
from aft_factory.engines.vllm_loading import adapter_rank, own_template
from aft_factory.errors import UsageError
from aft_factory.pipeline import training
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.push.__main__ import read_settings
from aft_factory.records.files import read_text
from aft_factory.sample.urial import render
from aft_factory.stage.yaml_file import read_yaml

MARK = codecs.BOM_UTF8
QUERY = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def write(tmp_path):
    """Writes a file with a byte order mark; its path."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MARK + (text if isinstance(text, bytes) else text.encode()))
        return path

    return write


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (MARK + b"a\n", "a\n"),
        (MARK + MARK + b"a", "a"),
        (MARK, ""),
        (b"", ""),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        ("é 中".encode(), "é 中"),
        ("a\ufeffb".encode(), "a\ufeffb"),  # within a text it is a character of it
    ],
    ids=repr,
)
def test_a_text_is_read_without_byte_order_mark_and_carriage_returns(tmp_path, data, text):
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x") == text


@pytest.mark.parametrize(
    ("encoding", "got"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "zero bytes, as in UTF-16"),
        ("utf-16-be", "zero bytes, as in UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "zero bytes, as in UTF-16"),
        ("latin-1", "the byte 0xe9 in line 2, which is none of it"),
    ],
)
def test_another_encoding_is_one_error_that_names_the_file(tmp_path, encoding, got):
    path = tmp_path / "mine.jinja"
    path.write_bytes("{{ proposals }}\nné: e\n".encode(encoding))
    message = f"{path}: expected a text in UTF-8, got {got}; save it as UTF-8"
    for read in (load_template, lambda name: read_yaml(path), lambda name: read_text(path)):
        with pytest.raises(UsageError) as error:
            read(str(path))
        assert str(error.value) == message
    path.write_bytes(codecs.BOM_UTF16_BE + b"\0a")
    with pytest.raises(UsageError, match=r"got UTF-16;"):
        read_text(path)
    path.write_bytes(codecs.BOM_UTF32_BE + b"\0\0\0a")
    with pytest.raises(UsageError, match=r"got UTF-32;"):
        read_text(path)


def test_a_mark_before_a_template_enters_no_prompt(write):
    mine = write("mine.jinja", "Merge:\n{% for p in proposals %}\n{{ p }}{% endfor %}")
    assert load_template(str(mine)).render(["A", "B"]) == "Merge:\nAB"
    base = write("base.jinja", "# Query: {{ messages[-1].content }}")
    assert render(str(base), QUERY) == "# Query: How many?"


def test_a_mark_before_a_chat_template_does_not_stand_before_bos(tiny_llama, write, tmp_path):
    """In a file of the user's, and in the file of which transformers reads the tokenizer's own."""
    plain = chat_template("llama3")
    given = write("chat.jinja", plain)
    load_tokenizer(str(tiny_llama)).save_pretrained(tmp_path / "own")
    write("own/chat_template.jinja", plain)
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    assert tokenizer.chat_template.startswith("\ufeff")
    for template in (
        resolve_chat_template(str(given), tokenizer),
        resolve_chat_template("own", tokenizer),
        own_template("auto", tokenizer),
    ):
        assert template == plain
        text = tokenizer.apply_chat_template(QUERY, chat_template=template, tokenize=False)
        assert text.startswith(tokenizer.bos_token)


def test_a_mark_is_no_part_of_settings_data_sets_and_adapters(write, tmp_path):
    assert read_yaml(write("run.yaml", "width: 5\n")) == {"width": 5}
    assert read_settings(write("summary.json", '{"seed": 1}')) == {"seed": 1}
    entry = {"file_name": "mine.jsonl"}
    write("dataset_info.json", json.dumps({"mine": entry}))
    output = tmp_path / "x.jsonl"
    other = dataset_entry(tmp_path, "other", output, "aggregation", "paper")
    assert check_registration(other, output, overwrite=False) == {"mine": entry}
    settings = {"dataset_dir": str(tmp_path), "dataset": "mine"}
    assert training.datasets(settings) == {"mine": entry}
    assert adapter_rank(write("adapter/adapter_config.json", '{"r": 8}').parent) == 8


@pytest.mark.parametrize("name", ["mine_bom.jinja", "chat_bom.jinja"])
def test_templates_that_begin_with_a_mark_are_read_without_it(name):
    path = CASES / "templates" / name
    assert path.read_bytes().startswith(MARK)
    assert "\ufeff" not in read_text(path)


def reads(tree):
    """The calls that may read a file as text, other than by `read_text`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(node.func, "value", None)
        owner = getattr(owner, "attr", getattr(owner, "id", ""))
        modes = [
            argument.value
            for argument in (*node.args, *(word.value for word in node.keywords))
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        if (
            (isinstance(node.func, ast.Attribute) and name in ("read_text", "read_bytes"))
            or (
                name == "open" and owner not in ("os", "stage") and not any("b" in m for m in modes)
            )
            or (name == "fdopen" and not any("b" in m or m == "w" for m in modes))
            or (name == "TextIOWrapper")
        ):
            yield node


def test_there_is_one_way_to_read_a_text_file():
    """`files.read_text`; what is read as bytes is read by a stream of bytes."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "aft_factory").rglob("*.py"))
        for node in reads(ast.parse(path.read_text(encoding="utf-8")))
        if path.name != "files.py"
    ]
    assert found == []
    others = (
        "p.read_text()",
        "p.read_bytes()",
        "p.open()",
        "open(p)",
        "open(p, 'r', encoding='x')",
    )
    assert all(list(reads(ast.parse(other))) for other in others)
    assert not list(reads(ast.parse("read_text(p); p.open('rb'); os.open(p); open(p, mode='wb')")))

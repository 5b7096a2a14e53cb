"""The README's command lines, run in order as a user would, on small files and made-up answers. Run: pytest tests/test_readme.py"""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from aft_factory.cli import main
from aft_factory.serve.__main__ import COMMAND as SERVE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA = Path(__file__).parent / "data"


def command_lines(page):
    """Return the commands of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def as_aft(words):
    """Return the words behind `aft`, None for another program's command."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[:2] == ["python", "-m"] and words[2].startswith("aft_factory."):
        return [words[2].removeprefix("aft_factory."), *words[3:]]
    return words[1:] if words[0] == "aft" else None


def scripted(words, tokenizer):
    """Return a command that asks nobody, and reads what is here."""
    stand_ins = {"openbmb/UltraFeedback": "ultrafeedback.jsonl"}
    result, skip, scripted = [], False, False
    for word in words:
        if skip and not word.startswith("-"):
            continue
        skip = word in ("--model", "--base-url", "--adapter", "--engine-args")
        scripted |= skip or words[0] in ("sample", "rank", "aggregate")
        if not skip:
            result.append(stand_ins.get(word, word))
    if "--tokenizer" in result:
        result[result.index("--tokenizer") + 1] = str(tokenizer)
    if scripted and "--inspect" not in words:
        result.append("--scripted")
        if "--tokenizer" in result and words[0] != "convert":
            at = result.index("--tokenizer")
            del result[at : at + 2]
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("dataset_info.json", "examples", "templates"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    rows = [{"query": f"What is {i} + {i}?"} for i in range(3)]
    for name in ("queries.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = [{"instruction": "Say hi.", "dataset": "x", "output": "Hi.", "generator": "y"}]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(bench))
    completions = [{"model": m, "response": f"It is {m}.", "overall_score": 7.0} for m in "abcd"]
    row = {"source": "s", "instruction": "How many?", "completions": completions}
    (tmp_path / "ultrafeedback.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_readme_runs_after_the_one_before(folder, tiny_llama, capsys):
    ran = []
    for words in command_lines(ROOT / "README.md"):
        given = as_aft(words)
        if given is None:
            continue
        given = scripted(given, tiny_llama)
        if given[0] in ("pipeline", "eval"):  # see the tests of examples and of evaluate
            continue
        if given[0] == "serve":  # it would, until it is stopped
            SERVE.read(vars(SERVE.parser().parse_args(given[1:])))
            continue
        code = main(given)
        assert code == 0, (words, capsys.readouterr().err)
        ran.append(given[0])
    assert ran.count("convert") >= 2
    assert {"convert", "aggregate", "sample", "rank", "run"} <= set(ran)
    entry = json.loads(Path("dataset_info.json").read_text())["aft_off_policy"]
    assert (folder / entry["file_name"]).read_text().count("\n") == 1


def test_what_else_it_runs_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    entries = json.loads((ROOT / "dataset_info.json").read_text())
    for page in PAGES:
        for words in command_lines(page):
            if words[0] == "pip":
                named = re.findall(r"\[([a-z,]+)\]", " ".join(words))
                assert all(extra in extras for names in named for extra in names.split(",")), words
            elif words[0] == "make":
                assert words[1] in targets, words
            elif words[0] == "llamafactory-cli" and words[2].startswith("examples/"):
                settings = yaml.safe_load((ROOT / words[2]).read_text())
                settings |= dict(word.split("=", 1) for word in words[3:])
                if "dataset" in settings:
                    assert settings["dataset"] in entries, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_of_every_page_are_known(page, capsys):
    for words in command_lines(page):
        given = as_aft(words)
        if given is None or given[0].startswith("-"):
            continue
        with pytest.raises(SystemExit) as left:
            main([*given, "--help"])
        assert left.value.code == 0
        known = set(re.findall(r"(?<![\w-])--?[\w-]+", capsys.readouterr().out))
        asked = {word.partition("=")[0] for word in given if re.match(r"--?[a-zA-Z]", word)}
        assert asked <= known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http:", "https:")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            slugs = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
            assert not anchor or anchor in slugs, link


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150

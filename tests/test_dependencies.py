"""What may import what, and that nothing heavy is loaded before it is needed."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "aft_factory"
HEAVY = ("torch", "transformers", "vllm", "llamafactory", "datasets", "openai")
COMMANDS = ("convert", "sample", "rank", "aggregate", "run", "pipeline", "stats", "push")

# Lower layers first: a module imports from its own layer or one below.
LAYERS = (
    ("__init__", "errors", "fields", "exact_json", "files", "settings", "console"),
    (
        "leftovers",
        "messages",
        "markers",
        "records",
        "answers",
        "shortening",
        "limiter",
        "together",
    ),
    ("sampling", "tables", "parquet", "prompts", "tokenizer", "urial", "gates"),
    ("policy", "journal_file"),
    (
        "selection",
        "fitting",
        "journal",
        "accounting",
        "engines",
        "queries",
        "tasks",
        "counts",
        "public",
    ),
    ("asking", "strategies", "plugin", "outcome"),
    ("drafting", "inspection", "progress", "convert", "scoring", "stats_plot", "card"),
    ("runner", "stats", "hub"),
    ("stage", "command", "run_settings", "push"),
    ("decoding", "run", "sample", "rank", "aggregate"),
    ("pipeline", "cli"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path):
    """`aft_factory/convert/targets.py` -> `convert`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """The modules of ours that a file imports when it is loaded, and all others."""
    found = []

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                found.extend(names[:1] if node.module != "aft_factory" else names[1:])
            elif isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, (ast.Try, ast.With)):
                visit(node.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def test_every_module_has_its_layer():
    assert {part(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_its_layer_or_below(path):
    own = LEVEL[part(path)]
    for name in imports(path):
        if name.startswith("aft_factory."):
            other = name.split(".")[1]
            assert LEVEL.get(other, 0) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_loads_a_heavy_package_at_import(path):
    assert not [name for name in imports(path) if name.split(".")[0] in HEAVY]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_package_and_every_help_load_nothing_heavy(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('aft_factory.{command}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    *text, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    _, examples = "\n".join(text).split("examples:")
    assert not re.search(r"\S {3,}--", examples)  # two lines of a command, joined


def test_no_module_is_longer_than_300_lines():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 301}
    assert long == {}

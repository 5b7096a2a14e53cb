"""What may import what, and that nothing heavy is loaded before it is needed."""

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

PACKAGE = ROOT / "aft_factory"
HEAVY = (
    "torch",
    "transformers",
    "vllm",
    "llamafactory",
    "datasets",
    "openai",
    "lm_eval",
    "alpaca_eval",
    "matplotlib",
    "vendi_score",
    "sklearn",
    "ray",
)
SERVING = ("starlette", "uvicorn", "prometheus_client")
COMMANDS = (
    "convert",
    "sample",
    "rank",
    "aggregate",
    "run",
    "pipeline",
    "stats",
    "push",
    "serve",
    "template",
    "evaluate",
    "analyze",
    "merge",
    "report",
)

# Folders, each of which uses only those before it; of the commands, `pipeline` uses the others.
ORDER = (
    "records",
    "prompts",
    "plugin",
    "engines",
    "asking",
    "inference",
    "stage",
    "convert",
    "sample",
    "rank",
    "aggregate",
    "run",
    "stats",
    "merge",
    "push",
    "template",
    "serve",
    "pipeline",
    "evaluate",
    "analyze",
    "report",
)
TOP = {"__init__", "cli", "errors", "network"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path):
    """`aft_factory/convert/targets.py` -> `convert`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_for_types(node):
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path, *, later=False):
    """The modules that a file imports when it is loaded; also those it imports later, if asked."""
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
            elif later and not (isinstance(node, ast.If) and is_for_types(node)):
                visit(ast.iter_child_nodes(node))

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def test_the_package_is_its_folders_and_little_else():
    assert {part(path) for path in FILES} == {*ORDER, *TOP}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - set(ORDER) == {
        "presets",
        *(["__pycache__"] if (PACKAGE / "__pycache__").exists() else []),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_uses_only_those_above_it(path):
    own = part(path)
    above = (
        {"errors", "network", "__version__", *ORDER[: ORDER.index(own) + 1]}
        if own in ORDER
        else {"errors", "network", "__version__"}
    )
    for name in imports(path):
        if name.startswith("aft_factory"):
            assert name.split(".")[-1 if name == "aft_factory" else 1] in above, name


def test_no_modules_import_each_other_in_a_circle():
    name_of = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {name: set(imports(path, later=True)) & set(name_of) for name, path in name_of.items()}
    graphlib.TopologicalSorter(graph).prepare()  # or CycleError


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
        f"print([m for m in {HEAVY + SERVING} if m in sys.modules])"
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


def test_no_two_files_of_tests_have_one_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [
        name for name, count in names.items() if count > 1
    ] == []  # or pytest takes one for both

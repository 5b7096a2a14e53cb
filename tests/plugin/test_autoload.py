"""The autoload hook: it loads in time, costs nothing elsewhere, fails softly.

Run: pytest tests/plugin/test_autoload.py
"""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

VENV = [sys.executable, "-m", "venv", "--without-pip"]  # which takes seconds to install


def pip(binary, *words):
    """A command of our pip for another environment."""
    return [sys.executable, "-m", "pip", "--python", binary, *words]


def python(code, *, path=(), **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment,
        cwd=path[0] if path else None,
        check=True,
    )


@pytest.fixture
def fake_llamafactory(tmp_path):
    package = tmp_path / "llamafactory" / "data"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "parser.py").write_text("class DatasetAttr:\n    def join(self, attr): pass\n")
    return tmp_path


def test_nothing_of_ours_is_imported_at_start():
    done = python("import sys; print([name for name in sys.modules if 'aft' in name])")
    assert done.stdout.strip() == "[]"


def test_the_hook_runs_when_llamafactory_is_imported(fake_llamafactory):
    code = "import llamafactory.data.parser as p; print(p.DatasetAttr.join.__wrapped__.__module__)"
    assert python(code, path=[fake_llamafactory]).stdout.strip() == "llamafactory.data.parser"


def test_it_can_be_turned_off(fake_llamafactory):
    code = "import llamafactory.data.parser as p; print(hasattr(p.DatasetAttr.join, '__wrapped__'))"
    assert (
        python(code, path=[fake_llamafactory], AFT_FACTORY_AUTOLOAD="0").stdout.strip() == "False"
    )


def test_a_failing_hook_is_one_line_and_stops_nothing(fake_llamafactory):
    (fake_llamafactory / "llamafactory" / "data" / "parser.py").write_text("x = 1\n")
    done = python("import llamafactory.data.parser as p; print(p.x)", path=[fake_llamafactory])
    assert done.stdout.strip() == "1"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("aft-factory: cannot hook into llamafactory.data.parser")


def test_a_broken_installation_is_one_line_and_stops_nothing(fake_llamafactory):
    (fake_llamafactory / "aft_factory").mkdir()
    (fake_llamafactory / "aft_factory" / "__init__.py").write_text("raise RuntimeError('broken')")
    done = python("import llamafactory; print('on')", path=[fake_llamafactory])
    assert done.stdout.strip() == "on"
    assert done.stderr.strip() == "aft-factory: plugin not loaded: RuntimeError('broken')"


def test_install_twice_hooks_once(fake_llamafactory):
    code = (
        "from aft_factory.plugin.autoload import install; install(); install()\n"
        "import llamafactory.data.parser as p\n"
        "print(hasattr(p.DatasetAttr.join.__wrapped__, '__wrapped__'))"
    )
    assert python(code, path=[fake_llamafactory]).stdout.strip() == "False"


def test_no_other_program_loads_us_by_an_entry_point():
    assert "entry-points" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.slow
def test_an_installation_whose_folder_is_gone_breaks_no_other_program(tmp_path):
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "examples")
    shutil.copytree(ROOT, clone, ignore=ignored)
    subprocess.run([*VENV, tmp_path / "clean"], check=True)
    binary = tmp_path / "clean" / "bin" / "python"
    install = pip(binary, "install", "--quiet", "--no-deps", "--editable", clone)
    subprocess.run(install, check=True)
    others = tmp_path / "others"  # all that is installed here, but not we
    others.mkdir()
    for path in Path(pytest.__file__).parents[1].iterdir():
        if "aft_factory" not in path.name:
            (others / path.name).symlink_to(path)

    def run(code):
        environment = os.environ | {"PYTHONPATH": str(others)}
        command = [binary, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
        return done.returncode, done.stdout, done.stderr

    code = "import aft_factory; print(aft_factory.__file__)"
    assert run(code) == (0, f"{clone}/aft_factory/__init__.py\n", "")
    shutil.rmtree(clone)
    assert run("print(1)") == (0, "1\n", "")
    assert run("import torch; print(torch.__name__)") == (0, "torch\n", "")
    status, out, problem = run("import llamafactory; print(1)")
    assert (status, out, len(problem.splitlines())) == (0, "1\n", 1)
    assert problem.startswith("aft-factory: plugin not loaded: ModuleNotFoundError")


@pytest.mark.slow
def test_the_wheel_installs_into_a_clean_environment_and_leaves_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # what is installed

    def run(*command):
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "aft_factory_autoload.pth" in names
    assert "aft_factory/templates/chat/llama3.jinja" in names

    run(*VENV, tmp_path / "clean")
    binary = tmp_path / "clean" / "bin" / "python"
    site = run(binary, "-c", "import site; print(site.getsitepackages()[0])").strip()
    before = {path for path in os.listdir(site) if "aft" in path}
    run(*pip(binary, "install", "--quiet", wheel))
    assert "UltraFeedback" in run(binary, "-m", "aft_factory.convert", "--help")
    code = (
        "import sys; from aft_factory.prompts.prelude import chat_template\n"
        "from aft_factory.prompts.rendering import TEMPLATES\n"
        "chat_template('mistral', 'release')\n"
        "finders = [type(finder).__name__ for finder in sys.meta_path]\n"
        "print(TEMPLATES.parent.name, 'AftFactoryAutoload' in finders)"
    )
    assert run(binary, "-c", code).split() == ["aft_factory", "True"]
    run(*pip(binary, "uninstall", "--quiet", "--yes", "aft-factory"))
    assert {path for path in os.listdir(site) if "aft" in path} == before == set()

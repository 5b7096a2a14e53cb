"""Fixtures of several test files: tiny models with real tokenizers, made once per session."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ROOT = Path(__file__).parents[1]


def demo_rows() -> list[dict]:
    """The shipped rows: {query, proposals, aggregation, reference}, MIT licence."""
    lines = (
        (ROOT / "examples" / "data" / "gsm8k_solutions.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return [json.loads(line) for line in lines]


def _make(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import make_tiny_model

    texts = [text for row in demo_rows() for text in (row["query"], row["aggregation"])]
    texts += [
        path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("templates/**/*.jinja"))
    ]
    return make_tiny_model(kind, tmp_path_factory.mktemp(f"tiny-{kind}"), texts)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A tiny Llama of random weights with a Llama-3-type tokenizer; the folder."""
    return _make("llama3", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory):
    """A tiny Mistral of random weights with a SentencePiece-type tokenizer; the folder."""
    return _make("mistral", tmp_path_factory)


@pytest.fixture(scope="session")
def llama3_tokenizer_dir(tiny_llama):
    """A folder from which AutoTokenizer loads a Llama-3-type tokenizer."""
    return tiny_llama


@pytest.fixture(scope="session")
def real_mistral(tmp_path_factory, tiny_mistral):
    """Mistral-7B-v0.1's own vocabulary, which the package mistral-common brings; the folder."""
    package = importlib.util.find_spec("mistral_common")
    source = package and Path(package.origin).parent / "data" / "tokenizer.model.v1"
    if not source or not source.exists():
        pytest.skip("mistral-common is not installed (it comes with vLLM)")
    folder = tmp_path_factory.mktemp("real-mistral")
    shutil.copy(source, folder / "tokenizer.model")
    shutil.copy(tiny_mistral / "config.json", folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "unk_token": "<unk>"}
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

"""Fixtures of several test files: tiny models with real tokenizers, made once per session."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from ready_tools import once, ready
from shared_data import RealData
from vllm_tools import start_vllm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Tiny models on few cores that others use too: one thread each, and nothing compiled.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# A process less for each engine, as where there is a GPU.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

# On a busy machine any example may take long.
settings.register_profile("aft-factory", deadline=None)
settings.load_profile("aft-factory")

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests come first: where several processes share the files, all end at once."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _quiet():
    """LLaMA-Factory lets transformers say everything, to a stderr that is gone after its test."""
    yield
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.set_verbosity_error()


@pytest.fixture(params=["sample", "whole"])
def real(request):
    """Real data: samples that are here, and whole files where they lie beside the project."""
    return RealData(whole=request.param == "whole")


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
        path.read_text(encoding="utf-8")
        for folder in ("aggregate", "propose")
        for path in sorted(ROOT.glob(f"templates/{folder}/*.jinja"))
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
def tiny_reward_model(tmp_path_factory):
    """A tiny reward model of random weights; the folder."""
    from tiny_model import make_tiny_reward_model

    texts = [text for row in demo_rows() for text in (row["query"], row["aggregation"])]
    return make_tiny_reward_model(tmp_path_factory.mktemp("tiny-reward"), texts)


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


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of all processes of this test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def ready_vllm(shared_folder):
    """What vLLM's servers are started by; see `ready_tools`."""
    if not importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    return ready("vllm", shared_folder)


@pytest.fixture(scope="session")
def ready_llamafactory(shared_folder):
    """What LLaMA-Factory's commands are started by; see `ready_tools`."""
    return ready("llamafactory", shared_folder)


@pytest.fixture(scope="session")
def vllm_server(tiny_llama, shared_folder, ready_vllm, tmp_path_factory):
    """A real vLLM server of the tiny Llama, with our chat template; its URL."""
    from aft_factory.prompts.prelude import chat_template

    folder = tmp_path_factory.mktemp("vllm")
    template = folder / "chat.jinja"
    template.write_text(chat_template("llama3"), encoding="utf-8")
    # What many models bring, and no request of ours is to be decoded by.
    config = {"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(config))
    flags = ["--chat-template", str(template), "--generation-config", str(folder)]
    # vLLM's CPU build dies of a seeded request whose prompt it reads in chunks.
    flags += ["--no-enable-chunked-prefill", "--max-model-len", "4096"]
    flags += ["--max-num-batched-tokens", "4096", "--max-num-seqs", "64"]
    flags += ["--enable-prompt-tokens-details"]

    def begin():
        _, url = start_vllm(ready_vllm, tiny_llama, folder, *flags, lasting=True)
        return f"{url}/v1"

    return once(shared_folder, f"vllm-{Path(ready_vllm.address).name}", begin)

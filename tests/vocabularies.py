"""Vocabularies of real models, which packages on the registry bring (for tests only)."""

import importlib.util
from pathlib import Path

import pytest
import smollm2_model
from smollm2_model import smollm2_tokenizer
from tiny_model import LLAMA3_SPLIT, LLAMA3_TOKENS

QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Package, file, how a text is cut before byte-pair encoding, control tokens, BOS and EOS.
TIKTOKEN = {
    "llama3": (
        "llama_models",
        "llama3/tokenizer.model",
        LLAMA3_SPLIT,
        LLAMA3_TOKENS,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "qwen": (
        "dashscope",
        "resources/qwen.tiktoken",
        QWEN_SPLIT,
        QWEN_TOKENS,
        {"eos_token": "<|endoftext|>"},
    ),
}


def packaged(package: str, file: str) -> Path:
    """The path of a file in a package; skips where that is not installed."""
    found = importlib.util.find_spec(package)
    path = found and Path(found.origin).parent / file
    if not path or not path.exists():
        pytest.skip(f"{package} is not installed")
    return path


def write_tokenizer(kind: str, folder: Path) -> Path:
    """Write a tokenizer with the vocabulary of Llama 3, Qwen or SmolLM2; the folder."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    if kind == "smollm2":
        tokenizer = smollm2_tokenizer(packaged(smollm2_model.PACKAGE, smollm2_model.FILE))
    else:
        package, file, split, tokens, named = TIKTOKEN[kind]
        path = packaged(package, file)
        core = TikTokenConverter(
            str(path), pattern=split, extra_special_tokens=list(tokens)
        ).converted()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.save_pretrained(folder)
    return folder


def with_tokens(folder: Path, target: Path, tokens: list[str], config: Path) -> Path:
    """Copy a tokenizer with more control tokens, and a configuration so that it loads; the folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = None
    tokenizer.save_pretrained(target)
    (target / "config.json").write_text(config.read_text())
    return target

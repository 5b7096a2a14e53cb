"""Make a tiny model with a real tokenizer and no download, for demo, tests and benchmarks.

    python examples/tiny_model.py llama3 data/tiny/model
    python examples/tiny_model.py reward data/tiny/reward

`llama3` is a Llama with a byte-level BPE vocabulary and Llama 3's special tokens; `mistral` a
Mistral with a SentencePiece-type BPE vocabulary; `reward` a reward model of Llama's kind. Weights
are random: the text such a model writes, or the score it gives, means nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|finetune_right_pad_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(8)),
)
# How Llama 3 cuts text before byte-pair encoding.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> Any:
    """Train a byte-level BPE tokenizer of Llama 3's kind on texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(LLAMA3_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = LLAMA3_TOKENS[0]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )


def mistral_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> Any:
    """Train a SentencePiece-type BPE tokenizer, as Mistral-7B-v0.1 has one, on texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    # SentencePiece never merges across words; training on words gives the same merges.
    words = (word for text in texts for word in text.replace("\n", " ").split(" "))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        show_progress=False,
    )
    core.train_from_iterator(words, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def make_tiny_model(
    kind: str,
    folder: Path,
    texts: Iterable[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    context: int = 8192,
    vocabulary: int = 2000,
) -> Path:
    """Write a model of random weights and its tokenizer into a folder.

    Args:
        kind: `llama3` or `mistral`.
        folder: Where to; made if need be.
        texts: What the tokenizer is trained on.
        hidden: Width; a head has 32 of it, the least that vLLM's CPU build takes.
        layers: Transformer layers.
        context: Positions.
        vocabulary: Tokens, at most.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

    tokenizer = (llama3_tokenizer if kind == "llama3" else mistral_tokenizer)(texts, vocabulary)
    torch.manual_seed(0)
    config = (LlamaConfig if kind == "llama3" else MistralConfig)(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_reward_model(
    folder: Path,
    texts: Iterable[str],
    *,
    kind: str = "llama3",
    hidden: int = 64,
    layers: int = 2,
    context: int = 8192,
    vocabulary: int = 2000,
) -> Path:
    """Write a reward model: a Llama that gives one number, with tokenizer and chat template.

    Its weights are random, but large enough that scores of different texts differ clearly. It has
    no pad token, as many reward models have none.

    Args:
        folder: Where to; made if need be.
        texts: What the tokenizer is trained on.
        kind: `llama3` or `mistral`: tokenizer, architecture and chat template.
        hidden: Width; a head has 32 of it, the least that vLLM's CPU build takes.
        layers: Transformer layers.
        context: Positions.
        vocabulary: Tokens, at most.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    make_tiny_model(
        kind,
        folder,
        texts,
        hidden=hidden,
        layers=layers,
        context=context,
        vocabulary=vocabulary,
    )
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, num_labels=1, initializer_range=0.2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    template = Path(__file__).parents[1] / "templates" / "chat" / f"{kind}.jinja"
    (folder / "chat_template.jinja").write_bytes(template.read_bytes())
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("llama3", "mistral", "reward"))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--texts", type=Path, nargs="*", help="text files to train the tokenizer on"
    )
    args = parser.parse_args(argv)
    files = args.texts or [
        Path(__file__),
        *sorted(Path(__file__).parents[1].glob("templates/**/*.jinja")),
    ]
    texts = [file.read_text(encoding="utf-8") for file in files]
    if args.kind == "reward":
        make_tiny_reward_model(args.folder, texts)
    else:
        make_tiny_model(args.kind, args.folder, texts)
    print(args.folder)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    raise SystemExit(main())

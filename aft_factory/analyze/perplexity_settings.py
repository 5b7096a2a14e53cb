"""The settings of `aft analyze perplexity`, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aft_factory.engines.transformers_reward import RewardDtype
from aft_factory.prompts.selection import Aggregation
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.stage.declaring import REQUIRED, argument, setting, switch, written
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.plotting import PlotSettings, plot_files
from aft_factory.stage.reading import at_least, refused
from aft_factory.stage.tokenizing import folder_problems

EXAMPLES = """\
examples:
  # five training sets, as they are registered in data/dataset_info.json
  aft analyze perplexity sft aft_off aft_on without_proposals pseudo --dataset-dir data \\
      --model meta-llama/Llama-3.1-8B --template aft_llama3 --cutoff-len 8192 \\
      --output perplexity.png

  # of one file of records: as AFT, and its SFT baseline
  aft analyze perplexity AFT=my_aft.jsonl SFT=my_aft.jsonl --ablation SFT=sft \\
      --model meta-llama/Llama-3.1-8B --template aft_llama3 --output perplexity.png
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexitySettings(PlotSettings):
    """What is measured; see the help texts."""

    data: list[str] | None = argument(
        None, "training set of --dataset-dir, or a file of records; DATA or NAME=DATA", "DATA"
    )
    model: str | None = setting(None, "the model before training: folder or hub name")
    model_revision: str | None = setting(
        None, "of the model on the hub: branch, tag or commit", "REVISION"
    )
    trust_remote_code: bool = setting(False, "run the Python code that the model brings")
    template: str = setting(REQUIRED, "LLaMA-Factory's, as in training, such as aft_llama3", "NAME")
    cutoff_len: int = setting(2048, "as in training", "N")
    dataset_dir: Path | None = setting(None, "folder of a dataset_info.json", "DIR")
    ablation: dict[str, str] = setting(
        {}, "make of the set of that name the paper's sft or without_proposals", "NAME=ABLATION"
    )
    sample: int = setting(1000, "rows of each set, drawn by their ids; 0 takes all", "N")
    engine: Literal["transformers", "vllm"] = setting("transformers", "what runs the model")
    engine_args: dict[str, Any] = setting({}, "passed to vLLM, such as max_model_len=8192")
    dtype: RewardDtype = setting("auto", "of transformers; auto: bfloat16 on a GPU, else float32")
    batch_tokens: int | None = setting(
        None, "most tokens that transformers reads at once (default: 16384, on a CPU 2048)", "N"
    )
    journal: Path | None = written("what is known (default: OUT.journal)")
    export: bool = switch("ask no model: draw what the journal's last run knows")
    quiet: bool = switch("no progress bar")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = PlotSettings.problems(self)
        problems += at_least(self, ("cutoff_len", 1), ("sample", 0), ("batch_tokens", 1))
        if not self.export and not (self.data and self.model):
            problems.append("name the training sets, and the model by --model")
        problems += folder_problems("model_revision", self.model_revision, self.model)
        if self.engine_args and self.engine != "vllm":
            problems.append("engine_args: needs --engine vllm")
        problems += [  # by which the tokens would be of another model than the losses
            f"engine_args: {name}: pass --{flag}"
            for name, flag in (
                ("revision", "model-revision"),
                ("tokenizer_revision", "model-revision"),
                ("trust_remote_code", "trust-remote-code"),
            )
            if name in self.engine_args
        ]
        if self.engine == "vllm" and (self.dtype != "auto" or self.batch_tokens is not None):
            problems.append(
                "dtype, batch_tokens: for transformers; for vLLM: --engine-args dtype=float32"
            )
        return problems + [
            f"ablation: {name}: {problem}"
            for name, how in self.ablation.items()
            for problem in refused(partial(Aggregation, ablation=how))  # type: ignore[arg-type]
        ]

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.journal or self.output.with_suffix(".journal")

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        return Leaves(plot_files(self.output), [self.journal_path])

    @property
    def source(self) -> Pretrained:
        """How the model is loaded."""
        assert self.model is not None
        options = {
            "revision": self.model_revision,
            "trust_remote_code": self.trust_remote_code or None,
        }
        return Pretrained(self.model, options, "--trust-remote-code")

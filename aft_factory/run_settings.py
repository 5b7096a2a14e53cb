"""The settings of `python -m aft_factory.run`: flags, YAML keys and presets, in one place."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.drafting import EmptyPolicy, Policy, Settings, TruncatedPolicy
from aft_factory.errors import UsageError, suggest
from aft_factory.prompts import load_template
from aft_factory.sampling import Sampling
from aft_factory.settings import setting
from aft_factory.strategies import STRATEGIES
from aft_factory.tables import table_format
from aft_factory.tasks import TASKS

PRESETS = Path(__file__).parent / "presets"
DEFAULT_IN_FLIGHT = 256  # samples: vLLM's own default of sequences at a time


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is to do; see the help texts."""

    # what answers
    model: str | None = setting(None, "model folder or hub name; with --base-url, the served name")
    adapter: Path | None = setting(None, "LoRA adapter folder, as LLaMA-Factory saves it")
    base_url: list[str] = setting(
        [], "OpenAI-compatible servers to share the load, such as http://host:8000/v1", "URL"
    )
    tokenizer: str | None = setting(
        None, "the served model's folder or name: fits drafts to its context, counts FLOPs"
    )
    chat_template: str = setting("auto", "auto, own, llama3, mistral or a path")
    engine_args: dict[str, Any] = setting({}, "passed to vLLM, such as tensor_parallel_size=2")
    split_samples: bool = setting(False, "ask for K samples one by one (servers without n)")
    timeout: float = setting(600.0, "seconds until a server's answer is given up")
    retries: int = setting(10, "attempts after a failed one")
    scripted: bool = setting(False, "no model: made-up answers, to try a configuration")
    # how
    strategy: str = setting("propose_and_aggregate", f"one of {', '.join(STRATEGIES)}")
    width: int | None = setting(None, "K: drafts per layer (rsa: population)", "K")
    layers: int | None = setting(None, "L: rounds of aggregation", "L")
    subset: int | None = setting(None, "rsa: drafts that a member reads")
    window: int | None = setting(None, "self_moa_seq: drafts per step")
    proposers: list[str] = setting([], "moa: the models that draft", "MODEL")
    proposer_urls: dict[str, Any] = setting({}, "moa: servers of proposers, as MODEL=URL")
    reward_model: str | None = setting(None, "best_of_n: sequence classifier, folder or hub name")
    reward_url: str | None = setting(None, "best_of_n: vLLM server of --reward-model", "URL")
    template: str = setting("paper", "aggregator prompt: paper, moa, release or a .jinja file")
    proposer_system: str | None = setting(None, "system message of plain queries without one")
    temperature: float = setting(0.7, "of proposals and middle layers")
    top_p: float = setting(0.95, "of proposals and middle layers")
    top_k: int | None = setting(None, "of proposals and middle layers")
    max_tokens: int = setting(4096, "most tokens of a draft")
    final_temperature: float | None = setting(None, "of the final layer, if it differs")
    final_top_p: float | None = setting(None, "of the final layer, if it differs")
    final_top_k: int | None = setting(None, "of the final layer, if it differs")
    final_max_tokens: int | None = setting(None, "of the final layer, if it differs")
    sampling_args: dict[str, Any] = setting(
        {}, "further sampling settings or, for a server, fields of the body, such as min_p=0.05"
    )
    seed: int = setting(42, "of the run; the seed of each request follows from it and its place")
    on_empty: EmptyPolicy = setting("resample", "what becomes of an empty draft")
    on_truncated: TruncatedPolicy = setting("keep", "what becomes of a draft cut by max_tokens")
    resamples: int = setting(2, "most resamplings of one draft")
    min_drafts: int = setting(1, "reject a query with fewer usable drafts in a layer")
    in_flight: int | None = setting(
        None, f"most samples in flight (default: {DEFAULT_IN_FLIGHT}; in process, twice vLLM's)"
    )
    admit: int | None = setting(None, "most queries under way (default: 4 x --in-flight)")
    # what
    task: str | None = setting(None, f"layout of the input: {', '.join(TASKS)} (default: by keys)")
    split: str = setting("train", "split of a hub data set or saved DatasetDict")
    limit: int | None = setting(None, "only the first N rows", "N")
    task_output: Path | None = setting(None, "also write the benchmark's own format here")
    generator: str | None = setting(None, "name of the model in --task-output")
    keep_drafts: bool = setting(False, "write all drafts of all layers into the output rows")
    journal: Path | None = setting(None, "what was asked and answered (default: OUTPUT.journal)")
    rejects: Path | None = setting(None, "rows without answer (default: OUTPUT.rejects.jsonl)")
    draft_tokens: int = setting(512, "--dry-run: length of a draft to reckon with")

    def check(self) -> None:
        """Refuse what cannot be meant, all at once.

        Raises:
            UsageError: With every problem found.
        """
        problems = []
        for name, known in (("strategy", STRATEGIES), ("task", TASKS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                problems.append(f"{name}: unknown {value!r}; {suggest(value, known)}")
        for name, least in (
            *(("width", 1), ("layers", 0), ("subset", 1), ("window", 2), ("retries", 0)),
            *(("resamples", 0), ("min_drafts", 1), ("in_flight", 1), ("admit", 1), ("limit", 1)),
            ("draft_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                problems.append(f"{name}: expected a number from {least}, got {value}")
        if not self.timeout > 0:
            problems.append(f"timeout: expected seconds, got {self.timeout}")
        for check in (self.proposal, self.final, lambda: load_template(self.template)):
            try:
                check()
            except UsageError as error:
                problems.append(str(error))
        problems += self._engine_problems() + self._strategy_problems() + self._output_problems()
        if problems:
            raise UsageError("\n".join(dict.fromkeys(problems)))

    def _engine_problems(self) -> list[str]:
        if self.scripted:
            return []
        if self.model is None and not self.base_url:
            return ["name what answers: --model DIR_OR_NAME or --base-url URL"]
        problems = []
        for name in ("adapter", "engine_args"):
            if getattr(self, name) and self.base_url:
                problems.append(f"{name}: for a model in this process, not for --base-url")
        for name in ("tokenizer", "split_samples"):
            if getattr(self, name) and not self.base_url:
                problems.append(f"{name}: for servers, needs --base-url")
        return problems

    def _strategy_problems(self) -> list[str]:
        if self.strategy not in STRATEGIES:
            return []
        taken = inspect.signature(STRATEGIES[self.strategy]).parameters
        problems = [
            f"{name}: {self.strategy} has no such option; it takes: {', '.join(self._takes())}"
            for name in ("width", "layers", "subset", "window")
            if getattr(self, name) is not None and name not in taken
        ]
        if self.strategy == "moa" and not self.proposers:
            problems.append("proposers: moa needs the models that draft")
        if self.strategy == "moa" and not (self.base_url or self.scripted):
            problems.append("base_url: moa asks several models, which takes servers")
        if self.strategy == "best_of_n" and not (self.reward_model or self.scripted):
            problems.append("reward_model: best_of_n needs one")
        if self.reward_url and not self.reward_model:
            problems.append("reward_model: name the classifier that --reward-url serves")
        for name in self.proposer_urls:
            if name not in self.proposers:
                problems.append(f"proposer_urls: {name!r} is not among the proposers")
        return problems

    def _output_problems(self) -> list[str]:
        problems = []
        if self.task_output is not None:
            try:
                suffix = table_format(self.task_output)
            except UsageError as error:
                return [f"task_output: {error}"]
            task = TASKS.get(self.task or "")
            if task is None or task.write_row is None:
                own = [name for name, task in TASKS.items() if task.write_row is not None]
                problems.append(f"task_output: needs --task, one of {', '.join(own)}")
            elif suffix not in task.suffixes:
                expected = " or ".join(task.suffixes)
                problems.append(f"task_output: {self.task} wants a file that ends in {expected}")
        return problems

    def _takes(self) -> list[str]:
        signature = inspect.signature(STRATEGIES[self.strategy])
        options = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        return ["proposers" if name == "models" else name for name in options if name != "score"]

    def options(self) -> dict[str, Any]:
        """Return the options of the strategy: its own defaults where nothing was said."""
        options = {}
        for name, parameter in inspect.signature(STRATEGIES[self.strategy]).parameters.items():
            if name == "models":
                options[name] = self.proposers
            elif parameter.kind is parameter.KEYWORD_ONLY and name != "score":
                given = getattr(self, name)
                options[name] = parameter.default if given is None else given
        return options

    def proposal(self) -> Sampling:
        """Return the sampling of proposals and middle layers."""
        return Sampling(
            self.temperature, self.top_p, self.top_k, self.max_tokens, extra=self.sampling_args
        )

    def final(self) -> Sampling:
        """Return the sampling of the final layer."""

        def chosen(name: str) -> Any:
            value = getattr(self, f"final_{name}")
            return getattr(self, name) if value is None else value

        return Sampling(
            temperature=chosen("temperature"),
            top_p=chosen("top_p"),
            top_k=chosen("top_k"),
            max_tokens=chosen("max_tokens"),
            extra=self.sampling_args,
        )

    def drafting(self) -> Settings:
        """Return what all queries of the run have in common."""
        return Settings(
            load_template(self.template),
            self.proposal(),
            self.final(),
            self.proposer_system,
            self.seed,
            Policy(self.on_empty, self.on_truncated, self.resamples, self.min_drafts),
        )


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def check_paths(reads: dict[str, str], writes: dict[str, Path | None]) -> None:
    """Refuse to write two things into one file, or over an input.

    Args:
        reads: By flag, what is read.
        writes: By flag, what is written.

    Raises:
        UsageError: With the first clash.
    """
    taken = {os.path.realpath(name): flag for flag, name in reads.items()}
    for flag, path in writes.items():
        if path is None:
            continue
        other = taken.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise UsageError(f"{flag} and {other} are one file: {path}; name another")

"""The settings of `python -m aft_factory.run`: those of every command that asks, and its own."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from aft_factory.engines.sampling import Sampling
from aft_factory.errors import UsageError, suggest
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.reading import FORMS, is_form
from aft_factory.inference.strategies import AFT, STRATEGIES
from aft_factory.inference.tasks import TASKS
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.tables import table_format
from aft_factory.stage.declaring import COMMON, setting, written
from aft_factory.stage.job_settings import DECODING, FILES, OWNED, AskSettings, missing_keys
from aft_factory.stage.reading import AGGREGATOR, MOST_SAMPLES, ROWS, at_least, refused
from aft_factory.stage.reward import RewardSettings

PRESETS = Path(__file__).parents[1] / "presets"
USUAL = AFT.options
STRATEGY = "strategy"  # heading of `--help`
OPTIONS = ("width", "layers", "subset", "window")
SAMPLED = ("temperature", "top_p", "top_k", "max_tokens")
FINAL = tuple(f"final_{name}" for name in SAMPLED)
MIDDLE = tuple(f"middle_{name}" for name in SAMPLED)
_FINAL = partial(setting, None, "of the final layer, if it differs", group=DECODING)
_MIDDLE = partial(setting, None, "of layers between, if it differs", group=DECODING)


@dataclass(frozen=True, slots=True)
class RunSettings(RewardSettings, AskSettings):
    """What a run is to do; see the help texts."""

    strategy: str = setting(
        "propose_and_aggregate", f"one of {', '.join(STRATEGIES)}", group=COMMON
    )
    width: int | None = setting(
        None,
        f"K: drafts per layer, rsa's population (default: {USUAL['width']}; of others: their own)",
        "K",
        short="-K",
        group=COMMON,
    )
    layers: int | None = setting(
        None,
        f"L: rounds of aggregation (default: {USUAL['layers']}; of others: their own)",
        "L",
        short="-L",
        group=COMMON,
    )
    subset: int | None = setting(None, "rsa: drafts that a member reads", group=STRATEGY)
    window: int | None = setting(None, "self_moa_seq: drafts per step", group=STRATEGY)
    proposers: list[str] = setting([], "moa: the models that draft", "MODEL", group=STRATEGY)
    proposer_urls: dict[str, Any] = setting(
        {}, "moa: servers of proposers, as MODEL=URL", group=STRATEGY
    )
    proposer_key_env: dict[str, Any] = setting(
        {}, "moa: environment variables with the keys for these, as MODEL=NAME", group=STRATEGY
    )
    proposer_tokenizers: dict[str, Any] = setting(
        {},
        "moa: what fits drafts to a proposer's context, as MODEL=DIR_OR_NAME or "
        "MODEL={name: NAME, revision: REVISION, trust_remote_code: true}",
        group=STRATEGY,
    )
    use_proposals: bool = setting(
        False,
        "start from the proposals of each row, at most K of them, instead of drawing drafts",
        group=STRATEGY,
    )
    template: str = setting("paper", AGGREGATOR, group=STRATEGY)
    proposer_system: str | None = setting(
        None, "system message of plain queries without one", group=STRATEGY
    )
    drafts: str = setting(
        "answer",
        "what the next layer reads of a draft: answer (no thought), full, tail:N (its last "
        "N tokens), or summary (by the model: one more request each)",
        group=STRATEGY,
    )
    final_temperature: float | None = _FINAL()
    final_top_p: float | None = _FINAL()
    final_top_k: int | None = _FINAL()
    final_max_tokens: int | None = _FINAL()
    final_sampling_args: dict[str, Any] = setting(
        {},
        "of the final layer, beside --sampling-args, such as chat_template_kwargs",
        group=DECODING,
    )
    middle_temperature: float | None = _MIDDLE()
    middle_top_p: float | None = _MIDDLE()
    middle_top_k: int | None = _MIDDLE()
    middle_max_tokens: int | None = _MIDDLE()
    middle_sampling_args: dict[str, Any] = setting(
        {}, "of layers between, beside --sampling-args", group=DECODING
    )
    task: str | None = setting(
        None, f"layout of the input: {', '.join(TASKS)} (default: by keys)", group=ROWS
    )
    task_output: Path | None = written("also write the benchmark's own format here", group=FILES)
    generator: str | None = setting(None, "name of the model in --task-output", group=FILES)
    keep_drafts: bool = setting(
        False, "write all drafts of all layers into the output rows", group=FILES
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = AskSettings.problems(self) + self.reward_problems()
        for name, known in (("strategy", STRATEGIES), ("task", TASKS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                problems.append(f"{name}: unknown {value!r}; {suggest(value, known)}")
        limits = (("width", 1), ("layers", 0), ("subset", 1), ("window", 2))
        problems += at_least(self, *limits, most=MOST_SAMPLES)
        if not is_form(self.drafts):
            problems.append(f"drafts: expected {FORMS}, got {self.drafts!r}")
        problems += refused(self.final, self.middle, lambda: load_template(self.template))
        problems += self.strategy_problems() + self.unneeded_reward()
        return problems if self.task is None else problems + self.output_problems(self.task)

    def strategy_problems(self) -> list[str]:
        """Return what does not go with the strategy."""
        if self.strategy not in STRATEGIES:
            return []
        strategy = STRATEGIES[self.strategy]
        takes = [*strategy.options, *(["proposers"] if "models" in strategy.needs else [])]
        problems = [
            f"{name}: {self.strategy} has no such option; it takes: {', '.join(takes)}"
            for name in OPTIONS
            if getattr(self, name) is not None and name not in strategy.options
        ]
        problems += [
            f"{name}: {self.strategy} has no final layer; set {name.removeprefix('final_')}"
            for name in (*FINAL, "final_sampling_args")
            if not strategy.has_final and getattr(self, name) not in (None, {})
        ]
        problems += [
            f"{name}: {self.strategy} has no layers between"
            for name in (*MIDDLE, "middle_sampling_args")
            if not strategy.has_middle and getattr(self, name) not in (None, {})
        ]
        problems += [
            self._owner(key)
            for name in ("final_sampling_args", "middle_sampling_args")
            for key in getattr(self, name)
            if key in OWNED
        ]
        if self.use_proposals and strategy.first is None:
            able = ", ".join(name for name, one in STRATEGIES.items() if one.first is not None)
            problems.append(f"use_proposals: {self.strategy} draws its own; these can: {able}")
        elif self.use_proposals and self.options().get("layers") == 0:
            problems.append("use_proposals: with layers 0 there are no drafts; set layers")
        if "models" in strategy.needs and not self.proposers:
            problems.append(f"proposers: {self.strategy} needs the models that draft")
        if "models" in strategy.needs and not (self.base_url or self.scripted):
            problems.append(f"base_url: {self.strategy} asks several models, which takes servers")
        if "score" in strategy.needs and not (self.has_reward or self.scripted):
            problems.append(f"reward_model: {self.strategy} needs one, or a reward_url")
        for name in ("proposer_urls", "proposer_key_env", "proposer_tokenizers"):
            for model in getattr(self, name):
                if model not in self.proposers:
                    problems.append(f"{name}: {model!r} is not among the proposers")
        tokenizers = (partial(self.proposer_tokenizer, model) for model in self.proposer_tokenizers)
        problems += refused(*tokenizers)
        problems += missing_keys("proposer_key_env", map(str, self.proposer_key_env.values()))
        return problems

    def proposer_tokenizer(self, model: str) -> Pretrained | None:
        """Return how a proposer's tokenizer is loaded; None if it has none.

        Raises:
            UsageError: If what was said of it is not understood.
        """
        said = self.proposer_tokenizers.get(model)
        if said is None:
            return None
        if said == self.tokenizer:  # of which revision and code were spoken
            return self.tokenizer_source(said)
        said = said if isinstance(said, dict) else {"name": str(said)}
        kinds = {"name": str, "revision": str, "trust_remote_code": bool}
        if not isinstance(said.get("name"), str) or any(
            not isinstance(value, kinds.get(key, ())) for key, value in said.items()
        ):
            raise UsageError(
                f"proposer_tokenizers: {model}: expected a name, or {{name: NAME, revision: "
                f"REVISION, trust_remote_code: true}}, got {said}"
            )
        hint = f"--proposer-tokenizers '{model}={{name: {said['name']}, trust_remote_code: true}}'"
        return Pretrained(said["name"], {k: v for k, v in said.items() if k != "name"}, hint)

    def unneeded_reward(self) -> list[str]:
        """Return the settings of a reward model that nothing asks."""
        if "score" in STRATEGIES.get(self.strategy, STRATEGIES["best_of_n"]).needs:
            return []
        default = RewardSettings()
        return [
            f"{field.name}: {self.strategy} asks no reward model; best_of_n does"
            for field in fields(RewardSettings)
            if getattr(self, field.name) != getattr(default, field.name)
        ]

    def output_problems(self, name: str, row: Any = None) -> list[str]:
        """Return what is wrong with the benchmark's file, if the task is of this name.

        Args:
            name: The task, as it was set or as its first row tells.
            row: The first row.
        """
        if self.task_output is None or name not in TASKS:
            return []
        try:
            suffix = table_format(self.task_output)
        except UsageError as error:
            return [f"task_output: {error}"]
        task = TASKS[name]
        if task.write_row is None:
            own = {name: task for name, task in TASKS.items() if task.write_row is not None}
            alike = [
                f"--task {name}, if these are its rows ({', '.join(task.columns)})"
                for name, task in own.items()
                if isinstance(row, dict) and row.keys() >= set(task.columns)
            ]
            needed = " or ".join(alike) or f"--task, one of {', '.join(own)}"
            return [f"task_output: needs {needed}"]
        if suffix not in task.suffixes:
            return [f"task_output: {name} wants a file that ends in {' or '.join(task.suffixes)}"]
        return []

    def options(self) -> dict[str, Any]:
        """Return the options of the strategy: its own where nothing was said."""
        strategy = STRATEGIES[self.strategy]
        options = strategy.settled({name: getattr(self, name) for name in strategy.options})
        return options | ({"models": self.proposers} if "models" in strategy.needs else {})

    def final(self) -> Sampling:
        """Return the sampling of the final layer."""
        return self._layer("final")

    def middle(self) -> Sampling:
        """Return the sampling of the layers between."""
        return self._layer("middle")

    def samplings(self) -> list[Sampling]:
        """Return the samplings of all layers."""
        return [self.proposal(), self.middle(), self.final()]

    def _layer(self, which: str) -> Sampling:
        given = {name: getattr(self, f"{which}_{name}") for name in SAMPLED}
        extra = getattr(self, f"{which}_sampling_args")
        own = {name: value for name, value in given.items() if value is not None}
        drafts = self.proposal()
        return replace(drafts, **own, extra={**drafts.extra, **extra})

    def drafting(self) -> DraftingOptions:
        """Return what all queries of the run have in common."""
        return DraftingOptions(
            load_template(self.template),
            self.proposal(),
            self.final(),
            self.proposer_system,
            self.seed,
            self.policy(),
            reads=self.drafts,
            middle=self.middle(),
        )


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))

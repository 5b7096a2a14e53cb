"""The settings of every command that asks a model: what answers, how it decodes, what is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from aft_factory.engines.openai_fields import read_omission
from aft_factory.engines.sampling import Request, Sampling
from aft_factory.engines.vllm_loading import engine_source
from aft_factory.inference.policy import (
    EmptyPolicy,
    FilteredPolicy,
    Policy,
    TruncatedPolicy,
    UnfinishedPolicy,
)
from aft_factory.network import read_key
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.rejects import rejects_path
from aft_factory.stage.declaring import COMMON, setting, written
from aft_factory.stage.placing import RaySettings
from aft_factory.stage.reading import ReadSettings, at_least, refused
from aft_factory.stage.tokenizing import TokenizerSettings

# Headings of `--help`, beside those of what is read.
FILES = "files"
MODEL = "what answers"
DECODING = "decoding"
DRAFTS = "drafts that cannot be used"
PACE = "pace and cost"
SYNONYMS = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
# What a run sets itself, by what it asks and by how engines ask it; `sampling_args` adds to these.
OWNED = frozenset(
    {field.name for kind in (Sampling, Request) for field in fields(kind)} - {"extra", "sampling"}
    | {"messages", "best_of", "echo", "stream", "stream_options", "output_kind", *SYNONYMS}
)
DEFAULT_IN_FLIGHT = 256  # samples a server; vLLM's works on 256 to 1024 at once, by the GPU


@dataclass(frozen=True, slots=True)
class JobSettings(ReadSettings):
    """What every job reads and keeps; see the help texts."""

    journal: Path | None = written(
        "what was asked and answered (default: OUTPUT.journal)", group=FILES
    )
    rejects: Path | None = written(
        "rows without answer (default: OUTPUT.rejects.jsonl)", group=FILES
    )
    admit: int | None = setting(
        None,
        "most queries under way: fewer end sooner (default: a quarter more than --in-flight)",
        group=PACE,
    )
    timeout: float = setting(600.0, "seconds until a server's answer is given up", group=PACE)
    retries: int = setting(10, "attempts after a failed one", group=PACE)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings; a command's own add theirs."""
        problems = ReadSettings.problems(self) + at_least(self, ("retries", 0), ("admit", 1))
        if not self.timeout > 0:
            problems.append(f"timeout: expected seconds, got {self.timeout}")
        return problems

    def journal_of(self, output: Path) -> Path:
        """Return where the journal of an output is."""
        return self.journal or Path(f"{output}.journal")

    def rejects_of(self, output: Path) -> Path:
        """Return where rows without answer go."""
        return self.rejects or rejects_path(output)


@dataclass(frozen=True, slots=True)
class AskSettings(RaySettings, TokenizerSettings, JobSettings):
    """What to ask, and how; see the help texts."""

    model: str | None = setting(
        None, "model folder or hub name; with --base-url, the served name", group=COMMON
    )
    adapter: Path | None = setting(
        None, "LoRA adapter folder, as LLaMA-Factory saves it", group=MODEL
    )
    base_url: list[str] = setting(
        [],
        "OpenAI-compatible servers to share the load, such as http://host:8000/v1",
        "URL",
        group=COMMON,
    )
    tokenizer: str | None = setting(
        None,
        "the served model's folder or name: fits drafts to its context, counts FLOPs",
        group=MODEL,
    )
    chat_template: str = setting(
        "auto", "auto, own, llama3, mistral, one of its names or a path", group=MODEL
    )
    engine_args: dict[str, Any] = setting(
        {}, "passed to vLLM, such as tensor_parallel_size=2", group=MODEL
    )
    split_samples: bool = setting(
        False,
        "ask for K samples one by one: for servers without n, and for runs of several K that share "
        "the drafts in one --journal",
        group=MODEL,
    )
    omit: list[str] = setting(
        [],
        "fields that the server does not take: not sent, or sent as FIELD=OTHER",
        "FIELD",
        group=MODEL,
    )
    context: int | None = setting(
        None, "the model's context in tokens, where the server does not tell it", "N", group=MODEL
    )
    api_key_env: list[str] = setting(
        [],
        "environment variables with the keys: one, or one for each --base-url "
        "(default: OPENAI_API_KEY)",
        "NAME",
        group=MODEL,
    )
    scripted: bool = setting(
        False, "no model: made-up answers, to try a configuration", group=MODEL
    )
    temperature: float = setting(0.7, "of sampling; 0 is greedy", group=COMMON)
    top_p: float = setting(0.95, "of sampling", group=DECODING)
    top_k: int | None = setting(None, "of sampling", group=DECODING)
    max_tokens: int = setting(
        4096,
        "most tokens of an answer, of the final layer too where nothing else is said",
        group=COMMON,
    )
    sampling_args: dict[str, Any] = setting(
        {},
        "further sampling settings or, for a server, fields of the body, such as min_p=0.05",
        group=DECODING,
    )
    seed: int = setting(
        42, "of the run; the seed of each request follows from it and its place", group=DECODING
    )
    on_empty: EmptyPolicy = setting("resample", "what becomes of an empty draft", group=DRAFTS)
    on_truncated: TruncatedPolicy = setting(
        "keep", "what becomes of a draft cut by max_tokens", group=DRAFTS
    )
    on_filtered: FilteredPolicy = setting(
        "resample",
        "what becomes of a draft that a filter of contents ended; resampled in vain, it is dropped",
        group=DRAFTS,
    )
    on_unfinished: UnfinishedPolicy = setting(
        "resample",
        "what becomes of a thought cut by max_tokens; resampled with twice as many",
        group=DRAFTS,
    )
    resamples: int = setting(2, "most resamplings of one draft", group=DRAFTS)
    min_drafts: int = setting(1, "reject a query with fewer usable drafts in a layer", group=DRAFTS)
    in_flight: int | None = setting(
        None,
        f"most samples in flight (default: {DEFAULT_IN_FLIGHT} a server; in process, twice what "
        "vLLM works on at once)",
        group=PACE,
    )
    draft_tokens: int = setting(512, "--dry-run: length of an answer to reckon with", group=PACE)
    price_in: float | None = setting(None, "--dry-run: of a million tokens read", group=PACE)
    price_out: float | None = setting(None, "--dry-run: of a million tokens written", group=PACE)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings; a command's own add theirs."""
        problems = JobSettings.problems(self)
        problems += at_least(
            *(self, ("resamples", 0), ("min_drafts", 1), ("in_flight", 1), ("draft_tokens", 1)),
            ("context", 1),
            ("price_in", 0),
            ("price_out", 0),
        )
        problems += self.tokenizer_problems(self.tokenizer)
        problems += self.ray_problems("--base-url" if self.base_url else None)
        problems += refused(*(partial(read_omission, text) for text in self.omit))
        problems += missing_keys("api_key_env", self.api_key_env)
        if len(self.api_key_env) not in (0, 1, len(self.base_url)):
            problems.append(
                f"api_key_env: expected one name, or one for each of {len(self.base_url)} servers"
            )
        problems += [self._owner(name) for name in self.sampling_args if name in OWNED]
        problems += refused(self.proposal)
        if self.scripted:
            return problems
        problems += [
            f"base_url: expected a URL such as http://host:8000/v1, got {url!r}"
            + ("" if Path(url).suffix else "; is it the INPUT, or a BENCHMARK? name that first")
            for url in self.base_url
            if "://" not in url
        ]
        if self.model is None and not self.base_url:
            problems.append("name what answers: --model DIR_OR_NAME or --base-url URL")
        for name in ("adapter", "engine_args"):
            if getattr(self, name) and self.base_url:
                problems.append(f"{name}: for a model in this process, not for --base-url")
        if self.chat_template != "auto" and self.base_url and self.tokenizer is None:
            problems.append(
                "chat_template: a server renders by its own; start it with that one (vLLM's "
                "--chat-template). Here it only fits drafts to the context, with --tokenizer"
            )
        for name in ("tokenizer", "omit", "context", "api_key_env"):
            if getattr(self, name) and not self.base_url:
                problems.append(f"{name}: for servers, needs --base-url")
        return problems

    def _owner(self, name: str) -> str:
        """Say what sets what `sampling_args` would set behind its back."""
        setting = SYNONYMS.get(name, name)
        if not hasattr(self, setting):
            return f"sampling_args: {name} is the run's own to set; leave it out"
        settings = [setting, f"final_{setting}"] if hasattr(self, f"final_{setting}") else [setting]
        flags = " and ".join(f"--{own.replace('_', '-')}" for own in settings)
        return f"sampling_args: {name} is set by {flags}"

    def shape(self) -> Pretrained | None:
        """Return where the model's size is read; a server's, where its tokenizer is."""
        if not (self.base_url or self.scripted):
            return None if self.model is None else engine_source(self.model, self.engine_args)
        return None if self.tokenizer is None else self.tokenizer_source(self.tokenizer)

    def proposal(self) -> Sampling:
        """Return the sampling of proposals and middle layers."""
        return Sampling(
            self.temperature, self.top_p, self.top_k, self.max_tokens, extra=self.sampling_args
        )

    def final(self) -> Sampling:
        """Return the sampling of the final layer."""
        return self.proposal()

    def samplings(self) -> list[Sampling]:
        """Return the samplings of all layers."""
        return [self.proposal(), self.final()]

    def policy(self) -> Policy:
        """Return the policies for unusable drafts."""
        return Policy(
            self.on_empty,
            self.on_truncated,
            self.resamples,
            self.min_drafts,
            self.on_filtered,
            self.on_unfinished,
        )


def missing_keys(setting: str, names: Iterable[str]) -> list[str]:
    """Return which environment variables hold no key; a name is asked for, never a key."""
    return [f"{setting}: {told}" for told in refused(*(partial(read_key, name) for name in names))]

"""The settings of `python -m aft_factory.serve`: those of a run without its files, and its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from aft_factory.errors import UsageError
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.records.files import read_text
from aft_factory.run.settings import FINAL, MIDDLE, OPTIONS, RunSettings
from aft_factory.stage.declaring import COMMON, checked, setting, written
from aft_factory.stage.job_settings import FILES, PACE, missing_keys
from aft_factory.stage.reading import at_least, refused

KEY_VARIABLE = "AFT_API_KEY"
CLIENTS = "clients"  # headings of `--help`
LIMITS = "limits"
PLAIN = "plain"
BUILT_IN: dict[str, dict[str, Any]] = {
    "aft": {},
    PLAIN: {"strategy": "propose_and_aggregate", "layers": 0},
}
# What a variant, a model under a name of its own, may set.
OF_VARIANTS = (
    *("strategy", *OPTIONS, "template", "proposer_system", "drafts", "seed", *FINAL, *MIDDLE),
    *("sampling_args", "final_sampling_args", "middle_sampling_args"),
    *("temperature", "top_p", "top_k", "max_tokens", "min_drafts", "resamples"),
    *("on_empty", "on_truncated", "on_filtered", "on_unfinished"),
)
# Harnesses part their arguments by "," and "="; others rewrite "/", ":" and "*".
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
SUFFIX = re.compile(r"(?:-k(?P<width>[0-9]{1,6}))?(?:-l(?P<layers>[0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class ServeSettings(RunSettings):
    """What a server is to do; see the help texts."""

    variants: dict[str, Any] = setting(
        {},
        "further models by name, with settings of their own: aft-fast={width: 3, layers: 1}; aft "
        "and plain (no drafts) are there unless they are named here",
        "NAME={...}",
        group=COMMON,
    )
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 is every one of this machine", group=COMMON
    )
    port: int = setting(8000, "port to listen on; 0 takes a free one", group=COMMON)
    client_key_env: list[str] = setting(
        [],
        "environment variables with the keys of which a client must show one (default: "
        f"{KEY_VARIABLE}, if it is set)",
        "NAME",
        group=CLIENTS,
    )
    client_key_file: Path | None = setting(
        None, "file with further such keys, one a line", group=CLIENTS
    )
    allow_origin: list[str] = setting(
        [],
        "web pages that may ask, such as https://chat.example.org; * is all of them",
        "ORIGIN",
        group=CLIENTS,
    )
    reasoning_field: Literal["reasoning_content", "reasoning", "both", "none"] = setting(
        "reasoning_content",
        "field that shows thoughts and, of a stream, drafts while they are made",
        group=CLIENTS,
    )
    journal: Path | None = written(
        "keep what is asked and answered here, and answer equal requests from it (default: keep "
        "nothing)",
        group=FILES,
    )
    fresh: bool = setting(
        False,
        "draw a seed for a request without one; else equal requests get equal answers",
        group=CLIENTS,
    )
    max_width: int = setting(
        16, "most drafts of a layer, and answers, that a client may ask for", group=LIMITS
    )
    max_layers: int = setting(4, "most layers that a client may ask for", group=LIMITS)
    max_answer: int | None = setting(
        None,
        "most tokens of an answer that a client may ask for (default: the model's context)",
        group=LIMITS,
    )
    queue: int = setting(
        1000, "most requests under way, waiting ones too; others are sent away", group=LIMITS
    )
    client_queue: int | None = setting(
        None, "the most of them of one client, by key or address (default: half)", group=LIMITS
    )
    time_limit: float = setting(1800.0, "seconds until a request is given up", group=LIMITS)
    max_body: int = setting(4 * 2**20, "most bytes of a request", group=LIMITS)
    grace: float = setting(
        30.0, "seconds that requests have to finish after SIGTERM or Ctrl-C", group=LIMITS
    )
    retries: int = setting(3, "attempts after a failed one", group=PACE)
    # What a run over files has, and a server has not.
    without: ClassVar[tuple[str, ...]] = (
        *("split", "data_subset", "data_revision", "limit", "column", "rejects", "shard", "admit"),
        *("draft_tokens", "price_in", "price_out", "use_proposals", "task", "task_output"),
        *("generator", "keep_drafts"),
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = RunSettings.problems(self)
        problems += [] if "score" in self.needs() else RunSettings.unneeded_reward(self)
        limits = (("max_width", 1), ("max_layers", 0), ("max_answer", 1), ("queue", 1))
        problems += at_least(self, *limits, ("client_queue", 1), ("max_body", 1))
        problems += at_least(self, ("grace", 0), ("port", 0))
        if not self.time_limit > 0:
            problems.append(f"time_limit: expected seconds, got {self.time_limit}")
        if self.port > 65535:
            problems.append(f"port: expected a number up to 65535, got {self.port}")
        problems += missing_keys("client_key_env", self.client_key_env)
        problems += refused(self.keys)
        for name, changes in self.variants.items():
            problems += [f"variants: {name}: {text}" for text in self._variant_problems(changes)]
            if not NAME.fullmatch(name):
                problems.append(
                    f"variants: {name!r}: expected a name of small letters, digits, dots and dashes"
                )
            elif base := self.base_of(name):
                problems.append(f"variants: {name!r} is {base[0]!r} of other width or layers")
        return problems

    def _variant_problems(self, changes: Any) -> list[str]:
        if not isinstance(changes, dict):
            return [f"expected settings such as {{width: 3, layers: 1}}, got {changes!r}"]
        try:
            self.varied(changes)
        except UsageError as error:
            return list(map(str, error.args))
        return []

    def unneeded_reward(self) -> list[str]:
        """Return nothing: which variants there are, only `problems` knows."""
        return []

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """Where drafts and thoughts are shown."""
        field = self.reasoning_field
        both = ("reasoning_content", "reasoning")
        return () if field == "none" else both if field == "both" else (field,)

    def all_variants(self) -> dict[str, dict[str, Any]]:
        """Return what each model on offer changes of these settings."""
        return BUILT_IN | self.variants

    def needs(self) -> set[str]:
        """Return what the strategies on offer need; see `Strategy.needs`."""
        changes = [c for c in self.all_variants().values() if isinstance(c, dict)]
        names = [c.get("strategy", self.strategy) for c in changes]
        return {need for name in names if name in STRATEGIES for need in STRATEGIES[name].needs}

    def base_of(self, name: str) -> tuple[str, dict[str, int]] | None:
        """Return which model on offer a name with -kN or -lN behind it means, and the numbers."""
        for listed in sorted(self.all_variants(), key=len, reverse=True):
            found = SUFFIX.fullmatch(name.removeprefix(listed)) if name.startswith(listed) else None
            if found and name != listed:
                return listed, {key: int(text) for key, text in found.groupdict().items() if text}
        return None

    def varied(self, changes: Mapping[str, Any]) -> ServeSettings:
        """Return the settings with some changed as a variant, or a client, wants it.

        Raises:
            UsageError: With everything that is wrong with the changes.
        """
        but = {one.name for one in fields(self)} - set(OF_VARIANTS)
        values, problems = checked(changes, ServeSettings, but=but)
        base: dict[str, Any] = {"variants": {}}
        strategy = STRATEGIES.get(values.get("strategy", self.strategy))
        if strategy is not None and strategy.name != self.strategy:  # the options are another's
            base |= dict.fromkeys(OPTIONS if strategy.has_final else (*OPTIONS, *FINAL))
            if not strategy.has_final:
                base["final_sampling_args"] = {}
            if not strategy.has_middle:
                base |= {**dict.fromkeys(MIDDLE), "middle_sampling_args": {}}
        changed = replace(self, **{**base, **values})
        if problems := problems or RunSettings.problems(changed):
            raise UsageError(*dict.fromkeys(problems))
        return changed

    def keys(self) -> list[str]:
        """Return the keys of which a client must show one; none where everybody may ask."""
        names = self.client_key_env or [KEY_VARIABLE]
        keys = [os.environ.get(name, "").strip() for name in names]
        if self.client_key_file is not None:
            try:
                keys += [line.strip() for line in read_text(self.client_key_file).splitlines()]
            except OSError as error:
                raise UsageError(
                    f"client_key_file: {self.client_key_file}: {error.strerror}"
                ) from None
            if not any(keys):
                raise UsageError(f"client_key_file: {self.client_key_file} has no key in it")
        return [key for key in keys if key]

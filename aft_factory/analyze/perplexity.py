"""Perplexity of training sets under the model before it is trained (figure 6, right).

Of the target tokens only, of rows as LLaMA-Factory makes them:

    loss         sum of -log p over all targets / their number
    error        standard error of that ratio over the rows
    perplexity   exp(loss), from exp(loss - error) to exp(loss + error)
    row_loss     mean over the rows of each one's own mean loss, as of batches of one row

Each row is in the journal as soon as it is known: a killed run goes on, and `--export` makes the
plot from the journal alone.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import orjson

from aft_factory.analyze import encoding
from aft_factory.analyze.named import named
from aft_factory.asking.journal import Journal
from aft_factory.engines.target_loss import Row as Tokens
from aft_factory.engines.target_loss import TransformersLoss, VllmLoss
from aft_factory.engines.transformers_reward import RewardDtype
from aft_factory.errors import UsageError
from aft_factory.prompts.selection import Aggregation
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.record import Row
from aft_factory.stage.command import Leaves, PlainCommand
from aft_factory.stage.console import RESUMES, show
from aft_factory.stage.declaring import REQUIRED, argument, setting, switch, written
from aft_factory.stage.plotting import (
    COLOURS,
    PlotSettings,
    new_figure,
    plain,
    plot_files,
    write_plot,
)
from aft_factory.stage.progress import progress_bar
from aft_factory.stage.reading import at_least
from aft_factory.stage.tokenizing import folder_problems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

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
        for name, how in self.ablation.items():
            try:
                Aggregation(ablation=how)  # type: ignore[arg-type]
            except UsageError as error:
                problems.append(f"ablation: {name}: {error}")
        return problems

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.journal or self.output.with_suffix(".journal")

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        return Leaves(plot_files(self.output), [self.journal_path])


def numbers(known: Mapping[str, Sequence[tuple[float, int]]]) -> list[Row]:
    """Return a row for each set: from (sum of losses, targets) of its rows.

    Example:
        >>> [row] = numbers({"a": [(2.0, 2), (8.0, 2)]})
        >>> row["loss"], row["error"], row["row_loss"]
        (2.5, 1.5, 2.5)
    """
    rows: list[Row] = []
    for name, found in known.items():
        targets = sum(count for _, count in found)
        loss = math.fsum(total for total, _ in found) / targets
        error = None
        if len(found) > 1:
            spread = math.fsum((total - loss * count) ** 2 for total, count in found)
            error = math.sqrt(spread * len(found) / (len(found) - 1)) / targets
        row: Row = {"set": name, "rows": len(found), "tokens": targets, "loss": loss}
        row |= {"error": error, "perplexity": math.exp(loss)}
        row |= {"low": None if error is None else math.exp(loss - error)}
        row |= {"high": None if error is None else math.exp(loss + error)}
        rows.append(row | {"row_loss": fmean(total / count for total, count in found)})
    return rows


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a bar for each set."""
    figure = new_figure(max(4, 1.3 * len(rows) + 1.5), 4.5)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        value, colour = row["perplexity"], COLOURS[place % len(COLOURS)]
        error = None
        if row["error"] is not None:
            error = [[value - row["low"]], [row["high"] - value]]
        bar = axes.bar(place, value, 0.7, color=colour, yerr=error, capsize=4)
        axes.bar_label(bar, [f"{value:.4g}"], padding=2)
    axes.set_xticks(range(len(rows)), [plain(row["set"]) for row in rows])
    axes.tick_params(axis="x", rotation=0 if len(rows) < 4 else 20)
    axes.set(ylabel="perplexity of the target tokens")
    axes.set_title("before training; bars: one standard error over rows", fontsize="medium")
    axes.margins(y=0.12)
    return figure


def analyze(settings: PerplexitySettings) -> int:
    """Measure what is not known yet, draw, and print the table."""
    settings.check([str(settings.journal_path)])
    known = _exported(settings) if settings.export else _measured(settings)
    rows = numbers(known)
    write_plot(settings.output, rows, draw)
    lines = [f"{'set':<24}{'rows':>7}{'tokens':>10}{'loss':>9}{'error':>9}{'perplexity':>12}"]
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.4f}"
        cells = f"{row['rows']:>7}{row['tokens']:>10,}{row['loss']:>9.4f}{error:>9}"
        lines.append(f"{row['set']:<24}{cells}{row['perplexity']:>12.4g}")
    show("\n".join(lines))
    return 0


def _measured(settings: PerplexitySettings) -> dict[str, list[tuple[float, int]]]:
    places = named(settings.data or ())
    if unknown := set(settings.ablation) - set(places):
        raise UsageError(f"ablation: {', '.join(unknown)}: expected one of {', '.join(places)}")
    entries = {
        name: encoding.entry_of(str(data), settings.dataset_dir, settings.ablation.get(name))
        for name, data in places.items()
    }
    sets = {
        name: (entry, encoding.drawn(entry, settings.sample)) for name, entry in entries.items()
    }
    assert settings.model is not None
    options = {
        "revision": settings.model_revision,
        "trust_remote_code": settings.trust_remote_code or None,
    }
    source = Pretrained(settings.model, options, "--trust-remote-code")
    made = encoding.encoded(
        sets, model=source, template=settings.template, cutoff_len=settings.cutoff_len
    )
    for name, rows in made.items():
        if lost := len(sets[name][1]) - sum(row.targets > 0 for row in rows):
            _log.warning(
                "%s: %d of %d rows left out, as from training", name, lost, len(sets[name][1])
            )
    every = [(name, row) for name, rows in made.items() for row in rows if row.targets]
    if settings.engine == "vllm":
        said = {name: value for name, value in options.items() if value is not None}
        engine: Any = VllmLoss(settings.model, settings.engine_args | said)
    else:
        engine = TransformersLoss(source, dtype=settings.dtype, batch_tokens=settings.batch_tokens)
    try:
        with Journal(settings.journal_path) as journal:
            return _with_journal(journal, engine, every, settings)
    finally:
        engine.close()


def _with_journal(
    journal: Journal, engine: Any, every: Sequence[tuple[str, Tokens]], settings: PerplexitySettings
) -> dict[str, list[tuple[float, int]]]:
    """Measure the rows that the journal has not; return (loss, targets) of all, by set."""
    keys = [_key(engine.identity, name, row) for name, row in every]
    wanted = orjson.dumps(Counter(name for name, _ in every)).decode()
    run = hashlib.blake2b(b"".join(keys), digest_size=16).hexdigest()
    journal.begin_run(run, settings=wanted)
    found: dict[int, float] = {}
    missing: list[int] = []
    for number, key in enumerate(keys):
        content = journal.outcome(key)
        if content is None:
            missing.append(number)
        else:
            found[number] = content["loss"]
            _keep(journal, key, number, every[number], content["loss"])
    losses = engine.losses([every[number][1] for number in missing])
    shown = {"total": len(missing), "unit": " rows", "desc": "perplexity"}
    for place, loss in progress_bar(losses, quiet=settings.quiet, **shown):
        number = missing[place]
        found[number] = loss
        _keep(journal, keys[number], number, every[number], loss)
    by_set: dict[str, list[tuple[float, int]]] = {}
    for number, (name, row) in enumerate(every):
        by_set.setdefault(name, []).append((found[number], row.targets))
    return _finite(by_set)


def _keep(journal: Journal, key: bytes, number: int, one: tuple[str, Tokens], loss: float) -> None:
    content = {"set": one[0], "targets": one[1].targets, "loss": loss}
    journal.keep_query(f"{number:09}", [])
    journal.keep_outcome(key, content, done=True, query=f"{number:09}")


def _finite(by_set: dict[str, list[tuple[float, int]]]) -> dict[str, list[tuple[float, int]]]:
    """Leave out rows whose loss is no number, and say so."""
    result = {}
    for name, found in by_set.items():
        result[name] = [one for one in found if one[0] is not None and math.isfinite(one[0])]
        if lost := len(found) - len(result[name]):
            _log.warning("%s: %d rows left out, whose loss is not finite", name, lost)
        if not result[name]:
            raise UsageError(f"{name}: no row with a finite loss; try another --dtype")
    return result


def _exported(settings: PerplexitySettings) -> dict[str, list[tuple[float, int]]]:
    by_set: dict[str, list[tuple[float, int]]] = {}
    with Journal(settings.journal_path, read_only=True) as journal:
        last = journal.last_run()
        if last is None:
            raise UsageError(f"{settings.journal_path}: no run has begun in it")
        run, wanted = journal.run_of(last), orjson.loads(journal.settings() or "{}")
        for name in journal.ids():
            for content in journal.outcomes_of(name, run):
                pair = (content["loss"], content["targets"])
                by_set.setdefault(content["set"], []).append(pair)
    for name, count in wanted.items():
        if (known := len(by_set.get(name, []))) < count:
            _log.warning("%s: %d of %d rows are not known yet", name, count - known, count)
    if not by_set:
        raise UsageError(f"{settings.journal_path}: its last run knows nothing yet")
    return _finite(by_set)


def _key(identity: str, name: str, row: Tokens) -> bytes:
    content = orjson.dumps([identity, name, list(row.ids), list(row.labels)])
    return hashlib.blake2b(content, digest_size=16).digest()


COMMAND = PlainCommand(
    name="analyze perplexity",
    description="Perplexity of training sets under the base model (figure 6, right).",
    examples=EXAMPLES,
    settings=PerplexitySettings,
    do=analyze,
    interrupted=RESUMES,
    left=PerplexitySettings.leaves,
)

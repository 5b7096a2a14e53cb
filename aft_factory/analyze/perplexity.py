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
from statistics import fmean
from typing import TYPE_CHECKING, Any

import orjson

from aft_factory.analyze import encoding
from aft_factory.analyze.named import named
from aft_factory.analyze.perplexity_settings import EXAMPLES, PerplexitySettings
from aft_factory.asking.journal import Journal
from aft_factory.engines.target_loss import Row as Tokens
from aft_factory.engines.target_loss import TransformersLoss, VllmLoss
from aft_factory.errors import UsageError
from aft_factory.records.record import Row
from aft_factory.stage.command import PlainCommand
from aft_factory.stage.console import RESUMES, show
from aft_factory.stage.kept import NOT_BEGUN
from aft_factory.stage.plotting import COLOURS, new_figure, plain, write_plot
from aft_factory.stage.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


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
    source = settings.source
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
        engine: Any = VllmLoss(source.name, settings.engine_args | source.given)
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
            raise UsageError(f"{settings.journal_path}: {NOT_BEGUN}")
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
)

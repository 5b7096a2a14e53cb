"""The paper's claim, put to the test: trains, gates, evaluates, and says what held. See README.md.

    python examples/reproduce/reproduce.py smoke              # every kind of step, in a minute
    python examples/reproduce/reproduce.py 135m --dry-run     # the list of cells
    python examples/reproduce/reproduce.py 135m

Killed at any moment, the same command goes on: a cell that is done is not done again.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import HERE, Cell, Chain, Scale, aft, read_scale, write_yaml
from verdicts import Estimate, estimate, held, over_seeds, paired

from aft_factory.errors import UsageError
from aft_factory.evaluate.results import columns
from aft_factory.pipeline.supervisor import Supervisor
from aft_factory.records.replacing import write_whole
from aft_factory.stage.console import guarded
from aft_factory.stage.yaml_file import read_yaml

# What may differ between two runs in one folder: which cells there are, not what is in them.
MORE = ("seeds", "models", "asked", "plots", "gates", "margin", "claims")


class Reproduction:
    """A scale in its folder.

    Args:
        scale: Which.
        folder: For all that it leaves.
    """

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale, self.folder = scale, folder
        self.base = scale.model or str(folder / "model")
        self.chains = [
            Chain(scale, self.base, folder / f"seed{seed}", seed) for seed in scale.seeds
        ]
        self.gates: dict[str, str] = {}

    def cells(self) -> Iterator[Cell]:
        """Go through all cells."""
        if self.scale.make:
            program, *words = self.scale.make
            made = Path(self.base) / "tokenizer.json"  # the last of its files
            command = [sys.executable, str(HERE.parent / program), *words, self.base]
            yield Cell("the model", command, is_done=made.exists)
        for chain in self.chains:
            yield from chain.cells()
        for what in self.scale.plots:
            output = self.folder / f"{what}.png"
            arguments = [*self.plotted(what), "--output", output, "--overwrite"]
            yield Cell(f"plot: {what}", aft("analyze", what, *arguments), is_done=output.exists)
        yield Cell("results", before=self.tell)

    def plotted(self, what: str) -> list[object]:
        """Return what `aft analyze` is to draw of the first seed."""
        first = self.chains[0]
        if what == "curves":
            return [f"{name}={first.folder / name}" for name in self.scale.models]
        if what == "cost":
            return [
                f"{model}/{inference}={first.place(model, inference)}"
                for model in self.scale.models
                for inference in self.scale.asked
            ]
        sets = [name for name in self.scale.models if name in self.scale.models[name]["rows"]]
        words = ["more", *sets, "--dataset-dir", first.folder, "--model", self.base]
        return [*words, "--template", self.scale.template, "--cutoff-len", self.scale.cutoff_len]

    def run(self) -> int:
        """Do what is not done yet; stop at a gate that does not pass, or a command that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check()
        with Supervisor() as supervisor:
            for cell in self.cells():
                if supervisor.asked:
                    print("interrupted; the same command goes on", file=sys.stderr)
                    return 130
                if cell.is_done():
                    print(f"{cell.name}: done before", flush=True)
                    continue
                print(f"{cell.name}{shown(cell)}", flush=True)
                cell.before()
                code = supervisor.run(cell.command) if cell.command else 0
                if code and not supervisor.asked:
                    told = f"exit code {code}; the same command goes on from here"
                    print(f"stopped at {cell.name}: {told}", file=sys.stderr)
                    return code if code > 0 else 128 - code
                if cell.gate is not None and not self.passes(cell):
                    return 1
        return 0

    def passes(self, cell: Cell) -> bool:
        """Tell what a gate says, and whether to go on."""
        assert cell.gate is not None
        gate = cell.gate()
        self.gates[cell.name] = f"{'passed' if gate.passed else 'NOT passed'}: {gate.text}"
        print(f"    {self.gates[cell.name]}", flush=True)
        if gate.passed or self.scale.gates == "tell":
            return True
        print("stopped at a gate; `gates: tell` in the scale goes on all the same", file=sys.stderr)
        return False

    def check(self) -> None:
        """Refuse a folder of other settings: what is done there would not be what is left.

        Raises:
            UsageError: If it is one.
        """
        kept = self.folder / "scale.yaml"
        wanted = {key: value for key, value in asdict(self.scale).items() if key not in MORE}
        if kept.exists() and (found := read_yaml(kept)) != wanted:
            other = [key for key in wanted if found.get(key) != wanted[key]]
            raise UsageError(
                f"{self.folder} was begun with other settings ({', '.join(other)}); name another "
                "--output"
            )
        write_yaml(kept, wanted)

    def tell(self) -> None:
        """Write the tables, and print them."""
        values, claims = self.values(), self.claims()
        write_csv(self.folder / "results.csv", values)
        write_csv(self.folder / "claims.csv", claims)
        gates = [f"{name}: {text}" for name, text in self.gates.items()]
        lines = [*gates, "", *table(values), "", *table(claims)]
        text = "\n".join([*lines, "", f"seeds: {len(self.chains)}; error: standard error"])
        write_whole(self.folder / "results.txt", f"{text}\n".encode())
        print(text)

    def values(self) -> list[dict[str, Any]]:
        """Return a row for each model and inference."""
        rows = []
        for model in self.scale.models:
            for inference in self.scale.asked:
                seeds = [estimate(chain.right(model, inference)) for chain in self.chains]
                copied = "" if inference != "aggregate" else self.copied(model)
                row = {"model": model, "inference": inference, **numbers(seeds)}
                rows.append(row | {"copied": copied})
        return rows

    def copied(self, model: str) -> str:
        """Return which share of a model's aggregations are one of their drafts."""
        shares = [chain.copied(model, "aggregate") for chain in self.chains]
        return f"{sum(shares) / len(shares):.3f}"

    def claims(self) -> list[dict[str, Any]]:
        """Return a row for each claim: the difference, and whether it held."""
        rows = []
        for better, worse in self.scale.claims:
            row: dict[str, Any] = {"claim": f"{better} > {worse}"}
            pairs = [name.split("/") for name in (better, worse)]
            if all(m in self.scale.models and i in self.scale.asked for m, i in pairs):
                seeds = [
                    paired(*(chain.right(model, inference) for model, inference in pairs))
                    for chain in self.chains
                ]
                row |= {**numbers(seeds), "held": "yes" if held(seeds) else "no"}
            else:
                row |= {"value": "", "error": "", "n": "", "seeds": "", "held": "not tested"}
            rows.append(row)
        return rows


def numbers(seeds: Sequence[Estimate]) -> dict[str, Any]:
    """Return the mean over seeds, its error, and the value of each."""
    mean = over_seeds(seeds)
    error = "" if mean.error is None else f"{mean.error:.4f}"
    own = " ".join(f"{one.value:.3f}" for one in seeds)
    return {"value": f"{mean.value:.4f}", "error": error, "n": mean.n, "seeds": own}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return rows for a person."""
    return columns([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def shown(cell: Cell) -> str:
    """Return a cell's command for a person to read, or to run."""
    if not cell.command:
        return ""
    return f"\n    $ {shlex.join(cell.command).replace(sys.executable, 'python')}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scale", help="smoke, 135m, 8b, or a file such as theirs")
    parser.add_argument("--output", type=Path, help="for all it leaves [data/reproduce/SCALE]")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells")
    args = parser.parse_args(argv)

    def run() -> int:
        named = HERE / f"{args.scale}.yaml"
        path = named if named.exists() else Path(args.scale)
        folder = args.output or Path("data/reproduce") / path.stem
        reproduction = Reproduction(read_scale(path), folder)
        if not args.dry_run:
            return reproduction.run()
        for cell in reproduction.cells():
            done = " (done)" if cell.is_done() else ""
            print(f"{cell.name}{done}{shown(cell)}")
        return 0

    return guarded(run, lines=True)


if __name__ == "__main__":
    raise SystemExit(main())

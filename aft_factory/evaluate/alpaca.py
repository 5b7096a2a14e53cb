"""AlpacaEval 2: the answers beside a reference's, judged and counted by alpaca-eval's own code.

It runs as a process of its own, as it sets up logging and reads its settings where it is imported.
The length-controlled rate takes a file that is in neither its package nor its repository
(`df_gamed.csv`); without the real one there is none.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aft_factory.errors import MissingPackage, UsageError
from aft_factory.evaluate.benchmarks import Benchmark, Part, Score
from aft_factory.evaluate.harness import run_harness
from aft_factory.evaluate.judge import Judge
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.inference.queries import Query
from aft_factory.inference.tasks import read_alpaca_eval, write_alpaca_eval
from aft_factory.records.files import read_text
from aft_factory.records.record import Row, content_id
from aft_factory.records.replacing import write_whole
from aft_factory.records.tables import read_rows

HUB = "tatsu-lab/alpaca_eval"
OFFICIAL = "weighted_alpaca_eval_gpt4_turbo"
ROWS = 805
GAMED = ("97aeec3f1c7d", "d674d")  # how the SHA-256 of the real df_gamed.csv begins and ends
METRICS = {
    "length_controlled_winrate": "lc_standard_error",
    "win_rate": "standard_error",
    "discrete_win_rate": None,
    "avg_length": None,
}
_log = logging.getLogger(__name__)


def prepare(benchmark: Benchmark, settings: EvalSettings, folder: Path, *, ask: bool) -> Part:
    """Read the instructions and their reference answers, and see to it that the judge can judge.

    Args:
        benchmark: Of the table.
        settings: Of the evaluation.
        folder: Where the judge's verdicts are kept.
        ask: Whether to ask the judge for one, as all others would fail like it.

    Raises:
        UsageError: If something is missing.
    """
    if importlib.util.find_spec("alpaca_eval") is None:
        raise MissingPackage("alpaca_eval: alpaca-eval", '"aft-factory[eval]"')
    reference = _rows(str(settings.reference or _from_hub("alpaca_eval_gpt4_baseline.json")))
    asked = reference
    if "alpaca_eval" in settings.data:
        asked = _rows(settings.data["alpaca_eval"])
        known, named = ({row["instruction"] for row in rows} for rows in (reference, asked))
        if known != named:
            raise UsageError(
                f"alpaca_eval: {len(known ^ named)} instructions have no answer in one of the "
                "--data and the --reference; alpaca-eval would leave them out"
            )
    reference, asked = reference[: settings.limit], asked[: settings.limit]
    queries = [_query(row) for row in asked]
    config, model = _judge_config(settings)
    gamed = _gamed(settings, len(reference))

    def judge() -> Judge:
        return Judge(settings, model, folder / "judgments.sqlite", _preferring(config))

    if ask:
        with contextlib.closing(judge()) as one:
            _check_log_probabilities(one, config)
    name = settings.generator or settings.model or "aft"

    def score(answers: Sequence[Sequence[str]], where: Path) -> list[Score]:
        pairs = zip(queries, answers, strict=True)
        rows = [write_alpaca_eval(query, list(texts), name) for query, texts in pairs]
        _write_json(where / "model_outputs.json", rows)
        _write_json(where / "reference.json", reference)
        own = (folder / "alpaca_eval" / "judge").absolute()
        _write_json(own / "configs.yaml", config)  # JSON is YAML
        _keep_verdicts_only(own / "annotations_seed0_configs.json")
        _annotate(judge, where.absolute(), own, gamed)
        return _read_leaderboard(where / "leaderboard.csv", gamed)

    facts = {
        "harness": f"alpaca-eval {version('alpaca_eval')}",
        "task": next(iter(config)),
        "task_version": None,
        "data": content_id([], [json.dumps(row["instruction"]) for row in reference]),
        "judge": model,
        "length_controlled": gamed is not None,
    }
    return Part(benchmark, queries, ROWS, facts, score, judged=len(queries))


def _query(row: Row) -> Query:
    query = read_alpaca_eval({key: row[key] for key in ("instruction", "dataset") if key in row})
    return Query(f"alpaca_eval/{query.id}", query.turns, query.row)


def _rows(source: str) -> list[Row]:
    rows = []
    for line in read_rows(source):
        if line.problem or not isinstance(line.value, dict) or "instruction" not in line.value:
            raise UsageError(f"{line.place}: {line.problem or 'expected an instruction'}")
        rows.append(line.value)
    return rows


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, name, repo_type="dataset"))
    except Exception as error:  # offline, refused, not there: it raises anything
        told = str(error).split("\n")[0]
        raise UsageError(
            f"alpaca_eval: {name} of the hub's {HUB} cannot be had ({told}); "
            "name a copy by --reference"
        ) from error


def _judge_config(settings: EvalSettings) -> tuple[dict[str, Any], str]:
    """Return the annotator's settings, as alpaca-eval has them, and the name of its model."""
    import yaml

    spec = importlib.util.find_spec("alpaca_eval")
    assert spec is not None
    assert spec.origin is not None
    official = Path(spec.origin).parent / "evaluators_configs"
    name = OFFICIAL if settings.judge_url or settings.judge is None else settings.judge
    path = official / name / "configs.yaml"
    if not path.exists():
        raise UsageError(
            f"judge: alpaca-eval has no annotator {name!r}; one is {OFFICIAL}. A model of your "
            "own: --judge-url URL --judge MODEL"
        )
    [(key, config)] = yaml.safe_load(read_text(path)).items()
    if config["fn_completions"] != "openai_completions":
        raise UsageError(f"judge: {name} is not asked by OpenAI's protocol, as judges are here")
    config["prompt_template"] = str(official / config["prompt_template"])
    if settings.judge_url:
        if settings.judge is None:
            raise UsageError("judge: name the model at --judge-url")
        key = settings.judge
        config["completions_kwargs"] |= {"model_name": key, "requires_chatml": True}
        config["completions_kwargs"]["price_per_token"] = 0
    return {key: config}, config["completions_kwargs"]["model_name"]


def _check_log_probabilities(judge: Judge, config: dict[str, Any]) -> None:
    [one] = config.values()
    asked = one["completions_kwargs"]
    sent = {
        name: asked[name] for name in ("max_tokens", "logprobs", "top_logprobs") if name in asked
    }
    message = {"role": "user", "content": "Answer with one letter: m or M?"}
    body = {"messages": [message], "temperature": 0, **sent}
    if one["fn_completion_parser"] != "logprob_parser":
        judge.check(body, bool)
    elif not judge.check(body, lambda reply: bool(_tops(reply, 0))):
        raise UsageError(
            f"the judge {judge.model} tells no log-probabilities (logprobs, top_logprobs 5), of "
            "which alpaca-eval makes its preferences; vLLM's server does"
        )


def _preferring(config: dict[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """Return what tells whether alpaca-eval can read a preference from a reply."""
    [one] = config.values()
    if one["fn_completion_parser"] != "logprob_parser":
        return bool
    parsed = one["completion_parser_kwargs"]
    tokens = {parsed["numerator_token"], *parsed["denominator_tokens"]}
    place = parsed.get("log_prob_index", "batch")
    index = 0 if place == "batch" else place
    return lambda reply: not tokens.isdisjoint(_tops(reply, index))


def _tops(reply: Mapping[str, Any], index: int) -> set[str]:
    """Return the tokens that a judge tells the log-probabilities of, at one place of its answer."""
    tops = reply["choices"][0]["logprobs"]["content"][index]["top_logprobs"]
    return {top["token"] for top in tops}


def _gamed(settings: EvalSettings, rows: int) -> Path | None:
    """Return the file that the length-controlled rate takes, if that can be told."""
    path = settings.lc_data
    why = ""
    if rows != ROWS:
        why = f"it is of all {ROWS} instructions"
    elif path is None:
        try:
            path = _from_hub("df_gamed.csv")
        except UsageError as error:
            why = (
                f"{str(error).removeprefix('alpaca_eval: ').split(';')[0]}; --lc-data names a copy"
            )
    if path is not None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not (digest.startswith(GAMED[0]) and digest.endswith(GAMED[1])):
            raise UsageError(f"lc_data: {path} is not df_gamed.csv of {HUB}, by its hash {digest}")
    if why:
        _log.warning("alpaca_eval: no length-controlled win rate: %s", why)
        return None
    return path


def _annotate(judge: Callable[[], Judge], where: Path, own: Path, gamed: Path | None) -> None:
    metric = "get_winrate" if gamed is None else "get_length_controlled_winrate"
    kwargs = "{}" if gamed is None else "{'save_weights_dir': None}"  # else into its own package
    by = "win_rate" if gamed is None else "length_controlled_winrate"
    arguments = {
        "model_outputs": where / "model_outputs.json",
        "reference_outputs": where / "reference.json",
        "annotators_config": own,
        "output_path": where,
        "precomputed_leaderboard": None,
        "fn_metric": metric,
        "metric_kwargs": kwargs,
        "sort_by": by,
    }
    command = [sys.executable, "-c", "from alpaca_eval.main import main; main()", "evaluate"]
    command += [f"--{name}={value}" for name, value in arguments.items()]
    with tempfile.TemporaryDirectory() as cache:
        environment = {"OPENAI_MAX_CONCURRENCY": "32", "IS_ALPACA_EVAL_2": "True"}
        if gamed is not None:  # it takes the file from the hub's cache only
            place = Path(cache) / "hub" / f"datasets--{HUB.replace('/', '--')}"
            (place / "refs").mkdir(parents=True)
            (place / "refs" / "main").write_text("given", encoding="utf-8")
            (place / "snapshots" / "given").mkdir(parents=True)
            shutil.copyfile(gamed, place / "snapshots" / "given" / "df_gamed.csv")
            environment |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
            environment |= {"HF_HUB_CACHE": f"{cache}/hub"}
        with contextlib.closing(judge()) as one:
            run_harness("alpaca-eval", command, one, where, where / "alpaca_eval.log", environment)


def _keep_verdicts_only(path: Path) -> None:
    """Leave of alpaca-eval's verdicts those that are: not half a file, and none that is missing.

    What it has no preference of it would not ask for again.
    """
    try:
        rows = json.loads(read_text(path))
    except FileNotFoundError:
        return
    except ValueError:  # it was killed; what was judged is kept beside it
        rows = []
    rows = [row for row in rows if (row["preference"] or -1) > 0]
    if rows:
        _write_json(path, rows)
    else:
        path.unlink()


def _read_leaderboard(path: Path, gamed: Path | None) -> list[Score]:
    with io.StringIO(read_text(path), newline="") as stream:
        [row] = csv.DictReader(stream)
    n = int(float(row["n_total"] or 0))
    expected = METRICS.keys() - ({"length_controlled_winrate"} if gamed is None else set())
    if lacking := sorted(name for name in expected if not row.get(name)):
        raise UsageError(f"alpaca-eval shows no {', '.join(lacking)}, of {n} verdicts: {path}")
    return [
        Score(name, float(row[name]), float(row[error]) if error else None, n)
        for name, error in METRICS.items()
        if name in expected
    ]


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1).encode("utf-8"))

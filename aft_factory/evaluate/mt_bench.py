"""MT-Bench: both turns answered, judged by FastChat's `gen_judgment`, counted by its `show_result`.

FastChat wants a version of OpenAI's client that vLLM cannot have, so it runs in an environment of
its own. Its package lacks the questions, references and prompts: they are in its repository, under
`fastchat/llm_judge/data`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.evaluate.benchmarks import Benchmark, Part, Score
from aft_factory.evaluate.harness import run_harness
from aft_factory.evaluate.judge import Judge
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.inference.queries import Query
from aft_factory.inference.tasks import read_mt_bench, write_mt_bench
from aft_factory.records.record import Row, content_id
from aft_factory.records.replacing import write_whole
from aft_factory.records.tables import read_rows

FILES = ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl")
_log = logging.getLogger(__name__)
MODEL = "aft"  # as FastChat's files know it
JUDGE = "gpt-4"  # as FastChat knows each: it asks for no name that it does not know
TURNS = {"first turn": "First turn", "second turn": "Second turn", "average": "Average"}
RATING = re.compile(r"\[(\d+\.?\d*)\]")  # or in two pairs of brackets, as it asks for
MAKES_IT = (
    "`make fastchat` makes one in .venv-fastchat, or: python3.11 -m venv fastchat && "
    "fastchat/bin/pip install 'fschat[model_worker,llm_judge]==0.2.36' 'openai<1' 'pandas<3'"
)


def prepare(benchmark: Benchmark, settings: EvalSettings, folder: Path, *, ask: bool) -> Part:
    """Read the questions, and see to it that FastChat and the judge are there.

    Args:
        benchmark: Of the table.
        settings: Of the evaluation.
        folder: Where judgments are kept.
        ask: Whether to ask the judge for one, as all others would fail like it.

    Raises:
        UsageError: If something is missing.
    """
    source = Path(settings.data.get("mt_bench", ""))
    lacking = [name for name in FILES if not (source / name).is_file()]
    if "mt_bench" not in settings.data or lacking:
        raise UsageError(
            "mt_bench: --data mt_bench=FOLDER, a copy of FastChat's fastchat/llm_judge/data with "
            f"{', '.join(lacking or FILES)}"
        )
    rows: list[Row] = [line.value for line in read_rows(str(source / FILES[0]))]
    asked = rows[: settings.limit]
    queries = [_query(row) for row in asked]
    model = settings.judge if settings.judge_url and settings.judge else JUDGE

    def judge() -> Judge:
        return Judge(settings, model, folder / "judgments.sqlite", _rates)

    if settings.harness_python is None:
        raise UsageError(
            f"mt_bench: FastChat takes an environment of its own, --harness-python; {MAKES_IT}"
        )
    python = settings.harness_python.absolute()
    found = _version(python)
    if ask:
        with contextlib.closing(judge()) as one:
            there = {"role": "user", "content": "Are you there?"}
            one.check({"messages": [there], "max_tokens": 1}, bool)
    more: dict[str, Any] = {"categories": {}}

    def score(answers: Sequence[Sequence[str]], where: Path) -> list[Score]:
        where.mkdir(parents=True, exist_ok=True)
        pairs = zip(queries, answers, strict=True)
        lines = [write_mt_bench(query, list(texts), MODEL) for query, texts in pairs]
        # FastChat adds to the judgments that it finds: a fresh folder, that no other run has.
        with tempfile.TemporaryDirectory() as fresh:
            data = Path(fresh) / "data"
            for name in FILES:
                (data / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, data / name)
            _write_lines(data / FILES[0], asked)
            _write_lines(data / "mt_bench" / "model_answer" / f"{MODEL}.jsonl", lines)
            with contextlib.closing(judge()) as one:
                shown = _judge(python, one, Path(fresh), where)
            shutil.copytree(data / "mt_bench", where, dirs_exist_ok=True)
        write_whole(where / "show_result.txt", shown.encode())
        return _scores(shown, where, asked, more["categories"])

    facts = {
        "harness": f"FastChat {found}",
        "task": "mt_bench",
        "task_version": None,
        "data": content_id([], [json.dumps(row, sort_keys=True) for row in asked]),
        "judge": model,
    }
    turns = sum(len(query.turns) for query in queries)
    return Part(benchmark, queries, len(rows), facts, score, judged=turns, more=more)


def _query(row: Row) -> Query:
    query = read_mt_bench(row)
    return Query(f"mt_bench/{query.id}", query.turns, query.row, final=query.final)


def _rates(reply: Mapping[str, Any]) -> bool:
    """Tell whether FastChat finds a rating in a judge's reply."""
    return RATING.search(reply["choices"][0]["message"]["content"]) is not None


def _judge(python: Path, judge: Judge, folder: Path, where: Path) -> str:
    """Have FastChat judge the answers in a folder; return what it shows of the result."""
    models = ["--model-list", MODEL, "--judge-model", JUDGE]
    shown = ""
    for number, step in enumerate(("gen_judgment --parallel 16", "show_result"), start=1):
        module, *more = step.split()
        command = [str(python), "-m", f"fastchat.llm_judge.{module}", *models, *more]
        log = where / f"fastchat{number}.log"
        shown = run_harness("FastChat", command, judge, folder, log, {"CUDA_VISIBLE_DEVICES": ""})
    return shown


def _version(python: Path) -> str:
    """Return the version of FastChat in an environment, which can be loaded there."""
    # All that judging and counting load: what is missing is to be known before judges are paid.
    code = "import fastchat.llm_judge.gen_judgment, fastchat.llm_judge.show_result; "
    code += "import fastchat.llm_judge.common as c; from importlib.metadata import version; "
    code += "c.openai.ChatCompletion; print(version('fschat'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"harness_python: {python}: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UsageError(
            f"harness_python: {python} cannot load FastChat: {''.join(last)}; {MAKES_IT}"
        )
    return done.stdout.strip().splitlines()[-1]


def _scores(
    shown: str, place: Path, asked: Sequence[Row], categories: dict[str, list[float]]
) -> list[Score]:
    """Return what `show_result` shows, and add the categories' means, which it has not."""
    path = place / "model_judgment" / f"{JUDGE}_single.jsonl"
    judged = [line.value for line in read_rows(str(path)) if line.value["score"] != -1]
    if beyond := [one for one in judged if not 1 <= one["score"] <= 10]:
        question, turn, rating = (beyond[0][key] for key in ("question_id", "turn", "score"))
        _log.warning(
            "mt_bench: %d ratings are not of 1 to 10, and FastChat counts them as they are: "
            "question %s, turn %s: %s; %s",
            *(len(beyond), question, turn, rating, path),
        )
    by_turn = {
        turn: {one["question_id"] for one in judged if one["turn"] == number}
        for number, turn in enumerate(TURNS, start=1)
    }
    by_turn["average"] = by_turn["first turn"] & by_turn["second turn"]
    category = {row["question_id"]: row["category"] for row in asked}
    # In the order of the questions, as judgments are kept in that of their arrival.
    of_category: dict[str, list[float]] = {name: [] for name in category.values()}
    for one in judged:
        of_category[category[one["question_id"]]].append(one["score"])
    for name, values in of_category.items():
        if values:
            categories.setdefault(name, []).append(fmean(values))
    scores = []
    for turn, title in TURNS.items():
        _, _, rest = shown.partition(f"## {title} ##")
        value = re.search(rf"^{MODEL}\s(?:.*\s)?([0-9.]+)\s*$", rest, re.MULTILINE)
        if value is not None:
            scores.append(Score(turn, float(value[1]), None, len(by_turn[turn])))
    if len(scores) < len(TURNS):
        raise UsageError(f"FastChat shows no score; the judge's texts are in {path}")
    return scores


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

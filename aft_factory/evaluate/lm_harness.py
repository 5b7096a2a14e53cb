"""Benchmarks of lm-eval, in this process: its tasks, its requests, its scores; our runner answers.

Its code is gone through twice. First with a text that is no answer, before anything is paid for:
that tells what it will ask, and that it can score what comes back (its packages, its data). Then
with the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError, needing, suggest
from aft_factory.evaluate.benchmarks import Benchmark, Part, Score
from aft_factory.evaluate.lm_tasks import is_one, localised, near, shows_the_questions
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.inference.queries import Query
from aft_factory.records.hub import explained
from aft_factory.records.replacing import write_whole

TASKS = Path(__file__).parent / "tasks"
EXACT = "exact_match"  # the metric that compares what is found in an answer with the target
NO_ANSWER = "The answer is not known."
SEED, FEWSHOT_SEED = 0, 1234  # lm-eval's defaults; IFEval's checkers draw, for some instructions
# How long an answer may be is the run's to say: what aggregates drafts needs more room.
BUDGETS = frozenset({"max_gen_toks", "max_new_tokens", "max_tokens", "max_length"})
_log = logging.getLogger(__name__)


def prepare(benchmark: Benchmark, settings: EvalSettings, folder: Path) -> Part:
    """Load a task, and have it rehearsed.

    Args:
        benchmark: Which.
        settings: Of the evaluation.
        folder: Where task files that are made here may be kept.

    Raises:
        UsageError: If there is no such task, or it asks for what a strategy cannot give.
    """
    tasks = _load(benchmark, settings, folder)
    asked: list[Any] = []

    def rehearse(requests: Sequence[Any]) -> list[str]:
        asked.extend(requests)
        return [NO_ANSWER] * len(requests)

    results = _evaluate(benchmark, tasks, rehearse, settings.limit, bootstrap=0)
    counts: Counter[tuple[str, int]] = Counter()
    queries = []
    for request in asked:
        place = (request.task_name, request.doc_id)
        task = tasks["tasks"][request.task_name]
        queries.append(_query(benchmark, request, counts[place], task))
        counts[place] += 1
    _tell_unused(benchmark, tasks)
    samples = results["n-samples"].values()
    versions = {str(found) for found in results["versions"].values()}
    facts = {
        "harness": f"lm-eval {version('lm_eval')}",
        "task": benchmark.task,
        "task_version": ", ".join(sorted(versions)),
        "data": _digest(results["samples"]),
    }

    def score(answers: Sequence[Sequence[str]], where: Path) -> list[Score]:
        texts = [turns[0] for turns in answers]
        found = _evaluate(benchmark, tasks, lambda _: texts, settings.limit)
        _keep(found, where)
        return _scores(benchmark, found)

    return Part(benchmark, queries, sum(one["original"] for one in samples), facts, score)


def _load(benchmark: Benchmark, settings: EvalSettings, folder: Path) -> dict[str, Any]:
    with _silenced():
        manager = task_manager(benchmark, settings.include)
        if benchmark.task not in manager.all_tasks:
            known = suggest(benchmark.name, manager.all_tasks)
            raise UsageError(f"{benchmark.name}: no benchmark, and no task of lm-eval's; {known}")
        if (data := settings.data.get(benchmark.name)) is not None:
            made = localised(benchmark, manager, data, folder)
            manager = task_manager(benchmark, [*settings.include, str(made)])
        copy = "" if data else f" (--data {benchmark.name}=FILE names a local copy)"
        with explained(f"{benchmark.name}: lm-eval cannot load it{copy}", kind=True):
            loaded: dict[str, Any] = manager.load([benchmark.task])
    for name, task in loaded["tasks"].items():
        if task.get_config("output_type") != "generate_until":
            raise UsageError(
                f"{benchmark.name}: {name} asks how likely given answers are, and a strategy only "
                f"writes; a generative task of it: {near(name, manager) or 'none is known here'}"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        if shows_the_questions(task.config):
            raise UsageError(
                f"{benchmark.name}: {name} has no fewshot_split, so lm-eval takes its "
                "examples from the very questions, answers and all; name one in the task file"
            )
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def task_manager(benchmark: Benchmark, include: Sequence[str]) -> Any:
    """Return what knows the files of a benchmark's tasks, and of those in further folders.

    Raises:
        MissingPackage: If lm-eval is not installed.
    """
    with needing(f"{benchmark.name}: lm-eval", '"aft-factory[eval]"'):
        import lm_eval.tasks
    places = [Path(name).absolute() for name in include]
    manager = lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)
    if is_one(benchmark.task, manager.task_index):
        return manager
    # To read all of its files takes longer than to load one of its tasks.
    folder = Path(lm_eval.tasks.__file__).parent / (benchmark.folder or "")
    places.insert(0, TASKS if benchmark.folder == "" else folder)
    return lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)


def _evaluate(
    benchmark: Benchmark,
    tasks: Mapping[str, Any],
    answer: Callable[[Sequence[Any]], list[str]],
    limit: int | None,
    bootstrap: int = 100_000,
) -> dict[str, Any]:
    """Have lm-eval ask for answers and score them."""
    import lm_eval
    from lm_eval.api.model import LM

    class Answers(LM):  # type: ignore[misc]
        """The model, as lm-eval has it."""

        tokenizer_name = "aft"

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            if not add_generation_prompt:
                raise UsageError(
                    f"{benchmark.name}: its requests end with the beginning of an answer "
                    "(gen_prefix), which a strategy cannot continue"
                )
            return json.dumps(chat_history)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answer(requests)

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise UsageError(f"{benchmark.name}: asks how likely given answers are")

        loglikelihood_rolling = loglikelihood

    random.seed(SEED)
    with contextlib.suppress(ImportError):
        from langdetect import DetectorFactory

        DetectorFactory.seed = SEED
    with _silenced(), explained(f"{benchmark.name}: lm-eval cannot run it", kind=True):
        results: dict[str, Any] = lm_eval.evaluate(
            *(Answers(), tasks, limit),
            bootstrap_iters=bootstrap,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    return results


def _query(benchmark: Benchmark, request: Any, copy: int, task: Any) -> Query:
    """Return what a request asks; its row has the answer, for who reads the drafts."""
    if len(request.args) != 2:
        raise UsageError(f"{request.task_name}: asks about more than text")
    context, asked = request.args
    name = f"{request.task_name}/{request.doc_id}" + (f"/{copy}" if copy else "")
    row = {"task": request.task_name, "doc_id": request.doc_id}
    if isinstance(answer := request.doc.get("answer"), str):
        row["answer"] = answer
    if any(one["metric"] == EXACT for one in task.get_config("metric_list") or ()):
        target = task.doc_to_target(request.doc)  # what it compares with
        if isinstance(target, str | int) and not task.get_config("doc_to_choice"):
            row["target"] = str(target)
    final = final_of(request.task_name, asked)
    return Query(f"{benchmark.name}/{name}", [json.loads(context)], row, final=final)


def final_of(task: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a task wants its answers decoded, as lm-eval's own servers of chat take it."""
    left = {key: value for key, value in asked.items() if key not in BUDGETS}
    until = left.pop("until", None) or []
    final = {"stop": [until] if isinstance(until, str) else list(until)}
    if not left.pop("do_sample", False):
        left["temperature"] = 0.0
    final |= {key: left.pop(key) for key in ("temperature", "top_p", "top_k") if key in left}
    if left:
        raise UsageError(f"{task}: its generation_kwargs have {', '.join(left)}, not known here")
    return final


def _tell_unused(benchmark: Benchmark, tasks: Mapping[str, Any]) -> None:
    for task in tasks["tasks"].values():
        asked = task.get_config("generation_kwargs")
        if told := [f"{key} {asked[key]}" for key in sorted(BUDGETS & set(asked))]:
            _log.info("%s: %s of the task is not used: --max-tokens", benchmark.name, told[0])
            return


def _scores(benchmark: Benchmark, results: Mapping[str, Any]) -> list[Score]:
    """Return the scores of a task, a group, or the several tasks of a tag."""
    n = sum(one["effective"] for one in results["n-samples"].values())
    found = results["results"]
    several = benchmark.task not in found
    scores = []
    for name in found if several else [benchmark.task]:
        for key in benchmark.metrics or found[name]:
            metric, _, by = key.partition(",")
            value = found[name].get(key)
            if not by or metric.endswith("_stderr") or isinstance(value, str) or value is None:
                continue
            error = found[name].get(f"{metric}_stderr,{by}")
            shown = f"{name}: {key}" if several else key
            known = None if error is None or isinstance(error, str) else float(error)
            scores.append(Score(shown, float(value), known, found[name].get("sample_len") or n))
    return scores


def _keep(results: dict[str, Any], where: Path) -> None:
    """Keep what lm-eval tells, in its own words: the results, and a line for each sample."""
    from lm_eval.utils import handle_non_serializable

    def text(content: Any, **shape: Any) -> str:
        return json.dumps(content, default=handle_non_serializable, ensure_ascii=False, **shape)

    samples = results.pop("samples")
    lines = [text({"task": name, **sample}) for name, found in samples.items() for sample in found]
    encoded = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    write_whole(where / "samples.jsonl", encoded)
    write_whole(where / "lm_eval.json", text(results, indent=2).encode("utf-8", "backslashreplace"))


def _digest(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the hash of the questions, by those that lm-eval has for each."""
    digest = hashlib.sha256()
    for name, found in samples.items():
        for sample in {sample["doc_id"]: sample for sample in found}.values():
            digest.update(f"{name} {sample['doc_id']} {sample['doc_hash']}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep a harness's bars from the terminal; what it warns of is shown."""
    shown = logging.StreamHandler(sys.stderr)
    # That our files of tasks go before its own is meant.
    shown.addFilter(lambda record: record.name != "lm_eval.tasks._index")
    logger = logging.getLogger("lm_eval")
    logger.addHandler(shown)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.removeHandler(shown)

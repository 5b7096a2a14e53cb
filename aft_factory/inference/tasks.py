"""Benchmarks: from a row of their own layout to a query, and from answers to their own output.

Pure; reads and writes no file.

| task | row | output row | read by |
| --- | --- | --- | --- |
| `records` | what `record_from_row` reads | (the run's own) | |
| `alpaca_eval` | instruction, or query | dataset, instruction, output, generator | `alpaca_eval` |
| `mt_bench` | question_id, category, turns | FastChat's `model_answer` | `gen_judgment.py` |
| `gsm8k` | question, answer | question, answer, response, extracted, correct | |
| `ifeval` | key, prompt | prompt, response | `evaluation_main` of google-research |

    read: {"question_id": 81, "category": "writing", "turns": ["Compose ...", "Rewrite ..."]}
    write: {"question_id": 81, "answer_id": "s6Xz...", "model_id": "aft",
            "choices": [{"index": 0, "turns": ["Aloha ...", "A ..."]}], "tstamp": 0.0}
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from aft_factory.errors import RecordError
from aft_factory.inference.answers import extract_number, is_correct
from aft_factory.inference.queries import Query, read_record
from aft_factory.records.fields import LIST, OBJECT, kind, known, names_of, optional_text, parse_id
from aft_factory.records.layouts import read_query
from aft_factory.records.leftovers import refuse_leftovers
from aft_factory.records.messages import Message, parse_messages
from aft_factory.records.record import PROPOSAL_KEYS, Row, content_id
from aft_factory.records.tables import FORMATS

# FastChat's `temperature_config`; it takes the default for other categories.
MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
MT_BENCH_DEFAULT_TEMPERATURE = 0.7
GREEDY = {"temperature": 0.0, "top_p": 1.0}  # OpenCompass, of GSM8K and IFEval


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark's layouts.

    Attributes:
        read_row: Row to query; raises RecordError for a row it cannot use.
        columns: What it reads, for messages.
        known_columns: What its rows may hold; for `records` that is not known.
        taken: Columns of other answers, which its scorer would take for the run's own.
        write_row: (query, the answer of each turn, name of the model) to a row of the benchmark's
            output file; None where it has none of its own.
        suffixes: What its output file may end in.
        decoding: How the benchmark decodes final answers; a query's own `final` goes before.
        unread: From a row that `read_row` refuses to a query that `write_row` can name: None where
            that by which the scorer knows the row is missing.
        is_right: Whether the answers to a query are right, where that can be told here.
    """

    read_row: Callable[[Any], Query]
    write_row: Callable[[Query, list[str], str], Row] | None
    suffixes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    decoding: Mapping[str, Any] = field(default_factory=dict)
    unread: Callable[[Any], Query | None] = lambda _: None
    is_right: Callable[[Query, list[str]], bool] | None = None
    taken: tuple[str, ...] = ()
    known_columns: frozenset[str] = frozenset()


def read_as(name: str, row: Any) -> Query:
    """Read a row of a task; where it lacks a column, the error tells those of both."""
    task = TASKS[name]
    try:
        return task.read_row(row)
    except RecordError as error:
        if not isinstance(row, OBJECT) or all(column in row for column in task.columns):
            raise
        told = f"{name} reads {', '.join(task.columns)}; the row has: {names_of(row)}"
        raise RecordError(error.field, f"{error.problem}; {told}") from None


def detect_task(row: Any) -> str:
    """Name the task whose layout a row has, by its keys; `records` where it has no other.

    Many rows have a question and an answer: they are a benchmark's where they have nothing else,
    or an answer that ends as GSM8K's do.
    """
    keys = set(row) if isinstance(row, OBJECT) else set()
    if {"question_id", "turns"} <= keys:
        turns = row["turns"]
        if not isinstance(turns, LIST) or all(isinstance(turn, str) for turn in turns):
            return "mt_bench"  # Arena-Hard has objects in the place of texts: a record
    if {"key", "prompt", "instruction_id_list"} <= keys:
        return "ifeval"
    if {"question", "answer"} <= keys and not keys & set(PROPOSAL_KEYS):
        last = str(row["answer"]).rstrip().rpartition("\n")[2]
        if keys <= TASKS["gsm8k"].known_columns or last.startswith("#### "):
            return "gsm8k"
    is_eval = "instruction" in keys and keys & {"dataset", "generator"}
    if is_eval and keys <= TASKS["alpaca_eval"].known_columns:
        return "alpaca_eval"
    return "records"


def read_alpaca_eval(row: Any) -> Query:
    """Read a row of AlpacaEval: its `instruction`, or the AFT authors' `query`."""
    name = "instruction" if "instruction" in _object(row) else "query"
    parse_messages(row.get(name), name)
    messages = read_query(row).messages
    if [message["role"] for message in messages] not in (["user"], ["system", "user"]):
        raise RecordError(name, f"expected one instruction, got {len(messages)} messages")
    return Query(_id(row, messages), [messages], row)


def write_alpaca_eval(query: Query, answers: list[str], model: str) -> Row:
    """Make a row of AlpacaEval's `model_outputs.json`."""
    dataset = {"dataset": query.row["dataset"]} if "dataset" in query.row else {}
    instruction = query.turns[0][-1]["content"]
    return dataset | {"instruction": instruction, "output": answers[0], "generator": model}


def read_mt_bench(row: Any) -> Query:
    """Read a question of MT-Bench, or of another bench in FastChat's layout."""
    name = _name(row, "question_id")
    turns = row.get("turns")
    if not isinstance(turns, LIST) or isinstance(turns, str) or not turns:
        raise RecordError("turns", f"expected a list of texts, got {kind(turns)}")
    queries = [_user_message(turn, f"turns[{index}]") for index, turn in enumerate(turns)]
    refuse_leftovers(row, turns, ["turns"])
    category = optional_text(row.get("category"), "category")
    temperature = MT_BENCH_TEMPERATURES.get(category or "", MT_BENCH_DEFAULT_TEMPERATURE)
    if (required := known(row.get("required_temperature"))) is not None:
        temperature = required
        if type(temperature) not in (int, float) or not 0 <= temperature <= 10:
            problem = f"expected a number from 0 to 10, got {kind(temperature)}"
            raise RecordError("required_temperature", problem)
    return Query(name, queries, row, final={"temperature": float(temperature)})


def write_mt_bench(query: Query, answers: list[str], model: str) -> Row:
    """Make a line of FastChat's `model_answer/MODEL.jsonl`.

    Where FastChat takes chance and the clock, for `answer_id` and `tstamp`, this takes a hash and
    0.0: a repeated run writes the same file. Neither judging nor `show_result.py` reads them.
    """
    question_id = query.row["question_id"]
    content = orjson.dumps([question_id, answers, model])
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return {
        "question_id": question_id,
        "answer_id": base64.urlsafe_b64encode(digest).decode().rstrip("="),
        "model_id": model,
        "choices": [{"index": 0, "turns": answers}],
        "tstamp": 0.0,
    }


def read_gsm8k(row: Any) -> Query:
    """Read a problem of GSM8K. The question is the query as it stands."""
    _user_message(_object(row).get("question"), "question")
    messages = read_query(row).messages
    answer = optional_text(row.get("answer"), "answer")
    if answer is None or extract_number(answer) is None:
        raise RecordError("answer", f"expected a text with a number, got {kind(answer)}")
    return Query(_id(row, messages), [messages], row)


def write_gsm8k(query: Query, answers: list[str], model: str) -> Row:
    """Make a row with the response and its verdict."""
    return {
        "question": query.row["question"],
        "answer": query.row.get("answer"),
        "response": answers[0],
        "extracted": extract_number(answers[0]),
        "correct": is_right_gsm8k(query, answers),
    }


def is_right_gsm8k(query: Query, answers: list[str]) -> bool:
    """Tell whether a problem of GSM8K is solved; without an answer it is not."""
    return bool(answers and answers[0]) and is_correct(answers[0], query.row["answer"])


def read_ifeval(row: Any) -> Query:
    """Read a prompt of IFEval. Its instructions are for the scorer, which reads them itself."""
    name = _name(row, "key")
    _user_message(row.get("prompt"), "prompt")
    return Query(name, [read_query(row).messages], row)


def write_ifeval(query: Query, answers: list[str], model: str) -> Row:
    """Make a row of google-research's `input_response_data`; it finds answers by the prompt."""
    return {"prompt": query.row["prompt"], "response": answers[0]}


def unread_alpaca_eval(row: Any) -> Query | None:
    """Return `Task.unread` of AlpacaEval: by its instruction, as an answered row has it."""
    if not isinstance(row, OBJECT):
        return None
    name = "instruction" if "instruction" in row else "query"
    try:
        messages = read_query({key: row[key] for key in (name, "input") if key in row}).messages
    except RecordError:
        return unread(name)(row)
    return Query("", [messages], dict(row))


def unread(key: str) -> Callable[[Any], Query | None]:
    """Return `Task.unread` of a benchmark whose scorer knows a row by the text of this key."""

    def stand_in(row: Any) -> Query | None:
        text = row.get(key) if isinstance(row, OBJECT) else None
        said = [[Message(role="user", content=text)]] if isinstance(text, str) else None
        return None if said is None else Query("", said, row)

    return stand_in


def unread_mt_bench(row: Any) -> Query | None:
    """Return `Task.unread` of MT-Bench: by its id, with as many turns as it has."""
    try:
        name = _name(row, "question_id")
    except RecordError:
        return None
    turns = row.get("turns")
    count = len(turns) if isinstance(turns, LIST) and not isinstance(turns, str) else 1
    return Query(name, [[] for _ in range(max(count, 1))], row)


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, OBJECT):
        raise RecordError("row", f"expected an object, got {kind(row)}")
    return row


def _name(row: Any, field: str) -> str:
    name = parse_id(_object(row).get(field), field)
    if not name:
        raise RecordError(field, "missing; expected a text or a whole number")
    return name


def _id(row: Mapping[str, Any], messages: list[Message]) -> str:
    """The row's own id, or a hash of what it asks."""
    return parse_id(row.get("id"), "id") or content_id(messages, [])


def _user_message(value: Any, field: str) -> list[Message]:
    if not isinstance(value, str):
        raise RecordError(field, f"expected a text, got {kind(value)}")
    return parse_messages(value, field)  # refuses a blank one


# Read into the query beside the text that a benchmark has it in.
_BESIDE = {"id", "input", "system", "system_prompt", "history"}
_ALPACA_EVAL = {"instruction", "query", "output", "generator", "dataset", "datasplit", "index"}
TASKS = {
    "records": Task(read_record, None, FORMATS),
    "alpaca_eval": Task(
        *(read_alpaca_eval, write_alpaca_eval, (".json",), ("instruction",)),
        taken=("output", "generator"),
        unread=unread_alpaca_eval,
        known_columns=frozenset(_ALPACA_EVAL | _BESIDE),
    ),
    # Beside the temperature of the category: FastChat cuts no tail off.
    "mt_bench": Task(
        *(read_mt_bench, write_mt_bench, (".jsonl",), ("question_id", "turns"), {"top_p": 1.0}),
        unread=unread_mt_bench,
        known_columns=frozenset(
            {"question_id", "category", "turns", "reference", "required_temperature"}
        ),
    ),
    "gsm8k": Task(
        *(read_gsm8k, write_gsm8k, FORMATS, ("question", "answer"), GREEDY),
        unread=unread("question"),
        is_right=is_right_gsm8k,
        known_columns=frozenset({"question", "answer"} | _BESIDE),
    ),
    "ifeval": Task(
        *(read_ifeval, write_ifeval, (".jsonl",), ("key", "prompt"), GREEDY),
        unread=unread("prompt"),
        known_columns=frozenset({"key", "prompt", "instruction_id_list", "kwargs"} | _BESIDE),
    ),
}

"""The plugin in LLaMA-Factory's new engine (v1): samples, options, errors.

Run: pytest tests/plugin/test_plugin_v1.py
"""

import inspect
import json
import logging

import pytest

from aft_factory.errors import UsageError
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.selection import PAPER, Aggregation, conversation
from aft_factory.records.record import record_from_row

ROW = {
    "query": "How many pails?",
    "proposals": ["alpha", "beta <|eot_id|>", "gamma"],
    "aggregation": "Six.<|eot_id|>",
}


def data_engine(folder, rows, **entry):
    """Return LLaMA-Factory's own engine over rows, under a data set entry."""
    from llamafactory.v1.config.data_args import DataArguments
    from llamafactory.v1.core.data_engine import DataEngine

    data = folder / "drafts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"path": str(data), "source": "local", "converter": "aggregation"} | entry
    info = folder / "data.yaml"
    info.write_text(json.dumps({"drafts": entry}))  # JSON is YAML
    if "data_args" in inspect.signature(DataEngine).parameters:  # 0.9.4
        return DataEngine(DataArguments(dataset=str(info)))
    return DataEngine(str(info))


def expected(row, options=PAPER):
    """The sample as `aft_factory.prompts` has it: only the answer is trained on."""
    record = record_from_row(row)
    answer = known_markers().sanitise(record.aggregation)
    turns = [*conversation(record, options), {"role": "assistant", "content": answer}]
    return {
        "_dataset_name": "drafts",
        "messages": [
            {
                "role": turn["role"],
                "content": [{"type": "text", "value": turn["content"]}],
                "loss_weight": float(turn is turns[-1]),
            }
            for turn in turns
        ],
    }


def test_samples_are_the_prompts_of_the_project(tmp_path):
    rows = [ROW, {"query": "No drafts?", "proposals": [], "aggregation": "None."}]
    engine = data_engine(tmp_path, rows)
    assert [engine[i] for i in range(len(engine))] == [expected(row) for row in rows]
    assert "beta <\u200b|eot_id|>" in engine[0]["messages"][0]["content"][0]["value"]
    assert engine[0]["messages"][-1]["content"][0]["value"] == "Six.<\u200b|eot_id|>"


def test_options_and_renamed_columns_reach_the_sample(tmp_path):
    row = {"ask": "How many pails?", "drafts": ["alpha", "beta", "gamma"], "best": "Six."}
    columns = {"messages": "ask", "proposals": "drafts", "aggregation": "best"}
    options = {"template": "moa", "max_proposals": 2}
    (sample,) = data_engine(tmp_path, [row], columns=columns, aggregation=options)[:]
    usual = {"query": row["ask"], "proposals": row["drafts"], "aggregation": row["best"]}
    assert sample == expected(usual, Aggregation(**options))
    assert sample["messages"][0]["content"][0]["value"].endswith("2. beta")


def test_a_thought_that_was_kept_is_reasoning(tmp_path):
    row = ROW | {"aggregation_thought": " 5 + 1 <|eot_id|>\n"}
    (sample,) = data_engine(tmp_path, [row])[:]
    answer = sample["messages"].pop()
    assert answer.pop("content") == [
        {"type": "reasoning", "value": "5 + 1 <\u200b|eot_id|>"},
        {"type": "text", "value": "Six.<\u200b|eot_id|>"},
    ]
    assert answer == {"role": "assistant", "loss_weight": 1.0}


def test_sft_trains_on_the_best_response(tmp_path):
    row = ROW | {"scores": [1, 3, 2], "aggregation_thought": "of another answer"}
    (sample,) = data_engine(tmp_path, [row], aggregation={"ablation": "sft"})[:]
    plain = {"query": row["query"], "proposals": [], "aggregation": row["proposals"][1]}
    assert sample == expected(plain)


def test_rows_that_cannot_be_trained_on_are_left_out_and_told_once(tmp_path, monkeypatch):
    logged = []
    logger = logging.getLogger("llamafactory.v1.core.data_engine")
    monkeypatch.setattr(logger, "handle", lambda record: logged.append(record.getMessage()))
    rows = [ROW, ROW | {"aggregation": None}, ROW | {"query": ""}, ROW | {"aggregation": " "}, ROW]
    engine = data_engine(tmp_path, rows)
    assert [engine[i] for i in range(len(engine))] == [expected(ROW)] * 2
    first = "The first: data set 'drafts', row"
    assert [line[: line.find(":", 100)] for line in logged] == [
        f"aft-factory: left out 2 of 5 rows because of their aggregation. {first} 2, column "
        "aggregation",
        f"aft-factory: left out 1 of 5 rows because of their query. {first} 3, column query",
    ]


def test_a_data_set_of_a_size_has_it_though_rows_are_left_out(tmp_path):
    engine = data_engine(tmp_path, [ROW, ROW | {"aggregation": None}], size=4)
    assert [engine[i] for i in range(len(engine))] == [expected(ROW)] * 4


def test_a_wrong_column_is_one_error_with_data_set_row_and_column(tmp_path):
    message = (
        r"^data set 'drafts': none of its 1 rows can be trained on. The first: row 1, "
        r"column drafts: no such column; the row has: "
    )
    with pytest.raises(UsageError, match=message):
        data_engine(tmp_path, [ROW | {"id": "r7"}], columns={"proposals": "drafts"})


def test_a_wrong_option_is_one_error_with_data_set_and_key(tmp_path):
    message = r"^data set 'drafts': aggregation.tempalte: unknown option"
    with pytest.raises(UsageError, match=message):
        data_engine(tmp_path, [ROW], aggregation={"tempalte": "moa"})


def test_other_converters_are_left_alone(tmp_path):
    row = {"instruction": "How many?", "output": "Six."}
    (sample,) = data_engine(tmp_path, [row], converter="alpaca")[:]
    assert [turn["role"] for turn in sample["messages"]] == ["user", "assistant"]

"""`aft eval --compare`: evaluations side by side, and which differences chance may have made."""

import csv
import json

import pytest

from aft_factory.evaluate.__main__ import main


def write(folder, *, value=50.0, error=1.0, metric="exact_match,flexible", data="abc", **more):
    one = {
        "benchmark": "gsm8k",
        "metrics": [
            {"metric": metric, "value": value, "error": error, "error_over": "questions"}
            | {"n": 10, "runs": [value]}
        ],
        "of": 10,
        "missing": [0],
        "unjudged": [0],
        "harness": "lm-eval 0.4.13",
        "task": "gsm8k_cot_zeroshot",
        "task_version": "3.0",
        "data": data,
        "strategy": "propose_and_aggregate",
        "options": {"width": 5, "layers": 1},
        "tokens": {"requests": 20, "prompt": 999, "completion": 1234, "thought": None},
        "flops": {"exact": 1.5e15},
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"benchmarks": [one | more]}))
    return str(folder)


def compared(capsys, *folders):
    assert main(["--compare", *folders]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ({"value": 52.7}, "52.70 ± 1.00 ~"),  # two standard errors of the difference are 2.83
        ({"value": 52.9}, "52.90 ± 1.00"),
        ({"value": 52.7, "error": None}, "52.70"),
        ({"value": 52.9, "data": "xyz"}, "52.90 ± 1.00 !"),
        ({"value": 52.9, "missing": [3]}, "52.90 ± 1.00 !"),
        ({"value": 52.9, "unjudged": [1]}, "52.90 ± 1.00 !"),
        ({"value": 52.9, "harness": "lm-eval 0.5.0"}, "52.90 ± 1.00 !"),
        ({"value": 52.9, "task_version": "4.0"}, "52.90 ± 1.00 !"),
        ({"value": 52.9, "judge": "another"}, "52.90 ± 1.00 !"),
        ({"metric": "other"}, "-"),
    ],
)
def test_a_difference_that_chance_may_have_made_is_marked(tmp_path, capsys, other, shown):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", **other)
    head, one, two, *_ = compared(capsys, first, second)
    assert head.split() == ["gsm8k", "exact_match"] + (["gsm8k", "other"] if shown == "-" else [])
    assert one.removeprefix(first).strip().startswith("50.00 ± 1.00")
    cell = two.removeprefix(second).strip()
    assert cell == shown if shown != "-" else cell.startswith("-")


def test_what_it_took_stands_below(tmp_path, capsys):
    tokens = {"requests": 30, "prompt": 1, "completion": 5678, "thought": 4321}
    second = write(tmp_path / "b", tokens=tokens)
    lines = compared(capsys, write(tmp_path / "a"), second)
    assert lines[-3].split() == [
        *("benchmark", "strategy", "requests", "tokens", "written", "thought", "FLOPs")
    ]
    strategy = ("gsm8k", "propose_and_aggregate", "K=5", "L=1")
    assert lines[-2].split()[1:] == [*strategy, "20", "1,234", "?", "1.5e+15"]
    assert lines[-1].split()[1:] == [*strategy, "30", "5,678", "4,321", "1.5e+15"]


def test_the_numbers_go_to_a_csv_a_row_a_metric(tmp_path, capsys):
    folders = write(tmp_path / "a"), write(tmp_path / "b", value=52.7, missing=[3])
    table = tmp_path / "both.csv"
    assert main(["--compare", *folders, "--csv", str(table)]) == 0
    with table.open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first["run"] == folders[0]
    assert float(first["value"]) == 50
    assert (first["n"], first["of"], first["mark"], first["thought"]) == ("10", "10", "", "")
    assert (second["value"], second["missing"], second["mark"]) == ("52.7", "3", "!")
    assert (second["width"], second["layers"], second["completion"]) == ("5", "1", "1234")
    table.write_text("of another")
    capsys.readouterr()
    assert main(["--compare", *folders, "--csv", str(table)]) == 2
    out, err = capsys.readouterr()
    assert (out, "both.csv exists; pass --overwrite" in err) == ("", True)
    assert table.read_text() == "of another"
    assert main(["--compare", *folders, "--csv", str(table), "--overwrite"]) == 0
    assert table.read_text().startswith("run,")


def test_a_csv_of_nothing_is_refused(tmp_path, capsys):
    assert main(["gsm8k", "--scripted", "--csv", str(tmp_path / "x.csv")]) == 2
    assert "csv: of what --compare prints" in capsys.readouterr().err


def test_a_folder_without_results_is_told(tmp_path, capsys):
    assert main(["--compare", str(tmp_path)]) == 2
    assert "has this evaluation ended?" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    assert main(["--compare", str(tmp_path)]) == 2
    assert "not the results of an evaluation" in capsys.readouterr().err

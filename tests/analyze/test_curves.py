"""`aft analyze curves`. Run: pytest tests/analyze/test_curves.py"""

import csv
import json
import math

import pytest

from aft_factory.analyze.__main__ import main
from aft_factory.analyze.curves import fluctuation, smoothed
from aft_factory.analyze.named import named
from aft_factory.analyze.training_log import read_log
from aft_factory.errors import UsageError


def write_log(folder, entries, name="trainer_log.jsonl"):
    """Write a log as LLaMA-Factory does, NaN included."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def logged(*losses, first=1):
    return [
        {"current_steps": step, "total_steps": 9, "loss": loss, "lr": 1e-4}
        for step, loss in enumerate(losses, start=first)
    ]


def table(path):
    return list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))


def test_the_moving_average_has_no_bias_of_its_start():
    assert smoothed([2.0, 4.0], 0.5) == pytest.approx([2.0, (0.5 * 1.0 + 0.5 * 4.0) / 0.75])
    assert smoothed([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0] * 3)
    assert smoothed([1.0, 5.0], 0.0) == [1.0, 5.0]


def test_a_fluctuation_is_about_the_course_whatever_that_is():
    assert fluctuation([3.0, 2.0, 3.0, 2.0]) == pytest.approx(math.sqrt(3 / 6))
    assert fluctuation([1.0, 1.0, 1.0]) == 0
    assert fluctuation([1.0]) is None
    # a steep straight line counts its own slope only: 0.1 a step
    assert fluctuation([1 - i / 10 for i in range(10)]) == pytest.approx(0.1 / math.sqrt(2))


def test_every_number_of_the_plot_is_in_its_csv(tmp_path, capsys):
    sft = write_log(tmp_path / "sft", logged(3.0, 2.0, 1.5))
    aft = write_log(tmp_path / "aft", [*logged(2.0, 1.0), {"current_steps": 3, "eval_loss": 1.0}])
    output = tmp_path / "curves.png"
    assert main(["curves", sft, f"mine={aft}", "--output", str(output), "--smoothing", "0.5"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    svg = output.with_suffix(".svg").read_text()
    rows = table(output)
    assert [(row["run"], row["step"], row["loss"]) for row in rows] == [
        ("sft", "1", "3.0"), ("sft", "2", "2.0"), ("sft", "3", "1.5"), ("mine", "1", "2.0"), ("mine", "2", "1.0")
    ]  # fmt: skip
    assert {row["smoothing"] for row in rows} == {"0.5"}
    assert float(rows[1]["smoothed"]) == pytest.approx((0.5 * 1.5 + 0.5 * 2.0) / 0.75)
    assert float(rows[0]["fluctuation"]) == pytest.approx(math.sqrt(1.25 / 4))
    assert "fluctuation 0.559" in svg
    assert "0.559" in capsys.readouterr().out


def test_steps_that_a_resumed_training_logged_again_count_once(tmp_path, caplog):
    entries = [*logged(5.0, 4.0, 3.0, 2.5), *logged(2.9, 2.4, 2.0, first=3)]
    log = read_log(tmp_path / write_log(tmp_path / "run", entries))
    assert (log.steps, log.losses) == ([1, 2, 3, 4, 5], [5.0, 4.0, 2.9, 2.4, 2.0])
    assert log.left_out == ["2 steps that a resumed training logged again"]
    # started anew from the first step: nothing of the one before counts
    entries = [*logged(5.0, 4.0, 3.0), *logged(9.0)]
    assert read_log(tmp_path / write_log(tmp_path / "anew", entries)).losses == [9.0]


def test_nan_and_broken_lines_are_left_out_and_counted(tmp_path, caplog):
    entries = [
        *logged(3.0, math.nan, 2.0, math.inf),
        '{"current_steps": 5, "lo',
        *logged(1.0, first=6),
    ]
    folder = write_log(tmp_path / "run", entries)
    assert main(["curves", folder, "--output", str(tmp_path / "c.png")]) == 0
    assert "2 steps whose loss is not finite" in caplog.text
    assert "1 lines that are no JSON" in caplog.text
    assert [row["step"] for row in table(tmp_path / "c.png")] == ["1", "3", "6"]


@pytest.mark.parametrize("name", ["trainer_state.json", "checkpoint-9/trainer_state.json"])
def test_a_state_does_where_there_is_no_log(tmp_path, name):
    state = {
        "log_history": [
            {"step": 5, "loss": 2.0},
            {"step": 10, "loss": 1.0},
            {"step": 10, "train_loss": 1.5},
        ]
    }
    for folder, loss in (("checkpoint-10", 1.0), ("checkpoint-9", 7.0)):
        path = tmp_path / folder / "trainer_state.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"log_history": [{"step": 1, "loss": loss}]}))
    if name == "trainer_state.json":
        (tmp_path / name).write_text(json.dumps(state))
        assert read_log(tmp_path).losses == [2.0, 1.0]
    else:
        assert read_log(tmp_path).losses == [1.0]  # of the newest, by number
        assert read_log(tmp_path / name).losses == [7.0]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([], "no trainer_log.jsonl and no trainer_state.json with anything in it"),
        ([{"current_steps": 1, "eval_loss": 2.0}], "no step with a finite loss"),
        (logged(math.nan), "no step with a finite loss"),
    ],
)
def test_a_log_without_a_loss_is_an_error_that_names_it(tmp_path, capsys, entries, problem):
    good = write_log(tmp_path / "good", logged(1.0))
    folder = write_log(tmp_path / "bad", entries)
    assert main(["curves", good, folder, "--output", str(tmp_path / "c.png")]) == 2
    error = capsys.readouterr().err
    assert folder in error
    assert problem in error
    assert not (tmp_path / "c.png").exists()


def test_runs_that_were_logged_at_other_intervals_are_told(tmp_path, caplog):
    a = write_log(tmp_path / "a", logged(3.0, 2.0, 1.0))
    b = write_log(tmp_path / "b", [{"current_steps": 10 * i, "loss": 1.0} for i in (1, 2, 3)])
    assert main(["curves", a, b, "--output", str(tmp_path / "c.png")]) == 0
    assert "logged every 1 and 10 steps" in caplog.text


def test_the_usual_weight_is_llamafactorys_for_the_longest_run(tmp_path):
    runs = [
        write_log(tmp_path / name, logged(*[1.0] * count)) for name, count in (("a", 3), ("b", 40))
    ]
    assert main(["curves", *runs, "--output", str(tmp_path / "c.png")]) == 0
    expected = 1.8 * (1 / (1 + math.exp(-0.05 * 40)) - 0.5)
    for row in table(tmp_path / "c.png"):
        assert float(row["smoothing"]) == pytest.approx(expected)


def test_names_are_given_or_the_end_of_the_path(tmp_path):
    assert list(named(["a/sft", "b/sft", "c/aft", "x=d"])) == ["a/sft", "b/sft", "aft", "x"]
    with pytest.raises(UsageError, match="two have the name 'x'"):
        named(["x=a", "x=b"])


def test_what_cannot_be_meant_is_refused(tmp_path, capsys):
    folder = write_log(tmp_path / "run", logged(1.0))
    for words, problem in (
        (["--output", "c.pdf"], "expected a name that ends in .png"),
        (
            ["--output", "c.png", "--smoothing", "1"],
            "smoothing: expected a number from 0 to below 1",
        ),
        (["--output", "c.png", "--metric", "nll"], "--metric"),
    ):
        try:
            code = main(["curves", folder, *words])
        except SystemExit as left:
            code = left.code
        assert code == 2
        assert problem in capsys.readouterr().err
    (tmp_path / "old.csv").write_text("old")
    assert main(["curves", folder, "--output", str(tmp_path / "old.png")]) == 2
    assert "old.csv exists; pass --overwrite" in capsys.readouterr().err


def test_an_unknown_analysis_is_suggested(capsys):
    assert main(["curve"]) == 2
    assert "did you mean 'curves'?" in capsys.readouterr().err
    assert main([]) == 2

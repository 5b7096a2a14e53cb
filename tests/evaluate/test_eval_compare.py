"""`aft eval --compare`: evaluations side by side, and which differences chance may have made."""

import json

import pytest

from aft_factory.evaluate.__main__ import main


def write(folder, *, value=50.0, error=1.0, metric="exact_match,flexible", data="abc", **more):
    one = {
        "benchmark": "gsm8k",
        "metrics": [{"metric": metric, "value": value, "error": error, "n": 10, "runs": [value]}],
        "of": 10,
        "missing": [0],
        "data": data,
        "strategy": "propose_and_aggregate",
        "options": {"width": 5, "layers": 1},
        "tokens": {"requests": 20, "completion": 1234},
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
    lines = compared(capsys, write(tmp_path / "a"))
    assert lines[-1].split()[1:] == [
        *("gsm8k", "propose_and_aggregate", "K=5", "L=1", "20", "1,234", "1.5e+15")
    ]


def test_a_folder_without_results_is_told(tmp_path, capsys):
    assert main(["--compare", str(tmp_path)]) == 2
    assert "has this evaluation ended?" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    assert main(["--compare", str(tmp_path)]) == 2
    assert "not the results of an evaluation" in capsys.readouterr().err

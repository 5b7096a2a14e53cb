"""How the scores of a ranking spread, in a table. Run: pytest tests/rank/test_spread.py"""

import json

import pytest
from asking_tools import write_lines

from aft_factory.rank.__main__ import main
from aft_factory.rank.spread import Spread


def test_a_ranking_ends_with_the_range_of_its_scores_and_the_ties(tmp_path, capsys):
    texts = [["a", "bbb"], ["cc", "dd", "e"], ["f", "g"], ["only one"], ["", ""]]  # by length
    rows = [{"query": f"{i}?", "proposals": drafts} for i, drafts in enumerate(texts)]
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    argv = [str(source), "--output", str(output), "--scripted", "--quiet", "--top-k", "1"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("scores"))
    assert lines[start:-1] == [
        "scores      count    lowest    median      mean   highest",
        "  all           8         1       1.5     2.375         8",
        "  kept          4         1       2.5       3.5         8",
        "  best          4         1       2.5       3.5         8",
        "  worst         4         1         1      2.75         8",
        "ties: the best score is that of several proposals in 2 of 3 rows (66.7%), and of all in 1",
    ]
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["ties"] == {"rows": 3, "best_tied": 2, "all_equal": 1}
    assert summary["scores"]["kept"]["highest"] == 8


@pytest.mark.parametrize(("rows", "lines"), [([], 0), ([[1.0]], 5), ([[]], 0), ([[1.0, 2.0]], 6)])
def test_nothing_is_told_of_what_there_is_not(rows, lines):
    spread = Spread()
    for scores in rows:
        spread.add(scores, scores)
    assert len(spread.describe()) == lines

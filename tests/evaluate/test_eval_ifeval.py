"""IFEval through `aft eval`: verdicts equal those of google-research's own code, on every prompt."""

import json

import pytest
from evaluate_tools import write_rows
from ifeval_tools import ifeval_answer, needs_punkt
from shared_data import SAMPLES

from aft_factory.evaluate import lm_harness
from aft_factory.evaluate.benchmarks import BENCHMARKS
from aft_factory.evaluate.settings import EvalSettings

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "aft-factory[eval]"')


@needs_punkt
def test_verdicts_are_those_of_googles_own_code(tmp_path, real):
    """Its verdicts on the same answers, strict and loose, are kept by the prompts' keys."""
    kept = json.loads((SAMPLES / "ifeval_verdicts.json").read_text(encoding="utf-8"))
    rows = real.rows("ifeval_input_data.jsonl")
    verdicts = [kept[str(row["key"])] for row in rows]
    data = {"ifeval": write_rows(tmp_path / "ifeval.jsonl", rows)}
    part = lm_harness.prepare(BENCHMARKS["ifeval"], EvalSettings(data=data), tmp_path)
    scores = part.score([[ifeval_answer(row)] for row in rows], tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = {one["doc"]["key"]: one for one in map(json.loads, lines)}
    for row, pair in zip(rows, verdicts, strict=True):
        for how, text in zip(("strict", "loose"), pair, strict=True):
            own = samples[row["key"]][f"inst_level_{how}_acc"]
            assert "".join(str(int(one)) for one in own) == text, (row, how)
    by_how = [[pair[number] for pair in verdicts] for number in (0, 1)]
    assert {score.metric: score.value for score in scores} == pytest.approx(
        {
            name: share
            for how, texts in zip(("strict", "loose"), by_how, strict=True)
            for name, share in (
                (f"prompt_level_{how}_acc,none", sum("0" not in t for t in texts) / len(texts)),
                (f"inst_level_{how}_acc,none", "".join(texts).count("1") / len("".join(texts))),
            )
        }
    )
    assert {score.n for score in scores} == {len(rows)}

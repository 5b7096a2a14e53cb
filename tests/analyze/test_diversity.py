"""`aft analyze diversity`. Run: pytest tests/analyze/test_diversity.py"""

import csv
import itertools
import json
import math
from statistics import fmean

import pytest
from evaluate_tools import answering, asked

from aft_factory.analyze import subsets
from aft_factory.analyze.__main__ import main
from aft_factory.analyze.diversity import numbers, ranked, ranks
from aft_factory.analyze.vendi import vendi_scores
from aft_factory.engines.engine import EngineError
from aft_factory.inference.scoring import Longest

QUERIES = [{"id": f"q{i}", "query": f"Question {i}?"} for i in range(3)]


@pytest.fixture
def analyze(tmp_path, monkeypatch):
    """Run the analysis of three queries, 3 of 4 drafts; return its rows and those of the plot's CSV."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUERIES))

    def run(*words, expect=0):
        common = ["--output", "out.jsonl", "--quiet"]
        if "--export" not in words:
            common += ["--scripted", "--samples", "4", "--subset", "3"]
        assert main(["diversity", "queries.jsonl", *words, *common]) == expect
        if expect or "--dry-run" in words:
            return None
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        table = tmp_path / "out.csv"
        cells = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
        return rows, cells

    return run


def drafts_and_sums(request):
    """Drafts of 1 to 4 words; an aggregation is as many words as its drafts have together."""
    told = request.prompt[0]["content"]
    if request.prompt[0]["role"] != "system":
        return " ".join(f"w{request.seed}x{i}" for i in range(1 + request.seed % 4))
    return " ".join(["w"] * told.count("x"))


# Numbers


def test_a_vendi_score_is_1_of_equal_texts_and_k_of_k_that_share_nothing():
    texts = ["a b c d e", "a b c d e", "v w x y z", "k l m n o"]
    found = vendi_scores(texts, [(0, 1), (0, 2), (0, 2, 3), (0, 1, 2), (0, 1, 2, 3)])
    half = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    last = math.exp(-(1 / 2 * math.log(1 / 2) + 2 * 1 / 4 * math.log(1 / 4)))
    assert found == pytest.approx([1, 2, 3, half, last])


def test_a_vendi_score_of_two_follows_from_their_likeness():
    # 1-grams: 3 of 4 alike, cosine 3/4; 2-grams 2/3; 3-grams 1/2; 4-grams 0.
    s = fmean([3 / 4, 2 / 3, 1 / 2, 0])
    p, q = (1 + s) / 2, (1 - s) / 2
    [found] = vendi_scores(["a b c d", "a b c e"], [(0, 1)])
    assert found == pytest.approx(math.exp(-p * math.log(p) - q * math.log(q)))


def test_texts_too_short_for_an_n_gram_are_like_their_equals_only():
    assert vendi_scores(["a", "a", "b", ""], [(0, 1), (0, 2), (0, 3)]) == pytest.approx([1, 2, 2])
    assert vendi_scores(["", ""], [(0, 1)]) == pytest.approx([1])


def test_likeness_can_be_that_of_an_encoders_embeddings(tiny_llama, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(tmp_path)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    texts = ["Five pails of water.", "Five pails of water.", "7", "nine"] * 5
    alike, other = vendi_scores(texts, [(0, 1), (0, 2)], str(tmp_path))
    assert alike == pytest.approx(1, abs=1e-4)
    assert 1 < other <= 2


def test_ranks_are_from_1_to_10_and_equal_for_equals():
    assert ranks([float(i) for i in range(10)]) == list(range(1, 11))
    assert ranks([5.0, 1.0]) == [6, 1]
    assert ranks([7.0] * 252) == [5] * 252
    assert ranks([0.3, 0.1, 0.2, 0.2]) == [8, 1, 4, 4]
    counts = [ranks(range(250)).count(rank) for rank in range(1, 11)]
    assert counts == [25] * 10


def test_a_cell_is_the_mean_rank_of_what_its_subsets_reached():
    def row(*groups):
        names = ("vendi", "quality", "score")
        return {"groups": [dict(zip(names, group, strict=True)) for group in groups]}

    # in a query of two subsets the ranks are 1 and 6
    groups, lost = ranked(
        [row((1, 9, 5), (2, 8, 4)), row((30, -1, 9), (40, -2, 7)), row((1, None, 1))]
    )
    assert lost == 1
    cells = {(c["diversity_rank"], c["quality_rank"]): c for c in numbers(groups)}
    assert len(cells) == 100
    assert (cells[1, 6]["subsets"], cells[1, 6]["aggregation_rank"]) == (2, 6)
    assert (cells[6, 1]["subsets"], cells[6, 1]["aggregation_rank"]) == (2, 1)
    assert (cells[1, 1]["subsets"], cells[1, 1]["aggregation_rank"]) == (0, None)


# The run


@pytest.mark.slow
def test_a_dry_run_tells_25200_aggregations_of_100_queries(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subsets, "vendi_scores", lambda texts, groups, _: [1.0] * len(groups))
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"query": f"Question {i}?"}) + "\n" for i in range(100)))
    assert main(["diversity", str(path), "--dry-run", "--scripted", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[3].split()[:4] == ["0", "1", "25,200", "25,200"]
    assert "26,200 drafts scored" in out


def test_drafts_are_drawn_once_and_every_subset_is_aggregated_and_scored(analyze, monkeypatch):
    requests = answering(monkeypatch, drafts_and_sums)
    rows, cells = analyze()
    drawn = [request for request in requests if request.n == 4]
    assert {asked(request) for request in drawn} == {row["query"] for row in QUERIES}
    assert len(requests) == 3 + 3 * math.comb(4, 3)
    for row in rows:
        assert row["scores"] == [float(len(text)) for text in row["proposals"]]
        assert [group["members"] for group in row["groups"]] == [
            list(group) for group in itertools.combinations(range(4), 3)
        ]
        for group in row["groups"]:
            assert group["quality"] == fmean(row["scores"][i] for i in group["members"])
            texts = [row["proposals"][i] for i in group["members"]]
            assert group["vendi"] == pytest.approx(vendi_scores(texts, [range(3)])[0])
            assert group["score"] > 0
    assert sum(int(cell["subsets"]) for cell in cells) == 12


def test_rows_and_plot_are_made_again_from_the_journal_alone(analyze, monkeypatch, tmp_path):
    answering(monkeypatch, drafts_and_sums)
    first = analyze()
    for path in tmp_path.glob("out.*"):
        if path.suffix != ".journal" and ".journal" not in path.name:
            path.unlink()
    monkeypatch.setattr(subsets, "open_engines", lambda *_: pytest.fail("a model"))
    monkeypatch.setattr(subsets, "vendi_scores", lambda *_: pytest.fail("computed anew"))
    assert analyze("--export") == first
    assert (tmp_path / "out.png").exists()


def test_a_stopped_run_asks_only_what_is_missing(analyze, monkeypatch):
    def dying(request):
        if len(requests) > 9:
            return EngineError("no more", "fatal")
        return drafts_and_sums(request)

    with monkeypatch.context() as patch:
        requests = answering(patch, dying)
        analyze(expect=2)
    again = answering(monkeypatch, drafts_and_sums)
    rows, _ = analyze()
    assert len(rows) == 3
    assert len(again) == 15 - 9


def test_equal_drafts_have_a_diversity_of_1_and_one_rank(analyze, monkeypatch):
    answering(monkeypatch, lambda request: "the same")
    rows, cells = analyze()
    assert {round(group["vendi"], 6) for row in rows for group in row["groups"]} == {1.0}
    [cell] = [cell for cell in cells if cell["subsets"] != "0"]
    assert (cell["quality_rank"], cell["diversity_rank"]) == ("4", "4")


def test_fewer_drafts_than_a_subset_reads_reject_the_query(analyze, monkeypatch, capsys, tmp_path):
    # two of the four drafts of q0 are empty, and stay so
    def script(request):
        return "" if asked(request) == "Question 0?" else "text"

    answering(monkeypatch, script)
    rows, _ = analyze("--on-empty", "drop")
    assert [row["id"] for row in rows] == ["q1", "q2"]
    [reject] = (tmp_path / "out.rejects.jsonl").read_text().splitlines()
    assert "4 of 4 drafts are unusable" in reject or "3 wanted for a subset" in reject


class NanOf(Longest):
    """Scores no text that has a first word of this kind."""

    async def score_each(self, query, texts):
        found = await Longest.score_each(self, query, texts)
        return [
            math.nan if "odd" in text else score for text, score in zip(texts, found, strict=True)
        ]


def test_what_has_no_score_is_left_out_and_counted(analyze, monkeypatch, caplog):
    monkeypatch.setattr("aft_factory.stage.reward.Longest", NanOf)
    count = iter(range(10**6))
    drafts = iter([["odd one", "a b", "c d e", "f"]] * 3)

    def script(request):
        if request.n == 4:
            return drafts
        return "odd" if next(count) == 0 else "fine"

    requests = []
    from aft_factory.engines.scripted import ScriptedEngine

    def texts(request):
        requests.append(request)
        found = script(request)
        return next(found) if found is drafts else [found] * request.n

    monkeypatch.setattr(
        "aft_factory.stage.engines.ScriptedEngine",
        lambda own=texts, **options: ScriptedEngine(own, **options),
    )
    rows, cells = analyze()
    for row in rows:
        assert [score is None for score in row["scores"]] == [True, False, False, False]
        assert [group["quality"] is None for group in row["groups"]] == [True, True, True, False]
        events = [event["event"] for event in row["events"]]
        assert events.count("proposal that cannot be scored left out") == 1
    assert sum(int(cell["subsets"]) for cell in cells) in (2, 3)
    assert "subsets left out of the plot" in caplog.text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--samples", "3", "--subset", "4"], "subset: 4 of 3 drafts cannot be chosen"),
        (["--samples", "40", "--subset", "20"], "subsets of each query; expected at most 100,000"),
        (["--embedding", "/no/such"], "embedding: cannot load '/no/such'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, words, problem):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(QUERIES[0]))
    output = ["--output", str(tmp_path / "o.jsonl"), "--scripted"]
    assert main(["diversity", str(path), *output, *words]) == 2
    assert problem in capsys.readouterr().err

"""`aft analyze perplexity`, on a tiny model. Run: pytest tests/analyze/test_perplexity.py"""

import csv
import json
import math
import os

import pytest
from conftest import demo_rows
from hub_cache import cache_of
from llamafactory_tools import tokenize, write_dataset

from aft_factory.analyze import encoding, perplexity
from aft_factory.analyze.__main__ import main
from aft_factory.engines.target_loss import IGNORED, Row, TransformersLoss
from aft_factory.prompts.tokenizer import Pretrained

ROWS = [{"id": f"row{i}", **row} for i, row in enumerate(demo_rows()[:16])]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with two training sets of the same rows."""
    folder = tmp_path_factory.mktemp("sets")
    write_dataset(folder, "aft", ROWS)
    write_dataset(folder, "sft", list(reversed(ROWS)), aggregation={"ablation": "sft"})
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"hub": {"hf_hub_url": "a/b"}}))
    return folder


@pytest.fixture
def measure(sets, tiny_llama, tmp_path, monkeypatch):
    """Run the analysis; return the rows of its CSV by set."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "p.png"

    def run(*words, expect=0):
        common = ["--template", "aft_llama3", "--quiet", "--overwrite", "--output", str(output)]
        if "--export" not in words:
            common += [] if "--model" in words else ["--model", str(tiny_llama)]
            common += ["--cutoff-len", "1024"]
            common += ["--dataset-dir", str(sets)]
        assert main(["perplexity", *words, *common]) == expect
        if expect == 0:
            lines = output.with_suffix(".csv").read_text().splitlines()
            return {row["set"]: row for row in csv.DictReader(lines)}
        return None

    return run


def test_the_numbers_of_a_set_are_those_of_its_rows():
    [row] = perplexity.numbers({"a": [(2.0, 2), (9.0, 3)]})
    assert (row["rows"], row["tokens"]) == (2, 5)
    assert row["loss"] == 11 / 5
    assert row["perplexity"] == math.exp(2.2)
    assert row["row_loss"] == 2.0
    # residuals 2 - 4.4 and 9 - 6.6, over two rows
    assert row["error"] == pytest.approx(math.sqrt(2 * (2.4**2 + 2.4**2)) / 5)
    assert row["low"] == pytest.approx(math.exp(row["loss"] - row["error"]))


def test_a_loss_is_of_targets_only_whatever_else_is_in_the_batch(tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM

    row, other = Row([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8]), Row(range(20, 60), range(20, 60))
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        chances = network(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    expected = -(chances[1, 7] + chances[2, 8]).item()
    assert (row.targets, other.targets) == (2, 39)
    for rows, budget in (([row], 100), ([row, other], 1000), ([other, row], 1)):
        found = dict(TransformersLoss(str(tiny_llama), batch_tokens=budget).losses(rows))
        assert found[rows.index(row)] == pytest.approx(expected, abs=1e-4)


def test_ids_and_labels_are_the_very_ones_of_training(sets, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(encoding.VERBOSITY, raising=False)
    for name in ("aft", "sft"):
        entry = encoding.entry_of(name, sets, None)
        options = {
            "model": Pretrained(str(tiny_llama)),
            "template": "aft_llama3",
            "cutoff_len": 450,
        }
        made = encoding.encoded({name: (entry, encoding.drawn(entry, 0))}, **options)[name]
        _, trained = tokenize(sets, name, tiny_llama, cutoff_len=450)
        assert [(row.ids, row.labels) for row in made] == [
            (row["input_ids"], row["labels"]) for row in trained
        ]
    assert encoding.VERBOSITY not in os.environ  # trainings after it tell their steps


def test_a_model_has_a_revision_for_its_tokens_and_its_losses_alike(
    measure, sets, tiny_llama, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty").mkdir()
    cache = cache_of(tmp_path / "c", "o/m", {"main": tmp_path / "empty", "v1": tiny_llama})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    plain = measure("aft")
    assert measure("aft", "--model", "o/m", "--model-revision", "v1") == plain
    measure("aft", "--model", "o/m", expect=2)
    measure("aft", "--model-revision", "v1", expect=2)
    assert "is a folder, which has no revisions" in capsys.readouterr().err
    measure("aft", "--engine", "vllm", "--engine-args", "revision=v1", expect=2)
    assert "engine_args: revision: pass --model-revision" in capsys.readouterr().err


def test_rows_are_drawn_by_their_ids_whatever_their_order(sets):
    aft, sft = (
        {row["id"] for row in encoding.drawn(encoding.entry_of(name, sets, None), 5)}
        for name in ("aft", "sft")
    )
    assert aft == sft
    assert len(aft) == 5
    bare = [{key: row[key] for key in row if key != "id"} for row in ROWS]
    asked = {json.dumps(row.get("query")): encoding._key(row, None) for row in bare}
    assert len(set(asked.values())) == len(asked)  # by what they ask


def test_a_killed_run_goes_on_and_export_asks_no_model(measure, monkeypatch):
    first = measure("aft", "mine=sft")
    assert set(first) == {"aft", "mine"}
    asked = []
    real = TransformersLoss.losses
    monkeypatch.setattr(
        TransformersLoss, "losses", lambda self, rows: asked.append(len(rows)) or real(self, rows)
    )
    assert measure("aft", "mine=sft") == first
    assert asked == [0]
    monkeypatch.setattr(TransformersLoss, "__init__", lambda *_, **__: pytest.fail("a model"))
    monkeypatch.setattr(encoding, "encoded", lambda *_, **__: pytest.fail("LLaMA-Factory"))
    assert measure("--export") == first


def test_half_of_it_known_only_the_rest_is_measured(measure, monkeypatch, caplog):
    real = TransformersLoss.losses

    def dying(self, rows):
        for number, loss in enumerate(real(self, rows)):
            if number == 5:
                raise KeyboardInterrupt
            yield loss

    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(TransformersLoss, "losses", dying)
        measure("aft", expect=130)
    monkeypatch.setattr(
        TransformersLoss, "losses", lambda self, rows: asked.append(len(rows)) or real(self, rows)
    )
    assert measure("--export")["aft"]["rows"] == "5"
    assert "aft: 11 of 16 rows are not known yet" in caplog.text
    assert measure("aft", "--sample", "8")["aft"]["rows"] == "8"
    assert measure("aft")["aft"]["rows"] == "16"
    assert sum(asked) == 11  # each once, whatever the sample


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nothing"], "nothing: no such file and no such training set"),
        (["aft", "aft"], "two have the name 'aft'"),
        (["aft", "--ablation", "x=sft"], "ablation: x: expected one of aft"),
        (["aft", "--ablation", "aft=none_such"], "ablation: aft: "),
        (["aft", "--engine", "vllm", "--dtype", "float32"], "for vLLM: --engine-args"),
        (["--sample", "5"], "name the training sets"),
        (["broken.jsonl"], "broken.jsonl:2: not JSON"),
        (["empty.jsonl"], "empty.jsonl: no rows"),
        (["hub"], "hub: expected an entry with file_name"),
        (["hub", "--ablation", "hub=sft"], "hub: expected an entry with file_name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    measure, monkeypatch, tmp_path, capsys, words, problem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"query": "x", "aggregation": "y"}\n{oops\n')
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.setattr(TransformersLoss, "__init__", lambda *_, **__: pytest.fail("a model"))
    measure(*words, expect=2)
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_llamafactorys_own_evaluation_loss(
    measure, sets, tiny_llama, tmp_path, ready_llamafactory
):
    """Of one batch that holds all rows, and of batches of one row."""
    found = measure("aft")["aft"]
    running = {}
    for size in (len(ROWS), 1):
        config = {
            "model_name_or_path": str(tiny_llama), "stage": "sft", "do_eval": True, "finetuning_type": "full",
            "dataset_dir": str(sets), "eval_dataset": "aft", "template": "aft_llama3", "cutoff_len": 1024,
            "per_device_eval_batch_size": size, "output_dir": str(tmp_path / str(size)), "report_to": "none",
            "use_cpu": True,
        }  # fmt: skip
        path = tmp_path / f"{size}.yaml"
        path.write_text(json.dumps(config))
        log = tmp_path / f"{size}.log"
        running[size] = ready_llamafactory.start("llamafactory.cli", ["train", path], log)
    for (size, process), ours in zip(running.items(), ("loss", "row_loss"), strict=True):
        assert process.wait() == 0, (tmp_path / f"{size}.log").read_text()[-3000:]
        theirs = json.loads((tmp_path / str(size) / "eval_results.json").read_text())["eval_loss"]
        assert math.exp(float(found[ours])) == pytest.approx(math.exp(theirs), rel=1e-3)
        assert float(found[ours]) == pytest.approx(theirs, abs=1e-4)
    assert float(found["loss"]) != pytest.approx(float(found["row_loss"]), abs=1e-5)


@pytest.mark.slow
def test_vllm_tells_the_same(measure, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    found = measure("aft", "sft")
    engine = ["enforce_eager=true", "dtype=float32", "max_model_len=2048"]
    told = measure("aft", "sft", "--engine", "vllm", *(f"--engine-args={one}" for one in engine))
    for name in ("aft", "sft"):
        assert float(told[name]["perplexity"]) == pytest.approx(
            float(found[name]["perplexity"]), rel=1e-3
        )

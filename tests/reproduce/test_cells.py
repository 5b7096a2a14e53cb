"""The cells of examples/reproduce: which there are at each scale, in which order, and what is refused."""

import json
import re

import pytest
import yaml
from cells import HERE, Chain, read_rows, read_scale
from conftest import ROOT
from reproduce import Reproduction, main

from aft_factory.errors import UsageError
from aft_factory.records.replacing import write_whole

SCALES = ("smoke", "135m", "8b")
MODELS = {
    *("sft", "sft_queries", "aft_on", "aft_off", "without_proposals", "pseudo"),
    *("sft_steps", "sft_tokens"),
}


def scale(name):
    return read_scale(HERE / f"{name}.yaml")


def names(name, tmp_path):
    return [cell.name for cell in Reproduction(scale(name), tmp_path).cells()]


def test_the_smoke_scale_is_every_kind_of_step_once(tmp_path):
    assert names("smoke", tmp_path) == [
        "the model",
        "seed 1: rows",
        "seed 1: train sft",
        "seed 1: gate: sft, plain",
        "seed 1: gate: sft, vote_5",
        "seed 1: gate: does a vote beat greedy?",
        "seed 1: drafts of sft",
        "seed 1: sets",
        "seed 1: train aft_on",
        "seed 1: gate: aft_on, aggregate",
        "seed 1: gate: has aft_on learned to aggregate?",
        "seed 1: sft, plain",
        "seed 1: sft, aggregate",
        "seed 1: sft, vote_5",
        "seed 1: aft_on, plain",
        "seed 1: aft_on, aggregate",
        "seed 1: aft_on, vote_5",
        "plot: curves",
        "results",
    ]


@pytest.mark.parametrize(
    ("name", "inferences"),
    [
        ("135m", ["plain", "aggregate", "vote_5", "vote_11"]),
        ("8b", ["plain", "aggregate", "vote_5", "vote_11", "best_of_5"]),
    ],
)
def test_the_real_scales_train_all_models_with_three_seeds_and_ask_1000_questions(
    name, inferences, tmp_path
):
    found, cells = scale(name), names(name, tmp_path)
    assert found.seeds == [1, 2, 3]
    assert (found.rows["test"], found.gates) == (1000, "stop")
    assert found.rows["more"] >= 5000
    for seed in found.seeds:
        own = [cell.removeprefix(f"seed {seed}: ") for cell in cells if f"seed {seed}:" in cell]
        assert {cell.removeprefix("train ") for cell in own if cell.startswith("train")} == MODELS
        asked = [cell for cell in own if re.fullmatch(r"\w+, \w+", cell)]
        assert asked == [f"{model}, {how}" for model in found.models for how in inferences]
        gates = [own.index(cell) for cell in own if cell.endswith("?")]
        assert len(gates) == 3
        # nothing is trained on drafts before the first gate, and no test question asked before the last
        assert own.index("drafts of sft") == gates[0] + 1
        assert own.index(asked[0]) > gates[-1]
    assert cells[-1] == "results"
    claims = {name for pair in found.claims for name in pair}
    assert claims <= {f"{model}/{how}" for model in found.models for how in found.inferences}


def test_perplexity_is_of_all_sets_of_the_same_questions(tmp_path):
    cells = Reproduction(scale("135m"), tmp_path).cells()
    [plot] = [cell for cell in cells if cell.name == "plot: perplexity"]
    sets = ["more", "aft_on", "aft_off", "without_proposals", "pseudo"]
    assert plot.command[3 : 4 + len(sets)] == ["perplexity", *sets]


@pytest.mark.parametrize("name", SCALES)
def test_a_dry_run_lists_the_cells_and_leaves_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([name, "--dry-run"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert listed == names(name, tmp_path / "data" / "reproduce" / name)
    assert not list(tmp_path.iterdir())


def trained(folder, model, steps, tokens):
    (folder / model).mkdir(parents=True)
    state = {"global_step": steps, "num_input_tokens_seen": tokens}
    (folder / model / "trainer_state.json").write_text(json.dumps(state))


def test_all_models_are_trained_from_the_base_on_plain_rows_and_their_own(tmp_path):
    chain = Chain(scale("135m"), "base", tmp_path, 2)
    trained(tmp_path, "aft_on", 760, 3_000_000)
    trained(tmp_path, "sft_queries", 450, 630_000)
    trainings = {model: chain.training(model) for model in chain.scale.models}
    assert {one["model_name_or_path"] for one in trainings.values()} == {"base"}
    assert {one["seed"] for one in trainings.values()} == {2}
    sets = {model: one["dataset"].split(",") for model, one in trainings.items()}
    assert sets["sft"] == ["plain"]
    for model in ("sft_queries", "sft_steps", "sft_tokens"):
        assert sets[model] == ["plain", "more"]
    for model in ("aft_on", "aft_off", "pseudo", "without_proposals"):
        assert sets[model] == ["plain", "more", model]
    # 1,400 tokens in a step of plain rows
    steps = {model: one.get("max_steps") for model, one in trainings.items()}
    assert (steps.pop("sft_steps"), steps.pop("sft_tokens")) == (760, 2143)
    assert set(steps.values()) == {None}


def test_without_proposals_has_the_rows_of_aft_on_and_leaves_the_drafts_out(tmp_path):
    chain = Chain(scale("135m"), "base", tmp_path, 1)
    left_out = {}
    for model in ("aft_on", "without_proposals"):
        [cell] = [cell for cell in chain.cells() if cell.name == f"seed 1: train {model}"]
        cell.before()
        stages = yaml.safe_load((tmp_path / f"{model}.pipeline.yaml").read_text())["stages"]
        assert [next(iter(stage)) for stage in stages] == ["convert", "train"]
        left_out[model] = stages[0]["convert"].get("without_proposals", False)
    assert left_out == {"aft_on": False, "without_proposals": True}


@pytest.mark.parametrize("name", ["135m", "8b"])
def test_llamafactory_takes_the_trainings(name, tmp_path):
    from llamafactory.hparams import get_train_args

    chain = Chain(scale(name), "base", tmp_path, 1)
    settings = chain.training("sft") | {"use_cpu": True}
    _, data, training, finetuning, _ = get_train_args(settings)
    assert (training.seed, training.num_train_epochs) == (1, 1)
    assert data.template == scale(name).template
    assert finetuning.finetuning_type == scale(name).training["finetuning_type"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'; .*seeds"),
        ({"models": ["sft", "aft_onn"]}, "models: 'aft_onn'; .*aft_on"),
        ({"models": ["aft_on"]}, "models: aft_on takes sft before"),
        ({"models": ["sft", "aft_on", "sft_tokens"]}, "sft_tokens takes sft_queries before"),
    ],
)
def test_what_a_scale_cannot_mean_is_refused_by_name(change, told, tmp_path):
    path = tmp_path / "mine.yaml"
    content = yaml.safe_load((HERE / "smoke.yaml").read_text())
    path.write_text(yaml.safe_dump(content | change))
    with pytest.raises(UsageError, match=told):
        read_scale(path)


def test_a_folder_is_of_one_scale_but_may_get_more_cells(tmp_path):
    Reproduction(scale("smoke"), tmp_path).check()
    more = scale("smoke")
    more.seeds.append(2)
    Reproduction(more, tmp_path).check()
    more.rows["more"] += 1
    with pytest.raises(UsageError, match=r"other settings \(rows\); name another --output"):
        Reproduction(more, tmp_path).check()


def test_every_file_of_a_scale_is_tested():
    found = {path.stem for path in (ROOT / "examples" / "reproduce").glob("*.yaml")}
    assert found == {*SCALES, "cells"}


def test_a_text_of_a_model_does_not_end_the_line_that_it_stands_in(tmp_path):
    row = {"response": "61+38=99\u2028+12=111\x85"}
    write_whole(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False).encode() + b"\n")
    assert read_rows(tmp_path / "rows.jsonl") == [row]

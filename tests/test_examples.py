"""The examples: LLaMA-Factory accepts them, and they are the paper's.

Run: pytest tests/test_examples.py
"""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from llamafactory_tools import tokenize, trained_ids, write_dataset

EXAMPLES = ROOT / "examples"
TRAININGS = sorted([*EXAMPLES.glob("aft_*.yaml"), *EXAMPLES.glob("sft_*.yaml")])
DEEPSPEED = sorted((EXAMPLES / "deepspeed").glob("*.json"))
GPUS = 4  # of the paper


def named(path):
    return path.stem


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_their_cutoff_is_the_one_that_convert_tells():
    assert {read(path)["cutoff_len"] for path in TRAININGS} == {4096}


def parse_training(path, folder):
    """Parse with LLaMA-Factory's own parser, which loads no model.

    Two keys differ from the file: `use_cpu`, since transformers refuses bf16 where there is no
    GPU, and `output_dir`, since the parser looks there for a training to resume.
    """
    from llamafactory.hparams import get_train_args

    changes = {"use_cpu": True, "output_dir": str(folder / "output")}
    return get_train_args({**read(path), **changes})


def datasets(names):
    from llamafactory.data.parser import get_dataset_list

    return get_dataset_list(names, str(ROOT))


def convert_command(path):
    """Read the convert command in the file's comment as the converter does."""
    from aft_factory.convert.__main__ import COMMAND

    comment = path.read_text(encoding="utf-8").replace("\\\n#", "")
    command = re.search(r"python -m aft_factory\.convert (.+)", comment)
    return COMMAND.read(vars(COMMAND.parser().parse_args(shlex.split(command[1]))))


def test_every_yaml_here_is_tested():
    tested = {*TRAININGS, EXAMPLES / "export_llama.yaml", EXAMPLES / "run_llama.yaml"}
    tested |= {EXAMPLES / "serve_llama.yaml"}  # test_serving.py
    tested |= {EXAMPLES / "tiny_aft.yaml"}
    tested |= set(EXAMPLES.glob("pipeline_*.yaml"))  # test_pipeline.py, test_pipeline_killed.py
    assert set(EXAMPLES.glob("*.yaml")) == tested
    assert {path.stem for path in (EXAMPLES / "eval").glob("*.yaml")} == {
        *("sft_llama", "aft_llama", "sft_mistral", "aft_mistral")
    }
    assert {path.name for path in (EXAMPLES / "v1").iterdir()} == {"aft_qwen3.yaml", "dataset.yaml"}


@pytest.mark.parametrize("path", sorted((EXAMPLES / "eval").glob("*.yaml")), ids=named)
def test_evaluations_are_of_what_the_trainings_make_and_decode_as_the_paper(path):
    from aft_factory.evaluate.__main__ import COMMAND, paper_settings
    from aft_factory.evaluate.benchmarks import benchmark_named

    def told(benchmark):
        below = partial(paper_settings, benchmark_named(benchmark))
        settings = replace(COMMAND, below=below).read({"config": path})
        return settings.options()["width"], settings.options()["layers"]

    settings = COMMAND.read({"config": path})
    assert settings.model == f"saves/{path.stem}_merged"
    assert settings.final().temperature == {"llama": 0.9, "mistral": 0.7}[path.stem.split("_")[1]]
    assert told("alpaca_eval") == told("mt_bench") == (5, 2)
    assert told("gsm8k") == told("ifeval") == (5, 1)
    assert told("mmlu")[1] == told("arc_c")[1] == told("strategyqa")[1] == 0


RECORDING = """#!/bin/sh
echo "${0##*/} $*" >> commands
for word; do
    case $word in export_dir=*) mkdir -p "${word#export_dir=}";; esac
    [ "$before" = --output ] && mkdir -p "$word" && touch "$word/results.json"
    before=$word
done
exit 0
"""


def test_the_papers_table_is_made_of_what_each_training_left_and_goes_on(tmp_path):
    """Which commands the script gives; what each does is tested where it is."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "llamafactory-cli"):
        (tmp_path / "bin" / name).write_text(RECORDING)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", "examples/eval/paper.sh"]
    for _ in range(2):
        env = os.environ | {"PATH": path, "MT_BENCH": "data"}
        subprocess.run(script, cwd=tmp_path, env=env, check=True)
    commands = [line.split() for line in (tmp_path / "commands").read_text().splitlines()]
    exports = [words for words in commands if words[0] == "llamafactory-cli"]
    cells = [words for words in commands if "--output" in words]
    assert (len(exports), len(cells)) == (4, 16)  # of both times: what is there is left alone
    for command in exports:
        assert command[1:3] == ["export", "examples/export_llama.yaml"]
        given = dict(word.split("=", 1) for word in command[3:])
        name = Path(given["adapter_name_or_path"]).name
        training = read(EXAMPLES / f"{name}.yaml")
        assert given["adapter_name_or_path"] == training["output_dir"]
        assert given["model_name_or_path"] == training["model_name_or_path"]
        assert given["template"] == training["template"]
        assert given["export_dir"] == f"saves/{name}_merged.part"
        assert (tmp_path / read(EXAMPLES / "eval" / f"{name}.yaml")["model"]).is_dir()
        assert given.keys() <= read(EXAMPLES / "export_llama.yaml").keys()
    assert [words[-1] for words in commands[-2:]] == ["eval/answers.csv", "eval/tasks.csv"]


@pytest.mark.parametrize("path", TRAININGS, ids=named)
def test_training_has_the_hyper_parameters_of_the_paper(path, tmp_path):
    model, data, training, finetuning, _ = parse_training(path, tmp_path)
    base, chat = {
        "llama": ("meta-llama/Llama-3.1-8B", "aft_llama3"),
        "mistral": ("mistralai/Mistral-7B-v0.1", "aft_mistral"),
        "qwen3": ("Qwen/Qwen3-8B", "aft_qwen3"),
        "gemma3": ("google/gemma-3-4b-pt", "aft_gemma3"),
    }[path.stem.split("_")[1]]
    assert (model.model_name_or_path, data.template) == (base, chat)
    assert (finetuning.stage, finetuning.finetuning_type) == ("sft", "lora")
    assert (finetuning.lora_rank, finetuning.lora_target) == (8, ["all"])
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS == 128
    assert (training.learning_rate, training.lr_scheduler_type) == (1e-4, "cosine")
    assert training.get_warmup_steps(500) == 50
    assert (training.num_train_epochs, training.max_steps, training.bf16) == (1, -1, True)
    assert data.cutoff_len == 4096


def test_all_trainings_differ_in_model_and_data_only():
    # The plugin sees to the loss on the last answer alone in AFT's own rows.
    own = ("model_name_or_path", "dataset", "mask_history", "template", "output_dir")
    own += ("enable_thinking",)
    shared = [{k: v for k, v in read(path).items() if k not in own} for path in TRAININGS]
    assert shared == [shared[0]] * 6


@pytest.mark.parametrize("path", TRAININGS, ids=named)
def test_comment_has_the_commands_that_train_and_make_the_data(path, tmp_path):
    _, data, *_ = parse_training(path, tmp_path)
    assert data.dataset_dir == "."
    (dataset,) = datasets(data.dataset)
    made = convert_command(path)
    assert str(made.output) == dataset.dataset_name  # for a local file, its name
    target = {"aggregation": "aggregation", "sft": "sharegpt"}[made.target]
    assert dataset.formatting == target
    assert made.cutoff_len in (None, data.cutoff_len)
    # It registers where the training looks, as what is there already.
    assert (str(made.entry.file.parent), made.entry.name) == (data.dataset_dir, data.dataset[0])
    assert (
        dict(made.entry.content)
        == json.loads(Path("dataset_info.json").read_text())[made.entry.name]
    )
    assert f"llamafactory-cli train examples/{path.name}\n" in path.read_text(encoding="utf-8")


def test_dataset_info_has_every_training_set_of_the_paper():
    names = list(json.loads((ROOT / "dataset_info.json").read_text(encoding="utf-8")))
    assert names == [
        "aft_on_policy_llama",
        "aft_on_policy_mistral",
        "aft_off_policy",
        "aft_without_proposals",
        "aft_pseudo",
        "ultrafeedback_sft",
    ]
    on, mistral, off, without, pseudo, sft = datasets(names)
    assert [d.formatting for d in (on, mistral, off, without, pseudo)] == ["aggregation"] * 5
    assert sft.formatting == "sharegpt"
    assert without.dataset_name == on.dataset_name
    assert len({d.dataset_name for d in (on, mistral, off, pseudo, sft)}) == 5
    ablations = [d.aft_options.aggregation.ablation for d in (on, off, without, pseudo)]
    assert ablations == ["none", "none", "without_proposals", "none"]


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_the_baseline_learns_the_last_answer_of_a_conversation_only(model, tmp_path, request):
    """As AFT does. LLaMA-Factory's default is to learn every answer."""
    settings = read(EXAMPLES / f"sft_{model}.yaml")
    turns = [("human", "How many?"), ("gpt", "Seven."), ("human", "Sure?"), ("gpt", "Six.")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    write_dataset(tmp_path, "sft", [row], formatting="sharegpt")
    folder = request.getfixturevalue(f"tiny_{model}")
    learned = []
    for mask in (settings["mask_history"], False):
        options = {"template": settings["template"], "mask_history": mask}
        tokenizer, [trained] = tokenize(tmp_path, "sft", folder, **options)
        learned.append(tokenizer.decode(trained_ids(trained)))
    assert ("Six." in learned[0], "Seven." in learned[0]) == (True, False)
    assert "Seven." in learned[1]


def pipeline_steps(name, monkeypatch):
    """The steps of an example."""
    from aft_factory.pipeline.steps import read_pipeline

    monkeypatch.chdir(ROOT)
    steps = read_pipeline(EXAMPLES / f"pipeline_{name}.yaml")
    assert {step.allow_failed for step in steps} == {0}
    return steps


def outputs(steps):
    return {str(path) for step in steps for path in step.outputs}


AUGMENTATIONS = ("min_proposals", "shuffle_proposals", "mix_plain")


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("off_policy", "aft_off_policy"), ("on_policy_llama", "aft_on_policy_llama")],
)
def test_the_papers_pipelines_make_the_papers_data(name, dataset, monkeypatch):
    steps = pipeline_steps(name, monkeypatch)
    conversions = [step.read for step in steps if step.stage == "convert"]
    for settings in conversions:
        assert not any(getattr(settings, key) for key in AUGMENTATIONS)
        assert (settings.max_proposals, settings.without_proposals) == (None, False)
        assert (settings.target, settings.template, settings.limit) == (
            "aggregation",
            "paper",
            None,
        )
    [made] = datasets([dataset])
    assert str(conversions[-1].output) == made.dataset_name
    assert conversions[-1].cutoff_len == read(EXAMPLES / "aft_llama.yaml")["cutoff_len"]
    [aggregate] = [step.read for step in steps if step.stage == "aggregate"]
    assert (aggregate.model, aggregate.template) == ("Qwen/Qwen2.5-72B-Instruct", "paper")
    assert (aggregate.drop, aggregate.pseudo) == ([], False)


def test_the_augmented_data_are_a_file_of_their_own_made_of_the_papers(monkeypatch):
    """So the entries of the paper's sets, SFT above all, are right whatever was augmented."""
    steps = pipeline_steps("augmented", monkeypatch)
    [convert] = [step.read for step in steps if step.stage == "convert"]
    assert all(getattr(convert, key) for key in AUGMENTATIONS)
    assert convert.input[0] in outputs(pipeline_steps("off_policy", monkeypatch))
    names = json.loads((ROOT / "dataset_info.json").read_text(encoding="utf-8"))
    assert not outputs(steps) & {entry["file_name"] for entry in names.values()}
    baseline = convert_command(EXAMPLES / "sft_llama.yaml")
    assert (str(baseline.output), baseline.source) == (
        names["ultrafeedback_sft"]["file_name"],
        "ultrafeedback",
    )


@pytest.mark.parametrize("path", [*TRAININGS, EXAMPLES / "export_llama.yaml"], ids=named)
def test_every_template_is_registered(path):
    from llamafactory.data.template import TEMPLATES

    assert read(path)["template"] in TEMPLATES


def test_export_merges_what_aft_llama_trained():
    from llamafactory.hparams import get_infer_args

    training = read(EXAMPLES / "aft_llama.yaml")
    model, data, finetuning, _ = get_infer_args(read(EXAMPLES / "export_llama.yaml"))
    assert model.model_name_or_path == training["model_name_or_path"]
    assert model.adapter_name_or_path == [training["output_dir"]]
    assert (data.template, finetuning.finetuning_type) == (training["template"], "lora")
    assert model.export_dir == "saves/aft_llama_merged"


def test_v1_training_has_the_hyper_parameters_of_the_paper():
    from llamafactory.v1.config import get_args

    from aft_factory.plugin.options import DatasetOptions, parse_entry

    path = EXAMPLES / "v1" / "aft_qwen3.yaml"
    model, data, training, _ = get_args(read(path))
    assert (model.peft_config.name, model.peft_config["r"]) == ("lora", 8)
    assert (training.global_batch_size, training.learning_rate) == (128, 1e-4)
    assert (training.num_train_epochs, training.max_steps, training.bf16) == (1, None, True)

    ((name, entry),) = read(ROOT / data.train_dataset).items()
    assert (entry["source"], entry["converter"]) == ("local", "aggregation")
    assert parse_entry(name, entry) == DatasetOptions(name)  # it spells out the defaults
    made = convert_command(path)
    assert (str(made.output), made.cutoff_len) == (entry["path"], training.cutoff_len)
    assert made.tokenizer == model.model


@pytest.mark.parametrize("path", DEEPSPEED, ids=named)
def test_transformers_fills_every_auto_of_the_deepspeed_files(path, tmp_path):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import LlamaConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class WithoutDeepSpeed(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """Transformers' own, less its check that DeepSpeed is installed."""

        def __init__(self, file):
            HfDeepSpeedConfig.__init__(self, file)
            self.mismatches = []

    class Model:
        config = LlamaConfig()

    training = parse_training(EXAMPLES / "aft_llama.yaml", tmp_path)[2]
    config = WithoutDeepSpeed(str(path))
    config.trainer_config_process(training)
    config.trainer_config_finalize(training, Model, num_training_steps=500)
    assert config.config["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero"))
    assert config.config["train_micro_batch_size_per_gpu"] == 4
    assert config.config["gradient_accumulation_steps"] == 8
    assert config.config["bf16"] == {"enabled": True}
    assert '"auto"' not in json.dumps(config.config)


@pytest.fixture
def multi_node(tmp_path):
    """Run multi_node.sh with a llamafactory-cli that prints what it was called with."""
    cli = tmp_path / "llamafactory-cli"
    cli.write_text(
        '#!/bin/sh\necho "$FORCE_TORCHRUN $NNODES $NODE_RANK $MASTER_ADDR:$MASTER_PORT $*"\n'
    )
    cli.chmod(0o755)

    def run(*arguments, **variables):
        return subprocess.run(
            [EXAMPLES / "multi_node.sh", *arguments],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
        )

    return run


TWO_NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


def test_multi_node_keeps_the_total_batch(multi_node):
    finished = multi_node("a.yaml", "bf16=false", **TWO_NODES)
    assert finished.stdout == (
        "1 2 1 10.0.0.1:29500 train a.yaml"
        " per_device_train_batch_size=4 gradient_accumulation_steps=4 bf16=false\n"
    )


@pytest.mark.parametrize("missing", TWO_NODES)
def test_multi_node_names_the_missing_variable(multi_node, missing):
    finished = multi_node("a.yaml", **{k: v for k, v in TWO_NODES.items() if k != missing})
    assert finished.returncode != 0
    assert f"{missing}: set it to" in finished.stderr


def test_multi_node_refuses_a_number_of_gpus_that_changes_the_batch(multi_node):
    finished = multi_node("a.yaml", **{**TWO_NODES, "NNODES": "3"})
    assert finished.returncode == 2
    assert finished.stderr == ("3 x 4 GPUs x 4 rows = 48 does not divide the total batch of 128\n")


def test_the_run_serves_what_the_export_writes_at_the_papers_width_and_layers():
    from aft_factory.run.__main__ import COMMAND

    words = ["x.jsonl", "--config", str(EXAMPLES / "run_llama.yaml")]
    settings = COMMAND.read(vars(COMMAND.parser().parse_args(words)))
    assert settings.model == read(EXAMPLES / "export_llama.yaml")["export_dir"]
    assert (settings.strategy, settings.width, settings.layers) == ("propose_and_aggregate", 5, 2)
    assert (settings.temperature, settings.top_p, settings.final_temperature) == (0.7, 0.95, 0.9)


def test_the_tiny_training_is_the_papers_in_small_and_reads_what_the_tiny_pipeline_converts(
    tmp_path, monkeypatch
):
    from aft_factory.pipeline.steps import read_pipeline

    monkeypatch.chdir(ROOT)
    _, data, training, finetuning, _ = parse_training(EXAMPLES / "tiny_aft.yaml", tmp_path)
    assert (finetuning.finetuning_type, finetuning.lora_rank) == ("lora", 8)
    assert (training.learning_rate, training.lr_scheduler_type) == (1e-4, "cosine")
    steps = {step.stage: step for step in read_pipeline(EXAMPLES / "pipeline_tiny.yaml")}
    convert = steps["convert"].read
    assert (str(convert.register), [convert.output.stem]) == (data.dataset_dir, data.dataset)
    assert convert.cutoff_len == data.cutoff_len
    assert str(steps["run"].read.adapter) == read(EXAMPLES / "tiny_aft.yaml")["output_dir"]
    assert steps["train"].settings["config"] == "examples/tiny_aft.yaml"

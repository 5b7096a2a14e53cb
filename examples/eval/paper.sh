#!/usr/bin/env bash
# The paper's tables 1 to 3: SFT and AFT, Llama and Mistral, plain and with propose-and-aggregate.
# On a machine with a GPU, from the repository's root:
#
#   examples/eval/paper.sh [MODEL ...]      such as aft_llama; all four by default
#
# What a training left in saves/MODEL is merged into its base first, saves/MODEL_merged.
# Each cell is a folder eval/MODEL-plain or eval/MODEL-aggregated. Killed at any moment, the same
# command goes on; a cell that has its results.json is left alone. AlpacaEval 2 and MT-Bench ask a
# judge: OPENAI_API_KEY, or JUDGE="--judge-url URL --judge NAME". MT-Bench takes FastChat
# (make fastchat) and a copy of FastChat's fastchat/llm_judge/data, MT_BENCH=FOLDER.
set -euo pipefail

models=("$@")
[ $# -gt 0 ] || models=(sft_llama aft_llama sft_mistral aft_mistral)
judge=(--harness-python .venv-fastchat/bin/python --data "mt_bench=${MT_BENCH:?the folder of data of FastChat}")
read -ra more <<<"${JUDGE:-}"

of_training() { sed -n "s/^$2: *\([^ ]*\).*/\1/p" "examples/$1.yaml"; }

merge() { # MODEL
    [ -e "saves/$1_merged" ] && return
    llamafactory-cli export examples/export_llama.yaml \
        model_name_or_path="$(of_training "$1" model_name_or_path)" \
        adapter_name_or_path="$(of_training "$1" output_dir)" \
        template="$(of_training "$1" template)" export_dir="saves/$1_merged.part"
    mv "saves/$1_merged.part" "saves/$1_merged"
}

cell() { # NAME BENCHMARK ... --flag ...
    local output=eval/$1
    shift
    [ -e "$output/results.json" ] || python -m aft_factory.evaluate "$@" --output "$output"
}

for model in "${models[@]}"; do
    merge "$model"
    config=(--config "examples/eval/$model.yaml")
    # Alone: one answer a question, without drafts.
    cell "$model-plain" alpaca_eval mt_bench "${config[@]}" "${judge[@]}" "${more[@]}" --layers 0
    cell "$model-plain-tasks" gsm8k ifeval mmlu arc_c strategyqa "${config[@]}" --layers 0 --repeats 3
    # As many drafts and layers as the paper has for each benchmark.
    cell "$model-aggregated" alpaca_eval mt_bench "${config[@]}" "${judge[@]}" "${more[@]}"
    cell "$model-aggregated-tasks" gsm8k ifeval "${config[@]}" --repeats 3
done

python -m aft_factory.evaluate --compare eval/*-plain eval/*-aggregated --csv eval/answers.csv
python -m aft_factory.evaluate --compare eval/*-tasks --csv eval/tasks.csv

#!/usr/bin/env bash
# Train on several machines: start it on each of them, with its own NODE_RANK, from the repository's root.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 examples/multi_node.sh examples/aft_llama.yaml
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 examples/multi_node.sh examples/aft_llama.yaml
#
# What follows the YAML overrides its keys, such as deepspeed=examples/deepspeed/zero3.json.
# Every machine needs the same environment, model and data files; the adapter is saved on machine 0.
#
#   NNODES          number of machines
#   NODE_RANK       which of them this one is, from 0
#   MASTER_ADDR     address of machine 0, which the others can reach
#   MASTER_PORT     a free port there, the same for all (default 29500)
#   NPROC_PER_NODE  GPUs on each machine (default 4)
set -euo pipefail

: "${NNODES:?set it to the number of machines}"
: "${NODE_RANK:?set it to the number of this machine, from 0}"
: "${MASTER_ADDR:?set it to the address of machine 0}"
config=${1:?usage: examples/multi_node.sh CONFIG.yaml [KEY=VALUE ...]}
shift

export FORCE_TORCHRUN=1 NNODES NODE_RANK MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-29500} NPROC_PER_NODE=${NPROC_PER_NODE:-4}

# The paper's total batch of 128 however many GPUs there are: processes x 4 rows x accumulation.
rows_per_step=$((NNODES * NPROC_PER_NODE * 4))
if ((128 % rows_per_step)); then
  echo "$NNODES x $NPROC_PER_NODE GPUs x 4 rows = $rows_per_step does not divide the total batch of 128" >&2
  exit 2
fi

exec llamafactory-cli train "$config" \
  per_device_train_batch_size=4 gradient_accumulation_steps=$((128 / rows_per_step)) "$@"

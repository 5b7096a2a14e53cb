#!/usr/bin/env bash
# A run as a Ray job: one run with one journal, on the cluster's head; a replica on each GPU of all nodes.
#
#   RAY_API=http://head:8265 examples/cluster/ray_job.sh queries.jsonl --output out.jsonl --model /shared/llama-aft
#
# Every node needs aft-factory with `[vllm,ray]`, and the model, at the same place; paths are those
# of the cluster, not of the machine this is said on. A job that was killed goes on by the same
# command. `ray job` comes with `pip install 'ray[default]'`. Any command that asks a model will do
# in the place of `run`: COMMAND=sample.
set -euo pipefail

exec ray job submit --address "${RAY_API:?for example http://head:8265}" --no-wait -- \
    aft "${COMMAND:-run}" "$@" --quiet --ray auto

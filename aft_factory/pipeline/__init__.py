"""`python -m aft_factory.pipeline FILE.yaml`: stages in order, from one file, each resumable.

    folder: data/on_policy          # of all files that are named without one
    stages:
      - sample: {input: prompts.jsonl, output: sampled.jsonl, model: meta-llama/Llama-3.1-8B}
      - rank: {output: ranked.jsonl, top_k: 5}
      - aggregate: {output: aft.jsonl}
      - train: {config: examples/aft_llama.yaml}

A stage reads what the one before it wrote, unless it names its `input`; its other settings are the
flags of its command. All of them are checked before the first stage starts. What is done is not
done again: beside each output stands a file that says which settings and which files it was made
from. A stage that was killed goes on from its journal, a training from its last checkpoint. Each
stage is a process of its own, which hears of Ctrl-C and never outlives its pipeline.

Rows that an engine failed to answer stop the pipeline after their stage (exit code 1), since what
comes next would be made from what is left; the same command asks for them again. With
`allow_failed: 0.01` at the top of the file it goes on while at most that share of a stage's rows
has no answer. They are asked for again all the same, and once they have come, everything that was
made without them is made anew, a training too.
"""

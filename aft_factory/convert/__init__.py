"""STAGE 1: turn published data and sampled proposals into records and training files.

    python -m aft_factory.convert SOURCE INPUT... --output FILE

One module per source (`ultrafeedback`, `proposals`): a pure function from a row to a record. One
module of targets: pure functions from a record to an output row. `converting` joins them with
reading, fitting, rejects and writing; `__main__` and `arguments` are the command line.
"""

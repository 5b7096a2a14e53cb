"""STAGE 1: turn published data and sampled proposals into records and training files.

    python -m aft_factory.convert SOURCE INPUT... --output FILE

One module per source (`ultrafeedback`, `proposals`): a pure function from a row to a record. One
module of targets: pure functions from a record to an output row. `converting` joins them with
fitting and rejects, as the `settings` say; `__main__` reads, writes and tells.
"""

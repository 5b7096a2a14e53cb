"""The command `aft merge`: the parts of a job whose shards ran by themselves, as one job's."""

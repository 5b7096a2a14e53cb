"""The command `aft merge`: what shards that ran by themselves wrote, as one run would have."""

"""Reward-model scores; the best proposals: `python -m aft_factory.rank`."""

"""Benchmarks through their own harnesses, a strategy as the model: `aft eval`."""

"""Aggregation targets by a strong model: `python -m aft_factory.aggregate`."""

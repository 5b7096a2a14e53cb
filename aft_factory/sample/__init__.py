"""On-policy proposals from a base model: `python -m aft_factory.sample`."""

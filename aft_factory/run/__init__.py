"""A data set through propose-and-aggregate: `python -m aft_factory.run`."""

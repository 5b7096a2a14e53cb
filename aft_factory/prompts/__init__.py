"""From a record to what a model reads."""

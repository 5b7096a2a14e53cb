"""An OpenAI-compatible server of strategies: `python -m aft_factory.serve`."""

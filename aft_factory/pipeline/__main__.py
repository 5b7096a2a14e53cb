"""Runs `python -m aft_factory.pipeline`."""

import sys

from aft_factory.pipeline.command import main

if __name__ == "__main__":
    sys.exit(main())

"""The command `aft eval`, `python -m aft_factory.evaluate`: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aft_factory.evaluate.command import COMMAND


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())

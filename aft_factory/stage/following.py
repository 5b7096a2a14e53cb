"""What comes next: the last line of a command, for a person to copy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

PIPELINE = "AFT_FACTORY_PIPELINE"  # an environment variable: in a pipeline, it does what comes next


def following(*words: str | Path) -> list[str]:
    """Return the line that tells the next command."""
    return [] if os.environ.get(PIPELINE) else [f"next: {shlex.join(map(str, words))}"]

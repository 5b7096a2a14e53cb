"""What stages tell of a row in its `meta`, under their own name; told apart from a user's columns.

Pure. A column of the user's may have such a name: ours has exactly these keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aft_factory.records.fields import OBJECT

STAGES = {
    "sampling": {"model", "prompt", "seed", "finish_reasons", "problems", "events"},
    "ranking": {"model", "scores", "kept", "problems"},
    "aggregating": {"model", "template", "pseudo", "seed", "finish_reason", "gates", "events"},
}


def is_told(stage: str, value: Any) -> bool:
    """Whether a value of `meta` by that name is what the stage told."""
    return isinstance(value, OBJECT) and stage in STAGES and value.keys() == STAGES[stage]


def with_told(meta: Mapping[str, Any], stage: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` with what a stage tells, in the place of what it told before.

    A user's own column of that name stays, as `input_STAGE`.
    """
    made = dict(meta)
    if stage in made and not is_told(stage, own := made.pop(stage)):
        name = f"input_{stage}"
        while name in made and made[name] != own:
            name = f"input_{name}"
        made[name] = own
    return made | {stage: about}

"""Names of what stands side by side in one plot: NAME=PATH, or the end of the path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aft_factory.errors import UsageError


def named(sources: Sequence[str]) -> dict[str, Path]:
    """Return paths by name, in their order.

    One that is given no name has its last part, or, where others end so too, the whole of it.

    Raises:
        UsageError: If two have one name.

    Example:
        >>> list(named(["saves/sft", "mine=saves/aft"]))
        ['sft', 'mine']
    """
    pairs = [_pair(source) for source in sources]
    ends = Counter(path.resolve().name for _, path in pairs)
    names = [
        name or (path.resolve().name if ends[path.resolve().name] == 1 else str(path))
        for name, path in pairs
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"two have the name {twice[0]!r}; give them others: NAME=...")
    return dict(zip(names, (path for _, path in pairs), strict=True))


def _pair(source: str) -> tuple[str, Path]:
    name, equals, path = source.partition("=")
    if equals and name and path and not Path(source).exists():
        return name, Path(path)
    return "", Path(source)

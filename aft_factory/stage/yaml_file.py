"""Files of settings in YAML, read so that nothing in them is lost without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aft_factory.errors import UsageError
from aft_factory.records.files import read_text
from aft_factory.records.tables import is_table


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        UsageError: If it is not a mapping in YAML; names the line.
    """
    import yaml

    if path.suffix != ".json" and is_table(str(path)):
        raise UsageError(f"{path}: looks like a file of rows; expected lines of `key: value`")

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses what others take silently: of a name given twice, the last."""

        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):  # refused when it is made
                    continue
                if key.value in seen:
                    problem = f"{key.value} is given twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
            return node

    try:
        content = yaml.load(read_text(path), Loader)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # such as a day 32
        problem = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: expected lines of `key: value`")
    return content

"""What a server fills in where a request is silent, and what is sent so that it does not.

What a request leaves out, vLLM's server takes from the model's generation_config.json, and others
from defaults of their own; these values stand for nothing at all.
"""

from __future__ import annotations

import json
from typing import Any

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
LONGEST_DESCRIPTION = 5.0  # seconds to wait for what a server says of its requests


async def neutral_fields(
    http: Any, url: str, wait: float, offer: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Find out which of `NEUTRAL` a server takes: from its own description, if it has one.

    Without one, a server that lists models as vLLM does (`max_model_len`) is taken to read requests
    as vLLM does. Of all others nothing is known, and nothing is filled in.

    Args:
        http: Asks it.
        url: Of the server.
        wait: Most seconds for what is no answer of a model.
        offer: The models that it lists.

    Returns:
        By `messages` and `prompt`, whichever a request has: fields and their values.
    """
    found = fields_of(await _description(http, url, min(wait, LONGEST_DESCRIPTION)))
    if not found and any(entry.get("max_model_len") for entry in offer):
        found = {kind: set(NEUTRAL) for kind in ("messages", "prompt")}
    return {
        kind: {name: value for name, value in NEUTRAL.items() if name in names}
        for kind, names in found.items()
    }


async def _description(http: Any, url: str, wait: float) -> Any:
    address = url.removesuffix("/v1") + "/openapi.json"
    try:
        response = await http.get(address, timeout=wait)
        return json.loads(response.content) if response.status_code == 200 else None
    except Exception:  # no description, or none that can be read
        return None


def fields_of(description: Any) -> dict[str, set[str]]:
    """Return the fields that requests have by a server's OpenAPI description.

    Returns:
        By `messages` and `prompt`, whichever a request has: the names of all its fields.
    """
    found: dict[str, set[str]] = {}
    components = description.get("components") if isinstance(description, dict) else None
    schemas = components.get("schemas") if isinstance(components, dict) else None
    for schema in schemas.values() if isinstance(schemas, dict) else ():
        properties = schema.get("properties") if isinstance(schema, dict) else None
        names = set(properties) if isinstance(properties, dict) else set()
        for kind in ("messages", "prompt"):
            if {kind, "model", "temperature", "max_tokens", "n", "seed"} <= names:
                found[kind] = found[kind] & names if kind in found else names
    return found

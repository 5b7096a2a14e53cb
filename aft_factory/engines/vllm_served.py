"""What a model in this process, or a replica of it, is: settings, tokenizer, template, identity.

Told without loading the model itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.engines.identity import digest, fingerprint
from aft_factory.engines.vllm_loading import (
    adapter_rank,
    check_name,
    engine_tokenizer,
    own_template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Engine arguments that change what a model answers, beyond rounding.
DECIDING = ("revision", "dtype", "quantization", "kv_cache_dtype", "hf_overrides", "load_format")


@dataclass(frozen=True, slots=True)
class Served:
    """What is served.

    Attributes:
        settings: vLLM's engine arguments.
        tokenizer: The adapter's, if its folder holds one, else the model's.
        template: Renders conversations; None if there is none.
        identity: See `VllmEngine.model`.
    """

    settings: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    template: str | None
    identity: str

    @classmethod
    async def of(
        cls,
        model: str,
        adapter: str | None,
        chat_template: str,
        engine_args: Mapping[str, Any] | None,
    ) -> Served:
        """Tell what is served by these; see `VllmEngine.start`.

        Raises:
            UsageError: If the model, adapter, template or an argument cannot work.
        """
        settings: dict[str, Any] = {}
        check_name(model)
        if adapter is not None:
            settings |= {"enable_lora": True, "max_lora_rank": adapter_rank(Path(adapter))}
            if (Path(adapter) / "tokenizer_config.json").is_file():
                settings["tokenizer"] = str(adapter)
        settings |= engine_args or {}
        named = settings.get("tokenizer") or model
        tokenizer = await asyncio.to_thread(engine_tokenizer, named, settings)
        own = dict(settings)
        if "tokenizer" in (engine_args or {}):  # whose revision is another's than the model's
            own.pop("tokenizer_revision", None)
        models = partial(engine_tokenizer, model, own)
        template = await asyncio.to_thread(own_template, chat_template, tokenizer, models)
        identity = [*map(fingerprint, filter(None, (model, adapter))), digest(template)]
        identity += [f"{name}={settings[name]}" for name in DECIDING if name in settings]
        return cls(settings, tokenizer, template, "+".join(identity))

"""The command `python -m aft_factory.serve`: parse, serve, leave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aft_factory.errors import MissingPackage
from aft_factory.run.__main__ import RunArguments, preset_settings
from aft_factory.run.settings import preset_names
from aft_factory.serve.settings import ServeSettings
from aft_factory.stage.command import ConfigArguments, ConfiguredCommand
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import COMMON, declared, setting

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
EXAMPLES = """\
examples:
  # a model in this process, K=5 drafts, L=2 layers; then ask the models `aft` and `plain`
  aft serve --model saves/llama-aft --width 5 --layers 2 --port 8000

  # in front of servers that are there; a key for clients
  AFT_API_KEY=... aft serve --host 0.0.0.0 --base-url http://gpu1:8000/v1

  # try a configuration without a model
  aft serve --config examples/serve_llama.yaml --scripted
"""


@dataclass(frozen=True, slots=True)
class ServeArguments(ConfigArguments):
    """What a server takes beside its settings."""

    preset: str | None = setting(
        None, f"settings of a paper: {', '.join(preset_names())}", "NAME", group=COMMON
    )


def _preset(args: ServeArguments, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return what file and flags override; a preset's benchmark is none of a server's."""
    where, preset = preset_settings(RunArguments(preset=args.preset), given)
    known = declared(ServeSettings)
    return where, {name: value for name, value in preset.items() if name in known}


@dataclass(frozen=True, kw_only=True)
class _ServeCommand(ConfiguredCommand[ServeSettings]):
    def run(self, given: Mapping[str, Any]) -> int:
        return guarded(lambda: _serve(self.read(given)), "interrupted", lines=True)


COMMAND = _ServeCommand(
    name="serve",
    description="Serve propose-and-aggregate, or another strategy, as a model of OpenAI's API.",
    examples=EXAMPLES,
    settings=ServeSettings,
    arguments=ServeArguments,
    below=_preset,
)


main = COMMAND.main


def _serve(settings: ServeSettings) -> int:
    try:
        from aft_factory.serve.serving import serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise
        raise MissingPackage("serving", "'aft-factory[serve]'") from None
    asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())

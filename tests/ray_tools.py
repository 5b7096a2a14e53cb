"""What replicas hold in tests of Ray: a scripted engine that answers when it is told to."""

import asyncio
import os
from pathlib import Path

from aft_factory.engines.scripted import ScriptedEngine


class Gated(ScriptedEngine):
    """Answers as a scripted engine: some requests at once, all others when the gate is open.

    Its process's number is a file in the folder, as soon as it was asked.
    """

    def __init__(self, folder, free):
        super().__init__(model="scripted", record=False)
        self._folder, self._free = Path(folder), free

    async def sample(self, request):
        (self._folder / f"{os.getpid()}.asked").touch()
        self._free -= 1
        while self._free < 0 and not (self._folder / "open").exists():
            await asyncio.sleep(1.0)  # of all that are held up together, no heavy load
        return await super().sample(request)


async def gated(folder, free=0):
    """Open one, on its node."""
    return Gated(folder, free)


async def on_its_gpu():
    """Open one that tells which GPUs it has."""
    text = f"on GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}"
    return ScriptedEngine(lambda request: [text] * request.n, record=False)


def asked(folder):
    """The processes of replicas that were asked so far."""
    return {int(path.stem) for path in Path(folder).glob("*.asked")}

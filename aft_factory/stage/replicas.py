"""What answers on Ray: replicas of the model, as the settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from aft_factory.engines.ray_actor import Opening
from aft_factory.engines.ray_cluster import gpus_of, joined, on_gpus, placed
from aft_factory.engines.ray_engine import RayEngine
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.stage.job_settings import AskSettings
from aft_factory.stage.reward import RewardSettings, gpus_of_reward

if TYPE_CHECKING:
    from aft_factory.engines.vllm_served import Served

SCRIPTED = "scripted"


async def scripted(model: str = SCRIPTED, delay: float = 0.0) -> ScriptedEngine:
    """Return a scripted engine, on its node."""
    return ScriptedEngine(model=model, delay=delay, record=False)


@asynccontextmanager
async def open_replicas(settings: AskSettings) -> AsyncIterator[RayEngine]:
    """Open replicas of the model, and end them.

    Raises:
        UsageError: If it cannot be loaded, or no cluster is there.
    """
    assert settings.ray is not None
    size = 0 if settings.scripted else gpus_of(settings.engine_args)
    beside = 0
    if isinstance(settings, RewardSettings) and settings.loads_reward:
        beside = gpus_of_reward(settings)
    async with joined(settings.ray) as cluster:
        size = size and await on_gpus(size)
        loads, what, folders, served = await _model(settings, size)
        place = placed(cluster.without(beside), size, settings.replicas)
        engine = await RayEngine.start(loads, *place, what=what, folders=folders, served=served)
        try:
            yield engine
        finally:
            await engine.close()


async def _model(
    settings: AskSettings, size: int
) -> tuple[Opening, str, Sequence[str], Served | None]:
    """Return what loads the model, its name for people, its folders, and what it is."""
    if settings.scripted:
        return scripted, SCRIPTED, [], None
    from aft_factory.engines.vllm_engine import VllmEngine
    from aft_factory.engines.vllm_sampling import check_samplings
    from aft_factory.engines.vllm_served import Served

    check_samplings(settings.samplings())
    assert settings.model is not None
    adapter = None if settings.adapter is None else str(settings.adapter)
    # Ray is for between nodes; within one, vLLM is to begin its own processes.
    within = {"distributed_executor_backend": "mp"} if size > 1 else {}
    served = await Served.of(settings.model, adapter, settings.chat_template, settings.engine_args)
    loads = partial(
        VllmEngine.start,
        settings.model,
        adapter=adapter,
        chat_template=settings.chat_template,
        engine_args=within | settings.engine_args,
    )
    folders = [settings.model, *([] if adapter is None else [adapter])]
    return loads, settings.model, folders, served

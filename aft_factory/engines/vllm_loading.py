"""vLLM in this process: loading, its processes and failures, adapters, templates."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.engines.engine import EngineError
from aft_factory.errors import MissingPackage, UsageError, suggest
from aft_factory.prompts.tokenizer import (
    Pretrained,
    has_chat_template,
    load_tokenizer,
    resolve_chat_template,
)
from aft_factory.records.files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm.v1.engine.async_llm import AsyncLLM

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for
# Fields of an adapter that vLLM honours, and such as change nothing of a trained one: how it began,
# how it was trained, what it was made from. Taken from vLLM's PEFTHelper and peft's LoraConfig.
HARMLESS = frozenset(
    """
    r lora_alpha target_modules use_rslora
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    exclude_modules layers_to_transform layers_pattern lora_dropout init_lora_weights loftq_config
    eva_config corda_config lora_ga_config megatron_core runtime_config qalora_group_size
    """.split()  # noqa: SIM905 - a list would take a page
)
MERGE = "merge it into the model first, with: llamafactory-cli export"


def check_name(model: str) -> None:
    """Refuse what is neither a folder nor may be a hub name, before anything is loaded.

    Raises:
        UsageError: If it is neither.
    """
    if not Path(model).exists() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model):
        raise UsageError(f"no model folder {model!r}")


async def started(model: str, settings: Mapping[str, Any]) -> AsyncLLM:
    """Start vLLM with engine arguments. Takes a minute or more; a cancellation ends it.

    Raises:
        MissingPackage: If vLLM is not installed.
        UsageError: If the model or an argument cannot work.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as vLLM's own commands
    settings = {"enable_prefix_caching": True, "disable_log_stats": True, **settings}
    stop = threading.Event()
    before = set(multiprocessing.active_children())
    watched: set[int] = set()
    loading = asyncio.get_running_loop().run_in_executor(None, _load, model, settings, stop)
    try:
        while not loading.done():
            await asyncio.wait([loading], timeout=0.1)  # which leaves it be if cancelled
            own = {p.pid for p in set(multiprocessing.active_children()) - before if p.pid}
            _watch(own - watched)
            watched |= own
        return loading.result()
    except asyncio.CancelledError:
        stop.set()
        loading.add_done_callback(lambda done: done.exception())  # nobody will ask for it
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise


def _watch(processes: Iterable[int]) -> None:
    """Let processes be killed when this one is gone."""
    for process in processes:
        if (watch := _watcher()) and watch.stdin:
            with contextlib.suppress(OSError):  # it was killed itself
                watch.stdin.write(b"%d\n" % process)


@functools.cache
def _watcher() -> subprocess.Popen[bytes] | None:
    """Start `vllm_watch`, in a session of its own, which Ctrl-C does not reach."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        return None
    command = [sys.executable, "-IS", str(Path(__file__).with_name("vllm_watch.py"))]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    watch = subprocess.Popen(
        command, bufsize=0, stdin=pipe, stdout=null, stderr=null, start_new_session=True
    )
    assert watch.stdin is not None
    os.register_at_fork(after_in_child=watch.stdin.close)  # or a child would keep it open
    return watch


def _load(model: str, settings: Mapping[str, Any], stop: threading.Event) -> AsyncLLM:
    """Start vLLM from this thread, in which Ctrl-C is blocked: its processes inherit that.

    To ignore the signal is not enough, as they set handlers of their own, which shut down.
    """
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        if (error.name or "vllm").partition(".")[0] != "vllm":
            raise UsageError(f"vLLM cannot be imported: {error}") from error
        raise MissingPackage("running a model in this process", "'aft-factory[vllm]'") from None
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)} - {"model"}
    for name in settings:
        if name not in known:
            raise UsageError(f"vLLM has no engine argument {name!r}; {suggest(name, known)}")
    if current_platform.is_cpu():  # where vLLM 0.23 dies of a part of a prompt under a seed
        settings = {"enable_chunked_prefill": False, **settings}
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        # As offline inference: vLLM's defaults of how much to work on at once depend on it.
        context = UsageContext.LLM_CLASS
        config = AsyncEngineArgs(model=model, **settings).create_engine_config(context)
        if stop.is_set():
            raise UsageError("stopped while loading")
        llm = AsyncLLM.from_vllm_config(
            config, usage_context=context, disable_log_stats=bool(settings["disable_log_stats"])
        )
    except Exception as error:  # vLLM's readers raise anything
        raise UsageError(f"vLLM cannot load {model!r}: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if stop.is_set():
        llm.shutdown()
    return llm


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn what vLLM raises for a request into EngineError."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    # Of newer versions, whose refusals are no ValueError any more; older ones lack the module.
    names = sys.modules.get("vllm.exceptions")
    refusal = getattr(names, "VLLMClientError", ValueError)
    failure = getattr(names, "VLLMError", EngineGenerateError)
    try:
        yield
    except EngineDeadError as error:
        raise EngineError(f"vLLM has died: {error}", "fatal") from error
    except (ValueError, TypeError, refusal) as error:
        raise EngineError(f"vLLM: {error}", "refused") from error
    except (EngineGenerateError, failure) as error:
        raise EngineError(f"vLLM: {error.__cause__ or error}", "retry") from error


def adapter_rank(folder: Path) -> int:
    """Check that vLLM can serve an adapter and return the rank to make room for."""
    try:
        config = json.loads(read_text(folder / "adapter_config.json"))
        rank = int(config["r"])
    except FileNotFoundError:
        raise UsageError(f"{folder}: no LoRA adapter, as it has no adapter_config.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / 'adapter_config.json'}: not an adapter's: {error!r}") from None
    # Of other fields than these vLLM reads nothing: what they say would be left out.
    for field, value in config.items():
        if field not in HARMLESS and value not in (None, False, "none", [], {}):
            raise UsageError(f"{folder}: vLLM cannot serve {field}={value!r}; {MERGE}")
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        from safetensors import safe_open

        with safe_open(weights, framework="np") as file:
            names = list(file.keys())
            # Whole layers that were trained too, such as embed_tokens: vLLM would leave them out.
            whole = [name for name in names if ".lora_" not in name]
            if whole:
                raise UsageError(f"{folder}: vLLM cannot serve the trained {whole[0]}; {MERGE}")
            rows = [file.get_slice(name).get_shape()[0] for name in names if ".lora_A" in name]
        rank = max([rank, *rows])  # vLLM goes by the configuration, and fails on what is larger
    for room in LORA_RANKS:
        if rank <= room:
            return room
    raise UsageError(f"{folder}: vLLM serves ranks up to {LORA_RANKS[-1]}, this is {rank}; {MERGE}")


def engine_source(
    model: str, settings: Mapping[str, Any], flag: str = "--engine-args"
) -> Pretrained:
    """Return where vLLM takes a model from, by its engine arguments.

    Args:
        model: Folder or hub name.
        settings: vLLM's engine arguments.
        flag: What the user gives them by.
    """
    options = {
        "revision": settings.get("revision"),
        "trust_remote_code": settings.get("trust_remote_code"),
        "cache_dir": settings.get("download_dir"),
    }
    return Pretrained(model, options, f"{flag} trust_remote_code=true")


def engine_tokenizer(
    name: str, settings: Mapping[str, Any], flag: str = "--engine-args"
) -> PreTrainedTokenizerFast:
    """Load a tokenizer as vLLM would, by its engine arguments; see `engine_source`.

    Raises:
        UsageError: If there is no such tokenizer.
    """
    source = engine_source(name, settings, flag)
    options = {
        **source.options,
        "revision": settings.get("tokenizer_revision") or settings.get("revision"),
        # Its other modes are other encoders of the same vocabulary: ids are made here.
        "use_fast": False if settings.get("tokenizer_mode") == "slow" else None,
    }
    return load_tokenizer(source._replace(options=options))


def own_template(
    name: str, tokenizer: PreTrainedTokenizerFast, load_models: Callable[[], Any] | None = None
) -> str | None:
    """Return the chat template; None where `auto` finds none, as texts need none.

    Args:
        name: See `resolve_chat_template`; but of `auto` the tokenizer's own comes first.
        tokenizer: Whose.
        load_models: Loads the model's own tokenizer, where the other is an adapter's.
    """
    if name in ("auto", "own") and load_models is not None and not tokenizer.chat_template:
        tokenizer = load_models()
    if name == "auto" and not has_chat_template(tokenizer):
        return None
    return resolve_chat_template(name, tokenizer, own_first=True)

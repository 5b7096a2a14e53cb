"""vLLM in this process: a model folder or hub name, with or without a LoRA adapter.

Prompts are rendered and encoded here, by the tokenizer and chat template the model was trained
with, and go to vLLM as token ids. Ctrl-C reaches only this process: vLLM's own processes do not see
it, so that requests under way can finish.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from aft_factory.engines import EngineError
from aft_factory.errors import MissingPackage, UsageError, suggest
from aft_factory.sampling import Completion, Prompt, Reply, Request, Sampling, Usage
from aft_factory.tokenizer import load_tokenizer, resolve_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for
MERGE = "merge it into the model first, with: llamafactory-cli export"
# Engine arguments that change what a model answers, beyond rounding.
DECIDING = ("revision", "dtype", "quantization", "kv_cache_dtype", "hf_overrides", "load_format")
DECIDING_FILES = re.compile(
    r".*\.(safetensors|bin|pt|gguf)|(adapter_|generation_)?config\.json|tokenizer.*"
)


class VllmEngine:
    """An engine (`aft_factory.engines.Engine`) on vLLM; made with `await VllmEngine.start(...)`.

    Attributes:
        model: What answers. A hub name as it is; of a folder its resolved path and a fingerprint of
            the names, sizes and times of its weight, configuration and tokenizer files, so that
            another spelling of the path is the same model, and a model trained anew at the same
            place is another one. The adapter, the chat template and the engine arguments that
            change answers are part of it.
        context: Most tokens of prompt and completion together.
        tokenizer: The adapter's, if its folder holds one, else the model's.
        chat_template: Renders conversations; None if there is none, and only texts can be asked.
        max_sequences: How many samples vLLM works on at once.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        model: str,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None,
        lora: Any = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.context: int | None = llm.vllm_config.model_config.max_model_len
        self.max_sequences = llm.vllm_config.scheduler_config.max_num_seqs
        self._llm = llm
        self._lora = lora
        self._stop_ids = stop_token_ids(tokenizer, chat_template)
        # Fast tokenizers are not thread-safe, and the owner of `tokenizer` may be using it.
        self._encoder = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._numbers = itertools.count()

    @classmethod
    async def start(
        cls,
        model: str,
        *,
        adapter: str | None = None,
        chat_template: str = "auto",
        engine_args: Mapping[str, Any] | None = None,
    ) -> VllmEngine:
        """Load a model. Takes a minute or more; a cancellation ends it.

        Args:
            model: Folder or hub name.
            adapter: Folder of a LoRA adapter, as LLaMA-Factory saves it.
            chat_template: `llama3`, `mistral`, `own`, a path, or `auto`: the adapter's own, else
                the model's own, else by the vocabulary.
            engine_args: Of vLLM's `AsyncEngineArgs`, passed through.

        Raises:
            MissingPackage: If vLLM is not installed.
            UsageError: If the model, adapter, template or an argument cannot work.
        """
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as vLLM's own commands
        settings: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        if not Path(model).exists() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model):
            raise UsageError(f"no model folder {model!r}")
        if adapter is not None:
            settings |= {"enable_lora": True, "max_lora_rank": _adapter_rank(Path(adapter))}
            if (Path(adapter) / "tokenizer_config.json").is_file():
                settings["tokenizer"] = str(adapter)
        settings |= engine_args or {}
        tokenizer = await asyncio.to_thread(load_tokenizer, settings.get("tokenizer") or model)
        template = await asyncio.to_thread(_template, chat_template, tokenizer, model)
        identity = [*map(fingerprint, filter(None, (model, adapter))), _hash(template)]
        identity += [f"{name}={settings[name]}" for name in DECIDING if name in settings]
        stop = threading.Event()
        before = set(multiprocessing.active_children())
        loading = asyncio.get_running_loop().run_in_executor(None, _load, model, settings, stop)
        try:
            llm = await asyncio.shield(loading)
        except asyncio.CancelledError:
            stop.set()
            loading.add_done_callback(lambda done: done.exception())  # nobody will ask for it
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise
        lora = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            lora = LoRARequest("adapter", 1, str(Path(adapter).resolve()))
        engine = cls(
            llm, model="+".join(identity), tokenizer=tokenizer, chat_template=template, lora=lora
        )
        try:
            if lora is not None:  # now, so that what is wrong with it shows
                await llm.add_lora(lora)
        except BaseException as error:
            await engine.close()
            if not isinstance(error, Exception):
                raise
            raise UsageError(f"vLLM cannot serve the adapter {adapter!r}: {error}") from error
        return engine

    async def sample(self, request: Request) -> Reply:
        """Ask once; see `Engine.sample`."""
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._thread, self._encode, request.prompt)
        # As n requests, which is what vLLM makes of n: so each tells what it found cached. The
        # prompt is read once all the same, by prefix caching.
        samples = [self._one(ids, request, i) for i in range(request.n)]
        outputs = await asyncio.gather(*samples)
        completions = tuple(_completion(output) for output in outputs)
        # The first sample finds what came before this request, the others what the first one read.
        cached = [output.num_cached_tokens for output in outputs]
        before = None if None in cached else min(count or 0 for count in cached)
        written = sum(len(output.outputs[0].token_ids) for output in outputs)
        usage = Usage(len(ids), before, written)
        return Reply(completions, usage, tuple(ids))

    async def close(self) -> None:
        """End vLLM's processes."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._llm.shutdown)

    async def _one(self, ids: list[int], request: Request, index: int) -> RequestOutput:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        final = None
        try:
            params = _sampling_params(request.sampling, request.seed + index, self._stop_ids)
            prompt: Any = {"type": "token", "prompt_token_ids": ids}
            number = f"aft-{next(self._numbers)}"
            async for output in self._llm.generate(prompt, params, number, lora_request=self._lora):
                final = output
        except EngineDeadError as error:
            raise EngineError(f"vLLM has died: {error}", "fatal") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM: {error.__cause__ or error}", "retry") from error
        except (ValueError, TypeError) as error:
            raise EngineError(f"vLLM: {error}", "refused") from error
        if final is None or final.outputs[0].finish_reason in ("abort", "error"):
            raise EngineError("vLLM gave the request up", "retry")
        return final

    def _encode(self, prompt: Prompt) -> list[int]:
        try:
            if isinstance(prompt, str):
                return list(self._encoder.encode(prompt))
            if self.chat_template is None:
                raise EngineError(
                    "this model has no chat template to answer conversations with; "
                    "pass --chat-template llama3, mistral or a path",
                    "fatal",
                )
            return list(
                self._encoder.apply_chat_template(
                    [dict(message) for message in prompt],
                    chat_template=self.chat_template,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            )
        except EngineError:
            raise
        except Exception as error:  # a template is a program, and can fail in any way
            raise EngineError(f"cannot render the prompt: {error}", "refused") from error


def stop_token_ids(tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end of text and the template's.

    A base model's end of text is often not what its chat template ends a turn with, and training
    teaches the latter: the first special token that the template writes after an answer.
    """
    stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if chat_template is None:
        return stops
    answer = "Forty-two."
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=chat_template, tokenize=False)
    except Exception:  # not made for such a conversation: then the tokenizer's own has to do
        return stops
    tail = tokenizer.encode(str(text).rpartition(answer)[2], add_special_tokens=False)
    tokens = tokenizer.added_tokens_decoder
    ends = [token for token in tail if token in tokens and tokens[token].special]
    return list(dict.fromkeys(stops + ends[:1]))


def _sampling_params(sampling: Sampling, seed: int, stop_ids: Sequence[int]) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    unknown = set(sampling.extra) - set(SamplingParams.__struct_fields__)
    for name in sorted(unknown | (set(sampling.extra) & {"n", "seed", "output_kind"})):
        known = [field for field in SamplingParams.__struct_fields__ if field[0] != "_"]
        help_ = suggest(name, known) if name in unknown else "it is set by the run itself"
        raise EngineError(f"no sampling setting {name!r} for vLLM; {help_}", "fatal")
    settings: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        **sampling.extra,
    }
    if not settings.get("ignore_eos"):  # vLLM would stop at these nevertheless
        settings["stop_token_ids"] = [*stop_ids, *(settings.get("stop_token_ids") or [])]
    return SamplingParams(**settings, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY)


def _completion(output: RequestOutput) -> Completion:
    (sample,) = output.outputs
    ids = tuple(sample.token_ids)
    return Completion(sample.text, sample.finish_reason or "stop", len(ids), ids)


def _load(model: str, settings: Mapping[str, Any], stop: threading.Event) -> AsyncLLM:
    """Start vLLM from this thread, in which Ctrl-C is blocked: its processes inherit that.

    To ignore the signal is not enough, as they set handlers of their own, which shut down.
    """
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
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
        config = AsyncEngineArgs(model=model, **settings).create_engine_config()
        if stop.is_set():
            raise UsageError("stopped while loading")
        llm = AsyncLLM.from_vllm_config(
            config, disable_log_stats=bool(settings["disable_log_stats"])
        )
    except Exception as error:  # vLLM's readers raise anything
        raise UsageError(f"vLLM cannot load {model!r}: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if stop.is_set():
        llm.shutdown()
    return llm


def _adapter_rank(folder: Path) -> int:
    """Check that vLLM can serve an adapter and return the rank to make room for."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
    except FileNotFoundError:
        raise UsageError(f"{folder}: no LoRA adapter, as it has no adapter_config.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / 'adapter_config.json'}: not an adapter's: {error!r}") from None
    for field, plain in (("modules_to_save", None), ("use_dora", False), ("bias", "none")):
        if config.get(field) not in (plain, None, []):
            raise UsageError(f"{folder}: vLLM cannot serve {field}={config[field]!r}; {MERGE}")
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        from safetensors import safe_open

        with safe_open(weights, framework="np") as file:
            # Whole layers that were trained too, such as embed_tokens: vLLM would leave them out.
            whole = [name for name in file.keys() if ".lora_" not in name]  # noqa: SIM118
        if whole:
            raise UsageError(f"{folder}: vLLM cannot serve the trained {whole[0]}; {MERGE}")
    for room in LORA_RANKS:
        if rank <= room:
            return room
    raise UsageError(f"{folder}: vLLM serves ranks up to {LORA_RANKS[-1]}, this is {rank}; {MERGE}")


def _template(name: str, tokenizer: PreTrainedTokenizerFast, model: str) -> str | None:
    """Return the chat template; None where `auto` finds none, as texts need none."""
    if name not in ("auto", "own"):
        return resolve_chat_template(name, tokenizer)
    for candidate in (tokenizer, load_tokenizer(model)):
        if candidate.chat_template:
            return str(candidate.get_chat_template())
    try:
        return resolve_chat_template(name, tokenizer)
    except UsageError:
        if name == "own":
            raise
        return None


def fingerprint(model: str) -> str:
    """Return what a model or adapter is known by in journals; see `VllmEngine.model`."""
    path = Path(model)
    if not path.exists():
        return model
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(f.name, f.stat()) for f in files if DECIDING_FILES.fullmatch(f.name)]
    return f"{path.resolve()}#{_hash([(name, s.st_size, s.st_mtime_ns) for name, s in stats])}"


def _hash(content: Any) -> str:
    return hashlib.blake2b(orjson.dumps(content), digest_size=8).hexdigest()

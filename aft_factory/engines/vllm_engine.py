"""vLLM in this process: a model folder or hub name, with or without a LoRA adapter.

Prompts are rendered and encoded here, by the tokenizer and chat template the model was trained
with, and go to vLLM as token ids. Ctrl-C reaches only this process: vLLM's own processes do not see
it, so that requests under way can finish.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.engines.endings import is_broken
from aft_factory.engines.engine import EngineError
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.sampling import Completion, Piece, Prompt, Reply, Request, Told
from aft_factory.engines.telling import Special, apart
from aft_factory.engines.vllm_loading import failures, started
from aft_factory.engines.vllm_sampling import sampling_params, stop_token_ids
from aft_factory.engines.vllm_served import Served
from aft_factory.errors import UsageError
from aft_factory.prompts.thought_probes import Thoughts
from aft_factory.prompts.tokenizer import shows_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmEngine:
    """An engine (`engine.Engine`) on vLLM; made with `await VllmEngine.start(...)`.

    Attributes:
        model: What answers. A hub name as it is; of a folder its resolved path and a fingerprint of
            the names, sizes and times of its weight, configuration and tokenizer files, so that
            another spelling of the path is the same model, and a model trained anew at the same
            place is another one. The adapter, the chat template and the engine arguments that
            change answers are part of it.
        context: Most tokens of prompt and completion together.
        tokenizer: The adapter's, if its folder holds one, else the model's.
        chat_template: Renders conversations; None if there is none, and only texts can be asked.
        most_samples: 1 without prefix caching, where each sample reads the prompt by itself.
        max_sequences: How many samples vLLM works on at once.
    """

    tried: int = 0

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
        caching = llm.vllm_config.cache_config.enable_prefix_caching
        self.most_samples: int | None = None if caching else 1
        self.max_sequences = llm.vllm_config.scheduler_config.max_num_seqs
        self._llm = llm
        self._lora = lora
        self._stop_ids = stop_token_ids(tokenizer, chat_template)
        self._thoughts = Thoughts(tokenizer, chat_template)
        tokens = tokenizer.added_tokens_decoder.values()
        self._controls = [str(token.content) for token in tokens if token.special]
        self._special = Special(self._controls)
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
        served = await Served.of(model, adapter, chat_template, engine_args)
        llm = await started(model, served.settings)
        lora = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            lora = LoRARequest("adapter", 1, str(Path(adapter).resolve()))
        engine = cls(
            llm,
            model=served.identity,
            tokenizer=served.tokenizer,
            chat_template=served.template,
            lora=lora,
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
        return await self._answer(request, self._one)

    async def stream(self, request: Request, told: Told) -> Reply:
        """Ask once, and tell of the samples while they are written; see `Engine.stream`."""
        chat = not isinstance(request.prompt, str)
        words = self._thoughts(request.sampling.extra) if chat else None
        tell = apart(told, words, self._special)
        return await self._answer(request, partial(self._follow, tell or told))

    async def _answer(
        self,
        request: Request,
        one: Callable[[list[int], Request, int], Coroutine[Any, Any, RequestOutput]],
    ) -> Reply:
        if request.prompt_ids is not None:
            ids = list(request.prompt_ids)
        else:
            ids = await self._in_thread(self._encode, request.prompt, request.sampling.extra)
        # As n requests, which is what vLLM makes of n: so each tells what it found cached. The
        # prompt is read once all the same, by prefix caching.
        asked = self._unskipped(request)
        outputs = await gather_or_cancel(one(ids, asked, i) for i in range(request.n))
        completions = [_completion(output) for output in outputs]
        thought = 0
        if not isinstance(request.prompt, str):
            words = self._thoughts(request.sampling.extra)
            completions = [self._plain(completion.split(words)) for completion in completions]
            for completion in filter(attrgetter("thought"), completions):
                encode = partial(self._encoder.encode, add_special_tokens=False)
                thought += len(await self._in_thread(encode, completion.thought))
        # The first sample finds what came before this request, the others what the first one read.
        cached = [output.num_cached_tokens for output in outputs]
        before = None if None in cached else min(count or 0 for count in cached)
        written = sum(len(output.outputs[0].token_ids) for output in outputs)
        return Reply.of(completions, len(ids), before, written, thought)

    async def reachable(self) -> bool:
        """Tell whether vLLM is there."""
        return not self._llm.errored

    async def takes_system(self) -> bool:
        """Tell whether the chat template shows system messages."""
        return shows_system(self.tokenizer, self.chat_template)

    async def close(self) -> None:
        """End vLLM's processes."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._llm.shutdown)

    async def _one(self, ids: list[int], request: Request, index: int) -> RequestOutput:
        final = None
        async for output in self._outputs(ids, request, index, "FINAL_ONLY"):
            final = output
        return _ended(final)

    async def _follow(
        self, told: Told, ids: list[int], request: Request, index: int
    ) -> RequestOutput:
        final = None
        text = ""
        tokens: list[int] = []
        async for output in self._outputs(ids, request, index, "DELTA"):
            final = output
            (sample,) = output.outputs
            told(Piece(index, sample.text, len(text), ended=output.finished))
            text += sample.text
            tokens += sample.token_ids
        whole = _ended(final)
        whole.outputs[0].text, whole.outputs[0].token_ids = text, tokens
        return whole

    async def _outputs(
        self, ids: list[int], request: Request, index: int, kind: str
    ) -> AsyncIterator[RequestOutput]:
        """Go through what vLLM tells of a sample."""
        with failures():
            params = sampling_params(request.sampling, request.seed + index, self._stop_ids, kind)
            prompt = self._prompt(ids)
            number = f"aft-{next(self._numbers)}"
            outputs = self._llm.generate(prompt, params, number, lora_request=self._lora)
            async for output in outputs:
                yield output

    def _prompt(self, ids: list[int]) -> Any:
        """Return what vLLM takes for token ids."""
        return {"type": "token", "prompt_token_ids": ids}

    async def _in_thread(self, work: Callable[..., list[int]], *given: Any) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    def _unskipped(self, request: Request) -> Request:
        """Return a request whose texts keep control tokens, if thoughts stand between such."""
        words, sampling = self._thoughts(request.sampling.extra), request.sampling
        if isinstance(request.prompt, str) or not any(
            token in word for token in self._controls for word in (words.opening, words.closing)
        ):
            return request
        kept = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        return replace(request, sampling=replace(sampling, extra={**sampling.extra, **kept}))

    def _plain(self, completion: Completion) -> Completion:
        """Return a completion whose texts hold no control tokens."""
        text, thought = map(self._special.out_of, (completion.text, completion.thought))
        return replace(completion, text=text, thought=thought)

    def _encode(self, prompt: Prompt, settings: Mapping[str, Any] | None = None) -> list[int]:
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
                    **((settings or {}).get("chat_template_kwargs") or {}),
                )
            )
        except EngineError:
            raise
        except Exception as error:  # a template is a program, and can fail in any way
            raise EngineError(f"cannot render the prompt: {error}", "refused") from error


def _ended(final: RequestOutput | None) -> RequestOutput:
    """Return the last that vLLM told of a sample, if it came to its end."""
    if final is None or is_broken(final.outputs[0].finish_reason):
        raise EngineError("vLLM gave the request up", "retry")
    return final


def _completion(output: RequestOutput) -> Completion:
    (sample,) = output.outputs
    reason, stopped = sample.finish_reason or "stop", isinstance(sample.stop_reason, str)
    return Completion(sample.text, reason, len(sample.token_ids), stopped=stopped)

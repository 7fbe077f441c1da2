"""Requests to ``AsyncLLM`` itself, without HTTP and chat template: tokens or text in, tokens out.

Each is a task on the engine's loop; its outputs cross to the caller's as they come. A request that nobody waits for any
more is cancelled there, and with it its sequences in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from uuid import uuid4

from llmprod.errors import EngineDied, LLMProdError, ReadError
from llmprod.providers._errors import error_for
from llmprod.providers._vllm.sampling import Sampling

if TYPE_CHECKING:
    from llmprod.providers._vllm.crossing import Channel
    from llmprod.providers._vllm.incarnation import Incarnation

__all__ = ["Begin", "TokenCall", "embedding", "generation", "tokenized"]

Begin: TypeAlias = Callable[["Incarnation", str], Awaitable[AsyncGenerator[Any]]]
"""Begins a request of this name in the engine; called on the engine's loop."""
Prompt: TypeAlias = str | Sequence[int]

_END = object()
_REFUSED = {"VLLMClientError": 400, "VLLMNotFoundError": 404, "VLLMUnprocessableEntityError": 422}


class TokenCall:
    """A request in the engine. Made and read on the caller's loop; the rest happens on the engine's.

    Attributes:
        request_id: its id, as the meter knows it.
        incarnation: the engine that it is in.
    """

    __slots__ = ("_begin", "_channel", "_ended", "_left", "_some", "_task", "_told", "incarnation", "request_id")

    def __init__(self, incarnation: Incarnation, begin: Begin, request_id: str | None = None) -> None:
        self.incarnation = incarnation
        self.request_id: str = request_id or uuid4().hex
        self._begin = begin
        self._channel: Channel[Any] = incarnation.crossing.channel()
        self._task: asyncio.Task[None] | None = None
        self._told = self._left = False
        self._some = self._ended = False

    # ---- on the caller's loop ---------------------------------------------------------------------------------------

    def start(self) -> TokenCall:
        """Send it to the engine."""
        if not self.incarnation.soon(self._start):
            raise EngineDied(silent=True)
        return self

    async def next(self) -> Any | None:
        """Return the next output; None at the end.

        Raises:
            EngineDied: the engine ended before.
            BadRequest: the engine refuses the request.
        """
        if self._ended:
            return None
        item = await self._channel.receive()
        if item is _END:
            self._ended = True
            return None
        if isinstance(item, Exception):
            self._ended = True
            if isinstance(item, EngineDied):
                item.in_stream, item.silent = self._some, not self._some
            raise item
        self._some = True
        return item

    async def last(self) -> Any:
        """Wait for the end and return the last output; the request is dropped if the caller is cancelled."""
        output = None
        try:
            while (item := await self.next()) is not None:
                output = item
        except BaseException:
            self.abandon()
            raise
        if output is None:
            raise ReadError(detail="vLLM ended the request without an output", silent=True)
        return output

    def abandon(self) -> None:
        """Drop what the engine still computes; from any thread, more than once."""
        if not self._ended:
            self._ended = True
            self.incarnation.soon(self._leave)

    # ---- on the engine's loop ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.incarnation.entered(self)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._done)

    def _leave(self) -> None:
        self._left = True
        if self._task is not None:
            self._task.cancel()

    def died(self) -> None:
        """The engine is gone: tell the reader at once."""
        self._tell(EngineDied())
        self._leave()

    async def _run(self) -> None:
        incarnation, name = self.incarnation, f"tokens-{self.request_id}"
        if incarnation.dead:
            raise EngineDied
        try:
            async with contextlib.aclosing(await self._begin(incarnation, name)) as outputs:
                async for output in outputs:
                    self._channel.send(output)
        except asyncio.CancelledError:
            # Cancelled while it was being handed over, it may be in the engine without its task knowing.
            if not incarnation.dead:
                with contextlib.suppress(Exception):
                    await incarnation.engine.abort(name)
            raise

    def _done(self, task: asyncio.Task[None]) -> None:
        self.incarnation.left(self)
        if task.cancelled():
            if not self._left:
                self._tell(EngineDied())
            return
        error = task.exception()
        self._tell(_END if error is None else _ours(error, self.incarnation, self.request_id))

    def _tell(self, item: Any) -> None:
        if not self._told:
            self._told = True
            self._channel.send(item)


def _ours(error: BaseException, incarnation: Incarnation, request_id: str) -> LLMProdError:
    """Return this library's error for one of vLLM's, whose message may quote the prompt."""
    if isinstance(error, LLMProdError):
        return error
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if incarnation.dead or "EngineDeadError" in kinds:
        died = EngineDied()
        died.__cause__ = error
        return died
    cause: BaseException = error
    if "EngineGenerateError" in kinds and error.__cause__ is not None:
        cause = error.__cause__
        kinds = [kind.__name__ for kind in type(cause).__mro__]
    status = getattr(cause, "http_status", None) or next((_REFUSED[kind] for kind in kinds if kind in _REFUSED), None)
    if status is None:
        status = 400 if isinstance(cause, (ValueError, TypeError, NotImplementedError)) else 500
    told = error_for(
        int(status), kind=kinds[0], message=str(cause), param=getattr(cause, "parameter", None), request_id=request_id
    )
    if told.status == 500:
        told.__cause__ = error
    return told


# ---- what a request does in the engine ------------------------------------------------------------------------------


def generation(
    prompt: Prompt, sampling: Sampling, *, stream: bool, priority: int = 0, adapter: str | None = None,
    salt: str | None = None,
) -> Begin:  # fmt: skip
    """Return a request for ``prompt``'s continuation.

    Args:
        prompt: text, or token ids.
        sampling: how.
        stream: outputs as the tokens come, instead of one at the end.
        priority: vLLM's, of which the lowest goes first.
        adapter: name of a LoRA adapter.
        salt: calls of another share no prefix cache with it.
    """

    async def begin(incarnation: Incarnation, name: str) -> AsyncGenerator[Any]:
        engine = incarnation.engine
        if sampling.prompt_logprobs is not None:
            incarnation.check_prompt_logprobs()
        options: dict[str, Any] = {}
        if sampling.structured is not None and "reasoning_ended" in inspect.signature(engine.generate).parameters:
            options["reasoning_ended"] = True  # without a template there is no thinking to wait for
        params = sampling.for_vllm(incarnation.modules, stream=stream)
        rendered = await _rendered(incarnation, prompt, salt)
        made = engine.generate(
            rendered, params, name, lora_request=_lora(incarnation, adapter), priority=priority, **options
        )
        return cast("AsyncGenerator[Any]", made)

    return begin


def embedding(prompt: Sequence[int], *, adapter: str | None = None) -> Begin:
    """Return a request for the vector of ``prompt``, token ids."""

    async def begin(incarnation: Incarnation, name: str) -> AsyncGenerator[Any]:
        params = incarnation.modules.PoolingParams(task="embed")
        rendered = await _rendered(incarnation, prompt, None)
        made = incarnation.engine.encode(rendered, params, name, lora_request=_lora(incarnation, adapter))
        return cast("AsyncGenerator[Any]", made)

    return begin


def _lora(incarnation: Incarnation, adapter: str | None) -> Any:
    return None if adapter is None else incarnation.adapters[adapter]


async def _rendered(incarnation: Incarnation, prompt: Prompt, salt: str | None) -> Any:
    """Return ``prompt`` in the form that the release wants; tokenizing happens in vLLM's own threads."""
    given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": list(prompt)}
    if salt is not None:
        given["cache_salt"] = salt
    engine = incarnation.engine
    (rendered,) = await engine.renderer.render_cmpl_async(
        [incarnation.modules.parse_model_prompt(engine.model_config, given)]
    )
    return rendered


async def tokenized(incarnation: Incarnation, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Return the tokens of each text; called on the engine's loop.

    Args:
        incarnation: the engine, whose tokenizer it is.
        texts: the texts, of any length.
        special: add the special tokens that the tokenizer puts before and after a prompt.
    """
    engine = incarnation.engine
    known = [text for text in texts if text]  # vLLM refuses an empty prompt
    if not known:
        return [[] for _ in texts]
    parse = incarnation.modules.parse_model_prompt
    try:
        params = dataclasses.replace(
            engine.renderer.default_cmpl_tok_params, add_special_tokens=special, max_total_tokens=None
        )
        rendered = await engine.renderer.render_cmpl_async(
            [parse(engine.model_config, {"prompt": text}) for text in known], params
        )
    except Exception as error:  # noqa: BLE001 - made ours
        raise _ours(error, incarnation, "") from None
    found = iter(rendered)
    return [list(next(found)["prompt_token_ids"]) if text else [] for text in texts]

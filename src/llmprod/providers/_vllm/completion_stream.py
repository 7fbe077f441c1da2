"""A completion that is read while it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio

from llmprod.errors import CallError, DeadlineExceeded, LLMProdError
from llmprod.providers._vllm.sampling import Sampling
from llmprod.providers._vllm.token_reading import Parts, piece_of, prompt_tokens_of, usage_of
from llmprod.providers._vllm.token_records import Completion, CompletionDelta, ScoredToken
from llmprod.providers._vllm.tokens import TokenCall
from llmprod.response import EngineTiming

__all__ = ["CompletionStream", "Started"]


class Started:
    """A request that has been sent to the engine, and how its cost is told.

    Attributes:
        call: the request.
        timing: filled in when the engine is done with it.
        cost: US dollars of (prompt tokens computed, tokens written); None where unknown.
    """

    def __init__(
        self, call: TokenCall, timing: EngineTiming, cost: Callable[[int, int], Decimal | None]
    ) -> None:  # fmt: skip
        self.call: TokenCall = call
        self.timing: EngineTiming = timing
        self.cost: Callable[[int, int], Decimal | None] = cost


class CompletionStream:
    """Continuations as they are written; get one by ``async with local.stream_complete(…) as stream``.

    Iterate it for :class:`CompletionDelta`. Leaving the ``async with`` block, by whatever way, aborts what the engine
    still computes.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Started]], sampling: Sampling, model: str, deadline: float | None
    ) -> None:
        self._start = start
        self._sampling = sampling
        self._model = model
        self._seconds = deadline
        self._until: float | None = None
        self._started: Started | None = None
        self._closed = False
        self._ready: deque[CompletionDelta] = deque()
        self._parts: dict[int, Parts] = {index: Parts(index) for index in range(sampling.n)}
        self._prompt: tuple[int, ...] = ()
        self._prompt_logprobs: tuple[ScoredToken | None, ...] = ()
        self._cached = 0
        self._cost: Decimal | None = None

    async def __aenter__(self) -> CompletionStream:
        if self._started is not None or self._closed:
            raise RuntimeError("a stream is entered once; make another by stream_complete()")
        if self._seconds is not None:
            self._until = anyio.current_time() + self._seconds
        self._started = await self._limited(self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort what the engine still computes, at once; nothing more is handed out. May be called more than once."""
        if not self._closed:
            self._settle()
        self._ready.clear()
        if self._started is not None:
            self._started.call.abandon()

    def __del__(self) -> None:
        if self._started is not None and not self._closed:
            self.close()

    def __aiter__(self) -> CompletionStream:
        return self

    async def __anext__(self) -> CompletionDelta:
        """Return the next delta.

        Raises:
            EngineDied: the engine ended before the answer did; :attr:`completion` has what had come.
            BadRequest: the engine refuses the request.
            DeadlineExceeded: the time is up.
        """
        ready = self._ready
        while not ready:
            if self._closed:
                raise StopAsyncIteration
            if self._started is None:
                raise RuntimeError("read it inside of: async with local.stream_complete(…) as stream")
            try:
                item = await self._limited(self._started.call.next)
                if item is None:
                    self._settle()
                    raise StopAsyncIteration
                self._take(item)
            except LLMProdError as error:
                self.close()
                if isinstance(error, CallError):
                    error.provider, error.model = error.provider or "vllm", error.model or self._model
                raise
        return ready.popleft()

    async def _limited(self, function: Callable[[], Awaitable[Any]]) -> Any:
        if self._until is None:
            return await function()
        with anyio.CancelScope(deadline=self._until):
            return await function()
        self.close()
        raise DeadlineExceeded(self._seconds, provider="vllm", model=self._model)

    def _take(self, item: Any) -> None:
        top, prompt_top = self._sampling.logprobs, self._sampling.prompt_logprobs
        if not self._prompt:
            self._prompt = tuple(item.prompt_token_ids or ())
        if item.prompt_logprobs and not self._prompt_logprobs:
            self._prompt_logprobs = prompt_tokens_of(item, prompt_top)
        self._cached = max(self._cached, item.num_cached_tokens or 0)
        for output in item.outputs:
            delta = piece_of(CompletionDelta, output, top)
            self._parts[delta.index].add(delta)
            self._ready.append(delta)

    def _settle(self) -> None:
        self._closed = True
        if self._started is not None:
            self._cost = self._started.cost(len(self._prompt) - self._cached, self._written)

    @property
    def _written(self) -> int:
        return sum(map(len, self._parts.values()))

    @property
    def completion(self) -> Completion:
        """What has come so far; whole once the iteration has ended by itself."""
        started = self._started
        return Completion(
            model=self._model,
            choices=tuple(part.choice() for part in self._parts.values()),
            prompt_token_ids=self._prompt,
            prompt_logprobs=self._prompt_logprobs,
            usage=usage_of(len(self._prompt), self._cached, self._written),
            cached=self._cached,
            timing=EngineTiming() if started is None else started.timing,
            cost=self._cost,
            request_id="" if started is None else started.call.request_id,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._started is not None else "not entered"
        return f"<CompletionStream {self._model} {state}, {self._written} tokens>"

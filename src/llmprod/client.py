"""The two clients: the same stack, awaited or not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, Literal, TypeVar, Unpack, cast

from llmprod._background import Background, background
from llmprod._calls import BaseClient, CallOptions, GenerateOptions, Messages
from llmprod.batch.handles import Batch, SyncBatch
from llmprod.batch.inputs import Handed, checked, feed_of, length_of
from llmprod.batch.records import BatchInput, BatchProgress
from llmprod.errors import ForkedProcess
from llmprod.response import Response
from llmprod.sync_response import SyncResponse

__all__ = ["AsyncClient", "Client", "StreamCall"]

T = TypeVar("T")


class StreamCall:
    """A stream about to be opened: ``async with client.stream(...) as response`` or ``await client.stream(...)``."""

    def __init__(self, send: Callable[[], Awaitable[Response]]) -> None:
        self._send = send
        self._response: Response | None = None

    def __await__(self) -> Generator[Any, None, Response]:
        return self._send().__await__()

    async def __aenter__(self) -> Response:
        self._response = await self._send()
        return self._response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            await self._response.aclose()


class AsyncClient(BaseClient):
    """Production behaviour around a model, on asyncio and trio.

    Args:
        model: a model string such as ``openai:gpt-5`` or ``vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1``, a
            provider, or a stack of your own.
        fallbacks: model strings or providers that are asked in order when those before can't serve a call.
        wrappers: just these instead of the standard stack, outermost first.
        api_key: for ``model`` if it is a string, instead of the usual environment variable. A list of keys makes a
            :class:`KeyPool`: refused keys are left out, throttled ones left alone.
        base_url: likewise, another address of the API.
        http: how to reach the servers: engine, proxy, TLS, or an HTTP client of yours.
        tags: labels of every call.
        cost_meter: counts what calls cost, with prices, ledger and callbacks of your choice (default: ``CostMeter()``).
        listeners: functions that are told every :class:`Decision` as it is made, with the call's context.
        clock: time, for tests.
        random: chance, for tests.

    Raises:
        InvalidArgument: naming the argument.
        MissingKey: an API needs a key and none is there.
    """

    async def generate(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Response:
        """Return a whole answer.

        Args:
            messages: a string, a :class:`Message`, or a sequence of messages and OpenAI-style dicts.
            **options: see :class:`GenerateOptions`.

        Raises:
            InvalidArgument: before anything is sent, naming the field.
            CallError: the call failed; ``error.trace`` tells what was tried.
        """
        return await self._call(lambda: self._generate_request(messages, options, stream=False), options)

    def stream(self, messages: Messages, **options: Unpack[GenerateOptions]) -> StreamCall:
        """Open a stream: ``async with client.stream(...) as response``, then iterate it.

        Arguments and errors as with :meth:`generate`. Once content was shown, a failure is
        :class:`StreamInterrupted`, which carries the partial answer.
        """
        return StreamCall(lambda: self._call(lambda: self._generate_request(messages, options, stream=True), options))

    async def embed(
        self, inputs: str | Sequence[str], *, dimensions: int | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """Return one embedding for each input, in ``response.embeddings``."""
        return await self._call(lambda: self._embed_request(inputs, dimensions, options), options)

    def map(
        self,
        requests: Iterable[BatchInput] | AsyncIterable[BatchInput],
        /,
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[BatchProgress], object] = False,
        checkpoint: str | os.PathLike[str] | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        **options: Unpack[GenerateOptions],
    ) -> Batch:
        """Answer many requests, a bounded number at once: ``async for result in client.map(requests)``.

        Args:
            requests: an iterable or async iterable, endless ones too, of what :meth:`generate` takes, of
                :class:`GenerateRequest` and :class:`EmbedRequest`, and of :class:`BatchItem`. Taken as there is room:
                at most four times ``concurrency`` items are taken and not yet given out.
            concurrency: calls at once. None: as many as the model says it wants, as an embedded engine does; else 32.
            ordered: give results in the order of the input; False: as they are done.
            progress: True for a line on standard error; or a function that is told a :class:`BatchProgress` whenever
                an item ends, and once at the end.
            checkpoint: a file of JSON lines, to which each item is written as it ends. A later run with it sends only
                what it does not hold yet: an item is the same if its key and its whole request are. One run at a time.
            on_error: ``yield`` failed items like others; ``raise`` at the first, after cancelling the rest.
            **options: those of :meth:`generate`, for all items; see :class:`GenerateOptions`. They fill in what a whole
                request leaves unset.

        Returns:
            An async iterator of :class:`BatchResult`, and a context manager that waits for what it cancels.

        Raises:
            InvalidArgument: at once, naming the argument; while iterating, a checkpoint that can't be used.
            ClientClosed: the client is closed, or was while iterating.
            OSError: while iterating, the checkpoint can't be read or written.
        """
        engine = self._batch(
            feed_of(checked(requests)),
            length_of(requests),
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            checkpoint=checkpoint,
            on_error=on_error,
            options=options,
        )
        return Batch(engine)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Calls made after it raise :class:`ClientClosed`."""
        await self._close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Client(BaseClient):
    """Production behaviour around a model, for synchronous code: scripts, threads, notebooks.

    The same stack as :class:`AsyncClient`, run by one background event loop that all clients of the process share. Safe
    in threads and beside a running event loop; refused after ``fork``; closed at exit.

    Args:
        model: a model string such as ``openai:gpt-5`` or ``vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1``, a
            provider, or a stack of your own.
        fallbacks: model strings or providers that are asked in order when those before can't serve a call.
        wrappers: just these instead of the standard stack, outermost first.
        api_key: for ``model`` if it is a string, instead of the usual environment variable. A list of keys makes a
            :class:`KeyPool`: refused keys are left out, throttled ones left alone.
        base_url: likewise, another address of the API.
        http: how to reach the servers: engine, proxy or TLS.
        tags: labels of every call.
        cost_meter: counts what calls cost, with prices, ledger and callbacks of your choice (default: ``CostMeter()``).
        listeners: functions that are told every :class:`Decision` as it is made, with the call's context.
        clock: time, for tests.
        random: chance, for tests.

    Raises:
        InvalidArgument: naming the argument.
        MissingKey: an API needs a key and none is there.
    """

    _loop: Background | None = None

    def _run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        return self._home().run(function, *args)

    def _home(self) -> Background:
        if self._pid != os.getpid():
            raise ForkedProcess("a Client")
        if self._loop is None:
            self._loop = background()
            self._loop.close_at_exit(self)
        return self._loop

    def generate(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Response:
        """Return a whole answer; see :meth:`AsyncClient.generate`."""
        request = self._generate_request(messages, options, stream=False)
        return self._run(self._call, lambda: request, options)

    def stream(self, messages: Messages, **options: Unpack[GenerateOptions]) -> SyncResponse:
        """Open a stream: ``with client.stream(...) as response``, then iterate it; see :meth:`AsyncClient.stream`."""
        request = self._generate_request(messages, options, stream=True)
        response = self._run(self._call, lambda: request, options)
        return SyncResponse(response, cast("Background", self._loop))

    def embed(
        self, inputs: str | Sequence[str], *, dimensions: int | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """Return one embedding for each input, in ``response.embeddings``."""
        request = self._embed_request(inputs, dimensions, options)
        return self._run(self._call, lambda: request, options)

    def map(
        self,
        requests: Iterable[BatchInput] | AsyncIterable[BatchInput],
        /,
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[BatchProgress], object] = False,
        checkpoint: str | os.PathLike[str] | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        **options: Unpack[GenerateOptions],
    ) -> SyncBatch:
        """Answer many requests, a bounded number at once: ``for result in client.map(requests)``.

        Arguments and errors as with :meth:`AsyncClient.map`. Items are taken in the thread that iterates, when it asks
        for a result; from an async iterable, on the background loop.

        Returns:
            An iterator of :class:`BatchResult` with ``close()``, and a context manager that waits for what it cancels.
        """
        many, handed = checked(requests), Handed()
        engine = self._batch(
            feed_of(many) if isinstance(many, AsyncIterable) else handed,
            length_of(requests),
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            checkpoint=checkpoint,
            on_error=on_error,
            options=options,
        )
        return SyncBatch(engine, self._home(), None if isinstance(many, AsyncIterable) else iter(many), handed)

    def close(self) -> None:
        """Close the connections. Calls made after it raise :class:`ClientClosed`."""
        if not self._closed:
            self._closed = True
            if self._loop is not None or self._held:  # an engine is held from the start, a loop from the first call
                self._run(self._close)

    async def aclose(self) -> None:
        """Close the connections, on the background loop; called at the interpreter's exit."""
        await self._close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

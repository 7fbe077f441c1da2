"""The two clients: the same stack, awaited or not."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, cast

from llmprod._background import Background, background
from llmprod._validate import labels, seconds, strings
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.context import Context
from llmprod.errors import ClientClosed, ForkedProcess, InvalidArgument, LLMProdError
from llmprod.events import Event, TextDelta, TokenLogprob
from llmprod.presets import standard
from llmprod.provider import Provider
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import Key
from llmprod.providers.registry import from_string
from llmprod.request import EmbedRequest, GenerateRequest, ReasoningEffort, Request
from llmprod.response import Response, Timing
from llmprod.schema import OutputSchema, Tool
from llmprod.trace import Trace
from llmprod.types import Message, Part, ToolCall, coerce_messages
from llmprod.usage import FinishReason, Usage
from llmprod.wrapper import Stack, WrappedProvider, Wrapper, describe, leaves
from llmprod.wrappers.deadline import Deadline

__all__ = ["AsyncClient", "CallOptions", "Client", "GenerateOptions", "StreamCall", "SyncResponse"]

Messages = str | Message | Sequence[Message | Mapping[str, Any]]
T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """Options of every call.

    Attributes:
        deadline: seconds that this call may take in all; the stack's own deadline counts too.
        tags: labels (user, tenant, endpoint, session …), added to the client's.
        extra: what one vendor alone has, by provider name: ``{"openai": {"service_tier": "flex"}}``.
        drop_unsupported: leave out what a target can't honour instead of raising; see ``response.dropped``.
        prompt: name and version of the prompt.
        lineage: ids of the documents that the prompt was built from.
    """

    deadline: float | None
    tags: Mapping[str, str]
    extra: Mapping[str, Mapping[str, Any]]
    drop_unsupported: bool
    prompt: tuple[str, str]
    lineage: Sequence[str]


class GenerateOptions(CallOptions, total=False):
    """Options of ``generate`` and ``stream``; see :class:`llmprod.GenerateRequest` for what they mean.

    Attributes:
        system: instructions, put before the messages.
        tools: :class:`llmprod.Tool` objects or annotated functions.
        output: a type or JSON Schema that the answer must fit; read it with ``response.parsed``.
    """

    system: str | None
    tools: Sequence[Tool | Callable[..., Any]]
    tool_choice: str | None
    parallel_tool_calls: bool | None
    output: Any
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    reasoning_effort: ReasoningEffort | None


_CALL = frozenset(CallOptions.__annotations__)
_GENERATE = _CALL | frozenset(GenerateOptions.__annotations__)


class _Core:
    """What both clients share: the stack, and turning arguments into requests."""

    def __init__(
        self,
        model: str | Provider,
        *,
        fallbacks: Sequence[str | Provider] = (),
        wrappers: Sequence[Wrapper] | None = None,
        api_key: Key | None = None,
        base_url: str | None = None,
        http: HTTPOptions | None = None,
        tags: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        for field, given, allowed in (
            ("fallbacks", fallbacks, "a list of model strings and providers"),
            ("wrappers", wrappers or (), "a list of wrappers"),
        ):
            if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
                raise InvalidArgument(field, type(given).__name__, allowed)
        labels("tags", tags or {})
        primary = _target("model", model, api_key=api_key, base_url=base_url, http=http)
        others = [_target(f"fallbacks[{place}]", item, http=http) for place, item in enumerate(fallbacks)]
        if wrappers is not None:
            if others:
                raise InvalidArgument(
                    "fallbacks", "given with wrappers", "either of them; or pass Failover(...) as the model"
                )
            self.provider = Stack(*wrappers)(primary)
        elif others or not (isinstance(primary, WrappedProvider) or hasattr(primary, "targets")):
            self.provider = standard(primary, others, clock=clock, random=random)
        else:
            self.provider = primary  # already composed by the caller
        self.tags = dict(tags or {})
        self._clock = clock
        self._random = random
        self._kinds = {leaf.name.partition(":")[0] for leaf in leaves(self.provider)}
        self._bounded = isinstance(getattr(self.provider, "wrapper", None), Deadline)
        self.pid = os.getpid()
        self.closed = False

    async def call(self, make: Callable[[], Request], options: Mapping[str, Any]) -> Response:
        if self.closed:
            raise ClientClosed
        request = make()
        deadline = options.get("deadline")
        seconds("deadline", deadline, optional=True)
        tags, prompt = options.get("tags"), options.get("prompt")
        labels("tags", tags or {})
        if prompt is not None and len(strings("prompt", prompt)) != 2:
            raise InvalidArgument("prompt", f"{len(prompt)} strings", "two strings: the prompt's name and version")
        context = Context.new(
            clock=self._clock,
            random=self._random,
            seconds=deadline,
            tags=self.tags if not tags else {**self.tags, **tags},
            prompt=None if prompt is None else (prompt[0], prompt[1]),
            lineage=strings("lineage", options.get("lineage", ())),
        )
        provider = self.provider if self._bounded or deadline is None else Deadline(deadline)(self.provider)
        try:
            return await provider.send(request, context)
        except LLMProdError as error:
            error.trace = context.trace
            raise

    def generate_request(self, messages: Messages, options: Mapping[str, Any], *, stream: bool) -> GenerateRequest:
        self._known(options, _GENERATE)
        fields = {name: value for name, value in options.items() if name not in _NOT_FIELDS}
        if "tools" in fields:
            fields["tools"] = _tools(fields["tools"])
        if fields.get("output") is not None:
            fields["output"] = _schema(fields["output"])
        if "stop" in fields:
            stop = fields["stop"]
            fields["stop"] = (stop,) if isinstance(stop, str) else strings("stop", stop or ())
        return GenerateRequest(
            messages=coerce_messages(messages, system=options.get("system")), stream=stream, **fields
        )

    def embed_request(
        self, inputs: str | Sequence[str], dimensions: int | None, options: Mapping[str, Any]
    ) -> EmbedRequest:
        self._known(options, _CALL)
        if not isinstance(inputs, (str, Sequence)) or isinstance(inputs, bytes):
            raise InvalidArgument("inputs", type(inputs).__name__, "a string or a sequence of strings")
        fields = {name: options[name] for name in ("extra", "drop_unsupported") if name in options}
        return EmbedRequest(
            inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs), dimensions=dimensions, **fields
        )

    def _known(self, options: Mapping[str, Any], allowed: frozenset[str]) -> None:
        for name in options:
            if name not in allowed:
                raise InvalidArgument(name, "an unknown option", ", ".join(sorted(allowed)))
        extra = options.get("extra", {})
        if not isinstance(extra, Mapping):
            raise InvalidArgument("extra", type(extra).__name__, "a dict by provider name")
        for name in cast("Mapping[str, Any]", extra):
            if name not in self._kinds:
                raise InvalidArgument(
                    f"extra[{name!r}]", "a provider that is not in the stack", ", ".join(sorted(self._kinds))
                )


_NOT_FIELDS = {"system", "deadline", "tags", "prompt", "lineage"}


def _target(field: str, model: object, **options: Any) -> Provider:
    if isinstance(model, str):
        return from_string(model, **options)
    if isinstance(model, Provider):
        for name in ("api_key", "base_url"):
            if options.get(name) is not None:
                raise InvalidArgument(
                    name, "given beside a provider", "a model string to apply it to; pass it to the provider"
                )
        return model
    raise InvalidArgument(field, type(model).__name__, "a model string such as 'openai:gpt-5', or a provider")


def _tools(tools: object) -> tuple[Tool, ...]:
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, str)):
        raise InvalidArgument("tools", type(tools).__name__, "a list of Tool objects and functions")
    return tuple(item if isinstance(item, Tool) else _tool(item) for item in cast("Sequence[object]", tools or ()))


def _tool(function: object) -> Tool:
    if not callable(function):
        raise InvalidArgument("tools", type(function).__name__, "Tool objects or functions")
    return Tool.from_function(function)


def _schema(output: object) -> OutputSchema:
    try:
        return _cached_schema(output)  # building a validator costs milliseconds: once a type
    except TypeError:
        return OutputSchema.of(output)


_cached_schema = functools.lru_cache(maxsize=256)(OutputSchema.of)


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


class AsyncClient:
    """Production behaviour around a model, on asyncio and trio.

    Args:
        model: a model string such as ``openai:gpt-5`` or ``vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1``, a
            provider, or a stack of your own.
        fallbacks: model strings or providers that are asked in order when those before can't serve a call.
        wrappers: just these instead of the standard stack, outermost first.
        api_key: for ``model`` if it is a string, instead of the usual environment variable.
        base_url: likewise, another address of the API.
        http: how to reach the servers: engine, proxy, TLS, or an HTTP client of yours.
        tags: labels of every call.
        clock: time, for tests.
        random: chance, for tests.

    Raises:
        InvalidArgument: naming the argument.
        MissingKey: an API needs a key and none is there.
    """

    def __init__(
        self,
        model: str | Provider,
        *,
        fallbacks: Sequence[str | Provider] = (),
        wrappers: Sequence[Wrapper] | None = None,
        api_key: Key | None = None,
        base_url: str | None = None,
        http: HTTPOptions | None = None,
        tags: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        self._core = _Core(
            model, fallbacks=fallbacks, wrappers=wrappers, api_key=api_key, base_url=base_url, http=http, tags=tags,
            clock=clock, random=random,
        )  # fmt: skip

    @property
    def provider(self) -> Provider:
        """The stack that answers."""
        return self._core.provider

    async def generate(self, messages: Messages, /, **options: Unpack[GenerateOptions]) -> Response:
        """Return a whole answer.

        Args:
            messages: a string, a :class:`Message`, or a sequence of messages and OpenAI-style dicts.
            **options: see :class:`GenerateOptions`.

        Raises:
            InvalidArgument: before anything is sent, naming the field.
            CallError: the call failed; ``error.trace`` tells what was tried.
        """
        return await self._core.call(lambda: self._core.generate_request(messages, options, stream=False), options)

    def stream(self, messages: Messages, /, **options: Unpack[GenerateOptions]) -> StreamCall:
        """Open a stream: ``async with client.stream(...) as response``, then iterate it.

        Arguments and errors as with :meth:`generate`. Once content was shown, a failure is
        :class:`StreamInterrupted`, which carries the partial answer.
        """
        return StreamCall(
            lambda: self._core.call(lambda: self._core.generate_request(messages, options, stream=True), options)
        )

    async def embed(
        self, inputs: str | Sequence[str], /, *, dimensions: int | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """Return one embedding for each input, in ``response.embeddings``."""
        return await self._core.call(lambda: self._core.embed_request(inputs, dimensions, options), options)

    def describe(self) -> str:
        """Draw the stack as a tree, outermost first."""
        return describe(self._core.provider)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Calls made after it raise :class:`ClientClosed`."""
        self._core.closed = True
        await self._core.provider.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._core.provider.name}>"


class SyncResponse:
    """An open stream for synchronous code: a context manager, and an iterator of events.

    The accessors are those of :class:`Response`, which is at ``response``.
    """

    def __init__(self, response: Response, loop: Background) -> None:
        self.response = response
        self._loop = loop

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self._loop.run(_next, self.response)
        if event is None:
            raise StopIteration
        return event

    def text_stream(self) -> Iterator[str]:
        """Iterate over the text alone, piece by piece."""
        for event in self:
            if isinstance(event, TextDelta):
                yield event.text

    def read(self) -> SyncResponse:
        """Read to the end and return this response."""
        self._loop.run(self.response.read)
        return self

    def close(self) -> None:
        """Stop reading and release the connection."""
        if not self.response.closed:
            self._loop.run(self.response.aclose)

    def __enter__(self) -> SyncResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        response = getattr(self, "response", None)
        if response is not None and not response.closed:
            with contextlib.suppress(Exception):
                self._loop.soon(response.aclose)

    @property
    def text(self) -> str:
        """The text so far."""
        return self.response.text

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts so far."""
        return self.response.parts

    @property
    def thinking(self) -> str:
        """The readable reasoning so far."""
        return self.response.thinking

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for."""
        return self.response.tool_calls

    @property
    def refusal(self) -> str | None:
        """The model's refusal, where it declined in the provider's refusal field."""
        return self.response.refusal

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Log probabilities of the tokens so far, if asked for."""
        return self.response.logprobs

    @property
    def parsed(self) -> Any:
        """The answer parsed by its output schema."""
        return self.response.parsed

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended."""
        return self.response.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens."""
        return self.response.usage

    @property
    def model(self) -> str | None:
        """Exact id of the model that answered."""
        return self.response.model

    @property
    def provider(self) -> str:
        """Name of the target that answered."""
        return self.response.provider

    @property
    def request_id(self) -> str | None:
        """The provider's id of the HTTP request, for its support."""
        return self.response.request_id

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP response's headers, lower-case; empty without HTTP."""
        return self.response.headers

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of request fields left out because the target can't honour them."""
        return self.response.dropped

    @property
    def complete(self) -> bool:
        """True once the whole answer has arrived."""
        return self.response.complete

    @property
    def closed(self) -> bool:
        """True once the response has ended in any way."""
        return self.response.closed

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        return self.response.timing

    @property
    def trace(self) -> Trace:
        """What happened in the call."""
        return self.response.trace

    def __repr__(self) -> str:
        return repr(self.response)


async def _next(response: Response) -> Event | None:
    # StopAsyncIteration can't cross a future.
    try:
        return await response.__anext__()
    except StopAsyncIteration:
        return None


class Client:
    """Production behaviour around a model, for synchronous code: scripts, threads, notebooks.

    The same stack as :class:`AsyncClient`, run by one background event loop that all clients of the process share. Safe
    in threads and beside a running event loop; refused after ``fork``; closed at exit.

    Args:
        model: a model string such as ``openai:gpt-5`` or ``vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1``, a
            provider, or a stack of your own.
        fallbacks: model strings or providers that are asked in order when those before can't serve a call.
        wrappers: just these instead of the standard stack, outermost first.
        api_key: for ``model`` if it is a string, instead of the usual environment variable.
        base_url: likewise, another address of the API.
        http: how to reach the servers: engine, proxy or TLS.
        tags: labels of every call.
        clock: time, for tests.
        random: chance, for tests.

    Raises:
        InvalidArgument: naming the argument.
        MissingKey: an API needs a key and none is there.
    """

    def __init__(
        self,
        model: str | Provider,
        *,
        fallbacks: Sequence[str | Provider] = (),
        wrappers: Sequence[Wrapper] | None = None,
        api_key: Key | None = None,
        base_url: str | None = None,
        http: HTTPOptions | None = None,
        tags: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        self._core = _Core(
            model, fallbacks=fallbacks, wrappers=wrappers, api_key=api_key, base_url=base_url, http=http, tags=tags,
            clock=clock, random=random,
        )  # fmt: skip
        self._loop: Background | None = None

    @property
    def provider(self) -> Provider:
        """The stack that answers."""
        return self._core.provider

    def _run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self._core.pid != os.getpid():
            raise ForkedProcess("a Client")
        if self._loop is None:
            self._loop = background()
            self._loop.close_at_exit(self)
        return self._loop.run(function, *args)

    def generate(self, messages: Messages, /, **options: Unpack[GenerateOptions]) -> Response:
        """Return a whole answer; see :meth:`AsyncClient.generate`."""
        request = self._core.generate_request(messages, options, stream=False)
        return self._run(self._core.call, lambda: request, options)

    def stream(self, messages: Messages, /, **options: Unpack[GenerateOptions]) -> SyncResponse:
        """Open a stream: ``with client.stream(...) as response``, then iterate it; see :meth:`AsyncClient.stream`."""
        request = self._core.generate_request(messages, options, stream=True)
        response = self._run(self._core.call, lambda: request, options)
        return SyncResponse(response, cast("Background", self._loop))

    def embed(
        self, inputs: str | Sequence[str], /, *, dimensions: int | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """Return one embedding for each input, in ``response.embeddings``."""
        request = self._core.embed_request(inputs, dimensions, options)
        return self._run(self._core.call, lambda: request, options)

    def describe(self) -> str:
        """Draw the stack as a tree, outermost first."""
        return describe(self._core.provider)

    def close(self) -> None:
        """Close the connections. Calls made after it raise :class:`ClientClosed`."""
        if not self._core.closed:
            self._core.closed = True
            if self._loop is not None:
                self._loop.run(self._core.provider.aclose)

    async def aclose(self) -> None:
        """Close the connections, on the background loop; called at the interpreter's exit."""
        self._core.closed = True
        await self._core.provider.aclose()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self._core.provider.name}>"

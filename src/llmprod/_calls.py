"""What both clients share: the stack, and turning a call's arguments into a request and a context."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

from llmprod._validate import flag, known, labels, seconds, strings, whole
from llmprod.batch.engine import Engine, Settings
from llmprod.batch.inputs import Feed
from llmprod.batch.meter import Meter, shower
from llmprod.batch.records import BatchItem, BatchProgress
from llmprod.batch.requests import completed, instructed
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.context import CacheMode, Context
from llmprod.decisions import Listener
from llmprod.errors import ClientClosed, InvalidArgument, LLMProdError
from llmprod.ledger import Ledger
from llmprod.presets import standard
from llmprod.provider import Provider
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import Key
from llmprod.providers.registry import from_string
from llmprod.request import EmbedRequest, GenerateRequest, ReasoningEffort, Request
from llmprod.response import Response
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Message, coerce_messages
from llmprod.wrapper import Stack, WrappedProvider, Wrapper, caches, describe, leaves
from llmprod.wrappers.cost_meter import CostMeter
from llmprod.wrappers.deadline import Deadline
from llmprod.wrappers.key_pool import KeyPool

__all__ = ["BaseClient", "CallOptions", "GenerateOptions", "Messages"]

Messages = str | Message | Sequence[Message | Mapping[str, Any]]


class CallOptions(TypedDict, total=False):
    """Options of every call.

    Attributes:
        deadline: seconds that this call may take in all; the stack's own deadline counts too.
        tags: labels (user, tenant, endpoint, session …), added to the client's.
        extra: what one vendor alone has, by provider name: ``{"openai": {"service_tier": "flex"}}``.
        drop_unsupported: leave out what a target can't honour instead of raising; see ``response.dropped``.
        prompt: name and version of the prompt.
        lineage: ids of the documents that the prompt was built from.
        priority: who goes first where calls wait for a limit; higher first (default 0).
        cache: how the call uses a :class:`llmprod.Cache`, if not as usual: ``bypass``, ``refresh`` or ``only``.
    """

    deadline: float | None
    tags: Mapping[str, str]
    extra: Mapping[str, Mapping[str, Any]]
    drop_unsupported: bool
    prompt: tuple[str, str]
    lineage: Sequence[str]
    priority: int
    cache: CacheMode | None


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


BATCH_CONCURRENCY = 32
"""Calls of a batch at once where the model doesn't say how many it wants."""

_SAID_OTHERWISE = {
    "timeout": "deadline=…, seconds for the call; limits of an attempt are AttemptTimeout's",
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens", "max_new_tokens"), "max_tokens=…"),
    **dict.fromkeys(("response_format", "response_model", "text_format"), "output=…, a type or a JSON Schema"),
    "stop_sequences": "stop=…",
    "thinking": "reasoning_effort=…, or what one vendor alone has in extra={'anthropic': …}",
    "stream": "client.stream(…) instead of client.generate(…)",
    "model": "a client for each model",
    "user": "tags={'user': …}",
    "metadata": "tags={…}",
    **dict.fromkeys(("max_retries", "num_retries"), "Retry(…) in the stack, or standard(…, attempts=…)"),
    **dict.fromkeys(("api_key", "base_url", "fallbacks"), "an argument of the client"),
    **dict.fromkeys(("extra_body", "extra_headers"), "extra={'openai': …}, by the provider's name"),
}
"""What other libraries call an option of a call, and how it is said here."""

_CALL = frozenset(CallOptions.__annotations__)
_GENERATE = _CALL | frozenset(GenerateOptions.__annotations__)


class BaseClient:
    """What both clients are made of: the stack, and turning arguments into requests."""

    def __init__(
        self,
        model: str | Provider,
        *,
        fallbacks: Sequence[str | Provider] = (),
        wrappers: Sequence[Wrapper] | None = None,
        api_key: Key | Sequence[Key] | None = None,
        base_url: str | None = None,
        http: HTTPOptions | None = None,
        tags: Mapping[str, str] | None = None,
        cost_meter: CostMeter | None = None,
        listeners: Sequence[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        for field, given, allowed in (
            ("fallbacks", fallbacks, "a list of model strings and providers"),
            ("wrappers", wrappers or (), "a list of wrappers"),
            ("listeners", listeners, "a list of functions"),
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
            self._provider: Provider = Stack(*wrappers)(primary)
        elif others or not _composed(primary):
            self._provider = standard(primary, others, clock=clock, random=random)
        else:
            self._provider = primary  # already composed by the caller
        self._meter = _meter_of(self._provider)
        if self._meter is not None and cost_meter is not None:
            raise InvalidArgument("cost_meter", "given beside a stack that has one", "either of them")
        if cost_meter is not None and not isinstance(cast("object", cost_meter), CostMeter):
            raise InvalidArgument("cost_meter", type(cost_meter).__name__, "a CostMeter, or None")
        # Around the whole stack, since it only looks on: the stack that is drawn is the one that decides.
        self._asked = self._provider
        if self._meter is None:
            self._meter = CostMeter() if cost_meter is None else cost_meter
            self._asked = self._meter(self._provider)
        for place, listener in enumerate(listeners):
            if not callable(listener):
                raise InvalidArgument(
                    f"listeners[{place}]", type(listener).__name__, "a function of a decision and a context"
                )
        self._listeners = tuple(listeners)
        self._tags = dict(tags or {})
        self._clock = clock
        self._random = random
        answering = list(leaves(self._provider))
        self._kinds = {leaf.name.partition(":")[0] for leaf in answering}
        # Engines of this process run as long as somebody holds them.
        self._held = [leaf for leaf in answering if hasattr(leaf, "held_by")]
        for leaf in self._held:
            cast("Any", leaf).held_by(self)
        self._caches = caches(self._provider)
        self._bounded = isinstance(getattr(self._provider, "wrapper", None), Deadline)
        self._pid = os.getpid()
        self._closed = False

    @property
    def provider(self) -> Provider:
        """The stack that answers."""
        return self._provider

    @property
    def costs(self) -> Ledger:
        """What the calls of this client have cost so far; ``print(client.costs)`` shows a table by model."""
        assert self._meter is not None
        return self._meter.ledger

    def describe(self) -> str:
        """Draw the stack as a tree, outermost first."""
        return describe(self._provider)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._provider.name}>"

    async def _close(self) -> None:
        self._closed = True
        for leaf in self._held:
            cast("Any", leaf).released_by(self)
        await self._provider.aclose()

    async def _call(self, make: Callable[[], Request], options: Mapping[str, Any]) -> Response:
        if self._closed:
            raise ClientClosed
        request = make()
        _check_call(options)
        deadline, tags, prompt = options.get("deadline"), options.get("tags"), options.get("prompt")
        if options.get("cache") == "only" and not self._caches:  # it would be asked, and paid
            raise InvalidArgument(
                "cache", "'only' without a Cache", "a Cache in the stack: standard(…, extra=[Cache()])"
            )
        context = Context.new(
            clock=self._clock,
            random=self._random,
            seconds=deadline,
            tags=self._tags if not tags else {**self._tags, **tags},
            prompt=None if prompt is None else (prompt[0], prompt[1]),
            lineage=strings("lineage", options.get("lineage", ())),
            priority=options.get("priority", 0),
            listeners=self._listeners,
            cache=options.get("cache"),
        )
        provider = self._asked if self._bounded or deadline is None else Deadline(deadline)(self._asked)
        try:
            return await provider.send(request, context)
        except LLMProdError as error:
            error.trace = context.trace
            raise

    def _generate_request(self, messages: Messages, options: Mapping[str, Any], *, stream: bool) -> GenerateRequest:
        self._known(options, _GENERATE)
        return GenerateRequest(
            messages=coerce_messages(messages, system=options.get("system")), stream=stream, **_fields(options)
        )

    def _embed_request(
        self, inputs: str | Sequence[str], dimensions: int | None, options: Mapping[str, Any]
    ) -> EmbedRequest:
        self._known(options, _CALL)
        if not isinstance(inputs, (str, Sequence)) or isinstance(inputs, bytes):
            raise InvalidArgument("inputs", type(inputs).__name__, "a string or a sequence of strings")
        fields = {name: options[name] for name in ("extra", "drop_unsupported") if name in options}
        return EmbedRequest(
            inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs), dimensions=dimensions, **fields
        )

    def _batch(
        self,
        feed: Feed,
        total: int | None,
        *,
        concurrency: int | None,
        ordered: bool,
        progress: bool | Callable[[BatchProgress], object],
        checkpoint: str | os.PathLike[str] | None,
        on_error: str,
        options: Mapping[str, Any],
    ) -> Engine:
        if self._closed:
            raise ClientClosed
        whole("concurrency", concurrency, 1, optional=True)
        flag("ordered", ordered)
        if on_error not in ("yield", "raise"):
            raise InvalidArgument("on_error", repr(on_error)[:40], "yield, raise")
        if checkpoint is not None and (not isinstance(checkpoint, (str, os.PathLike)) or not os.fspath(checkpoint)):
            raise InvalidArgument("checkpoint", repr(checkpoint)[:40], "a path, or None")
        if not isinstance(progress, bool) and not callable(progress):
            raise InvalidArgument("progress", type(progress).__name__, "True, False, or a function of a BatchProgress")
        shared = dict(options)
        if "tools" in shared:
            shared["tools"] = _tools(shared["tools"])  # once, not for each item
        if shared.get("output") is not None:
            shared["output"] = _schema(shared["output"])
        self._generate_request("checked before anything is sent", shared, stream=False)
        _check_call(shared)
        primary = next(leaves(self._provider))

        def in_flight() -> int:
            return concurrency or int(getattr(primary, "batch_concurrency", BATCH_CONCURRENCY))

        settings = Settings(
            make=lambda item: self._item(item, shared),
            call=lambda request, given: self._call(lambda: request, given),
            model=primary.name,
            concurrency=in_flight,
            ordered=ordered,
            stop_at_error=on_error == "raise",
            checkpoint=None if checkpoint is None else os.path.abspath(checkpoint),
            clock=self._clock,
            tick=1.0 if progress is True else None,
        )
        return Engine(feed, Meter(self._clock, total, shower(progress, self._clock)), settings)

    def _item(self, item: BatchItem, shared: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """An item's request and the options of its call."""
        options = {**shared, **item.options} if item.options else shared
        value = item.input
        if not isinstance(value, (GenerateRequest, EmbedRequest)):
            return self._generate_request(value, options, stream=False), options
        self._known(options, _GENERATE if isinstance(value, GenerateRequest) else _CALL)
        self._known({"extra": value.extra}, _CALL)
        if isinstance(value, EmbedRequest):
            return completed(value, _fields(shared), _fields(item.options)), options
        request = completed(value, _fields(shared), _fields(item.options))
        return instructed(request, shared.get("system"), item.options.get("system")), options

    def _known(self, options: Mapping[str, Any], allowed: frozenset[str]) -> None:
        known(options, allowed, _SAID_OTHERWISE)
        extra = options.get("extra", {})
        if not isinstance(extra, Mapping):
            raise InvalidArgument("extra", type(extra).__name__, "a dict by provider name")
        for name in cast("Mapping[str, Any]", extra):
            if name not in self._kinds:
                raise InvalidArgument(
                    f"extra[{name!r}]", "a provider that is not in the stack", ", ".join(sorted(self._kinds))
                )


def _check_call(options: Mapping[str, Any]) -> None:
    """Check the options that are no fields of a request."""
    seconds("deadline", options.get("deadline"), optional=True)
    labels("tags", options.get("tags") or {})
    prompt = options.get("prompt")
    if prompt is not None and (isinstance(prompt, str) or len(strings("prompt", prompt)) != 2):
        given = "one string" if isinstance(prompt, str) else f"{len(prompt)} strings"
        raise InvalidArgument("prompt", given, "two strings: the prompt's name and version")


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a request, as it wants them."""
    fields = {name: value for name, value in options.items() if name not in _NOT_FIELDS}
    if "tools" in fields:
        fields["tools"] = _tools(fields["tools"])
    if fields.get("output") is not None:
        fields["output"] = _schema(fields["output"])
    if "stop" in fields:
        stop = fields["stop"]
        fields["stop"] = (stop,) if isinstance(stop, str) else strings("stop", stop or ())
    return fields


_NOT_FIELDS = {"system", "deadline", "tags", "prompt", "lineage", "priority", "cache"}


def _composed(provider: Provider) -> bool:
    """The caller has put wrappers around it, or chosen among several. Several keys alone are still one deployment."""
    if isinstance(provider, KeyPool):
        return any(map(_composed, provider.targets))
    return isinstance(provider, WrappedProvider) or hasattr(provider, "targets")


def _meter_of(provider: Provider) -> CostMeter | None:
    """The cost meter that stands around everything in a stack, if there is one."""
    node: Any = provider
    while node is not None:
        wrapper = getattr(node, "wrapper", None)
        if isinstance(wrapper, CostMeter):
            return wrapper
        node = getattr(node, "inner", None)
    return None


def _target(field: str, model: object, **options: Any) -> Provider:
    if isinstance(model, str):
        keys = options.get("api_key")
        if isinstance(keys, Sequence) and not isinstance(keys, (str, bytes)):
            if not keys:
                raise InvalidArgument("api_key", "an empty list", "a key, a list of keys, or None")
            others = {name: value for name, value in options.items() if name != "api_key"}
            return KeyPool.of(lambda key: from_string(model, api_key=key, **others), cast("Sequence[Key]", keys))
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

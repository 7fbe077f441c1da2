"""A function as a provider: ``send`` calls it."""

from __future__ import annotations

import inspect
import io
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, cast

from llmprod._functions.items import AsyncItems, Items, ItemSource, OneItem
from llmprod._functions.request import TAKES_ANY_CALL, FunctionRequest
from llmprod._functions.sdk import read_whole, request_id_of
from llmprod._functions.sdk_errors import explain
from llmprod._functions.sdk_stream import StreamReader, from_sdk
from llmprod._functions.threads import ThreadedItems, call_in_thread
from llmprod.context import Context
from llmprod.errors import CallError, InvalidArgument
from llmprod.provider import BaseProvider, Capabilities
from llmprod.request import Request
from llmprod.response import Response

__all__ = ["FunctionProvider", "Kind", "kind_of", "name_of"]

Kind = Literal["sync", "async", "items", "async_items"]
"""A function, a coroutine function, a generator function, an asynchronous generator function."""


def kind_of(function: Callable[..., Any]) -> Kind:
    """Tell how ``function`` is to be called."""
    decorated: Kind | None = getattr(getattr(function, "__llmprod__", None), "kind", None)
    if decorated is not None:
        return decorated
    for candidate in (function, getattr(type(function), "__call__", None)):  # noqa: B004 - callable objects too
        if inspect.isasyncgenfunction(candidate):
            return "async_items"
        if inspect.isgeneratorfunction(candidate):
            return "items"
        if inspect.iscoroutinefunction(candidate):
            return "async"
    # The SDKs wrap some of their coroutine functions in plain ones that return the coroutine.
    wrapped = inspect.isroutine(function) and inspect.iscoroutinefunction(inspect.unwrap(function))
    return "async" if wrapped else "sync"


def name_of(function: Callable[..., Any]) -> str:
    """Return what traces call ``function``."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    name: str = getattr(inner, "__name__", None) or type(inner).__name__
    return name.strip("<>")


class FunctionProvider(BaseProvider):
    """Calls ``function`` with the caller's arguments and reads text and usage from what it returns.

    Args:
        function: what to call.
        name: what traces call it.
        as_items: the caller expects a stream, so a whole value is handed out as a stream of one.
        check: SDK answers that are cut, or report a failure inside, count as failed.
    """

    returns_anything: ClassVar[bool] = True  # whatever the function returns, which nothing but it may know how to keep

    def __init__(self, function: Callable[..., Any], *, name: str, as_items: bool, check: bool) -> None:
        self._function = function
        self._name = name
        self._kind = kind_of(function)
        self._as_items = as_items
        self._check = check

    @property
    def name(self) -> str:
        """The function's name."""
        return self._name

    @property
    def priced_as(self) -> tuple[str | None, str | None, str | None]:
        """Unknown: only the answer says which model it is from."""
        return None, None, None

    @property
    def capabilities(self) -> Capabilities:
        """Whatever it is called with."""
        return TAKES_ANY_CALL

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        call = cast("FunctionRequest", request)
        try:
            value = await self._call(call)
            items, opened = await self._items(value)
            if items is None and self._as_items:
                items = OneItem(value)
            if items is None:
                return self._whole(value, request, context)
            return await self._open(items, opened, request, context)
        except CallError as error:
            error.provider = error.provider or self._name
            raise
        except Exception as error:
            known = explain(error, target=self._name)
            if known is None:
                raise
            raise known from error

    async def _call(self, call: FunctionRequest) -> Any:
        bound = partial(self._function, *call.args, **call.kwargs)
        if self._kind == "sync":
            return await call_in_thread(bound)
        value = bound()
        return await value if inspect.isawaitable(value) else value

    async def _items(self, value: Any) -> tuple[Items | None, Any]:
        """Return the items of a stream, and the stream; None and the value where it is none."""
        manager = type(value).__name__.endswith("StreamManager")  # opens the SDK's stream when it is entered
        if self._kind == "sync" and _is_to_be_awaited(value, manager):
            if inspect.iscoroutine(value):
                value.close()
            given = f"{type(value).__name__}, to be awaited"
            raise InvalidArgument(f"what {self._name}() returned", given, "a value; write it as `async def`")
        if _is_async_stream(value):
            return AsyncItems(value), value
        if _is_stream(value):
            return ThreadedItems(value), value
        if manager and hasattr(value, "__aenter__"):
            stream: Any = await value.__aenter__()
            return AsyncItems(stream, partial(value.__aexit__, None, None, None)), stream
        if manager and hasattr(value, "__enter__"):
            stream = await call_in_thread(value.__enter__)
            return ThreadedItems(stream, partial(value.__exit__, None, None, None)), stream
        return None, value

    def _whole(self, value: Any, request: Request, context: Context) -> Response:
        return Response(
            provider=self._name,
            context=context,
            request=request,
            events=read_whole(value, check=self._check),
            request_id=request_id_of(value),
            raw=value,
        )

    async def _open(self, items: Items, stream: Any, request: Request, context: Context) -> Response:
        source = ItemSource(
            items,
            StreamReader(recognised=from_sdk(stream), check=self._check),
            check=self._check,
            explain=lambda error, in_stream: explain(error, target=self._name, in_stream=in_stream) or error,
        )
        await source.commit()
        return Response(
            provider=self._name,
            context=context,
            request=request,
            source=source,
            request_id=request_id_of(stream),
            raw=stream,
        )


def _is_stream(value: Any) -> bool:
    return isinstance(value, Iterator) and not isinstance(value, (io.IOBase, AsyncIterable))


def _is_async_stream(value: Any) -> bool:
    if isinstance(value, Response):
        return not value.closed
    # What can be iterated both ways is a mock.
    return isinstance(value, AsyncIterator) and not isinstance(value, Iterable)


def _is_to_be_awaited(value: Any, manager: bool) -> bool:
    return isinstance(value, Awaitable) or _is_async_stream(value) or (manager and hasattr(value, "__aenter__"))

"""One decorated function's stack, and a call through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmprod._functions.provider import Kind
from llmprod._functions.request import FunctionRequest
from llmprod._functions.sdk_errors import for_caller
from llmprod.clock import Clock, Random
from llmprod.context import Context
from llmprod.decisions import Listener
from llmprod.errors import LLMProdError, StreamInterrupted
from llmprod.events import Item
from llmprod.provider import Provider
from llmprod.record import CallRecord, note
from llmprod.response import Response

__all__ = ["END", "FunctionStack", "next_item"]

END = object()
"""What :func:`next_item` returns after the last item: StopIteration crosses neither threads nor futures."""


class FunctionStack:
    """The wrappers around a function and its fallbacks.

    Args:
        provider: the outermost of them.
        name: the function's name.
        kind: how the function is called.
        stream: calls hand out their answer in pieces; None where the arguments tell.
        listeners: are told every decision.
        clock: time.
        random: chance.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        name: str,
        kind: Kind,
        stream: bool | None,
        listeners: tuple[Listener, ...],
        clock: Clock,
        random: Random,
    ) -> None:
        self.provider = provider
        self.kind = kind
        self.name = name
        self._stream = stream
        self._listeners = listeners
        self._clock = clock
        self._random = random

    async def send(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Response:
        """Return when the answer is committed; what it raises is what the caller sees."""
        stream = kwargs.get("stream") is True if self._stream is None else self._stream
        request = FunctionRequest(args=args, kwargs=kwargs, stream=stream).as_request()
        context = Context.new(clock=self._clock, random=self._random, listeners=self._listeners)
        record = CallRecord(self.name, context.trace)
        try:
            record.response = response = await self.provider.send(request, context)
        except BaseException as error:  # noqa: BLE001 - raised again below
            record.error = for_caller(error, context.trace)
        else:
            response.on_close(record.ended)
            return response
        finally:
            note(record)
        try:
            raise record.error  # out here, or it would get a context that it has not
        finally:
            del record  # or the error would hold itself through its traceback


async def next_item(response: Response) -> Any:
    """Return the next item that the function made, or END."""
    failure: BaseException
    while True:
        try:
            event = await response.__anext__()
        except StopAsyncIteration:
            return END
        except StreamInterrupted as error:
            own = error.__cause__
            # The application's exceptions are for the application, as its stream raised them.
            failure = error if own is None or isinstance(own, LLMProdError) else own
            break
        if type(event) is Item:
            return event.value
    raise failure

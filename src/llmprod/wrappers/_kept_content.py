"""Content that a provider keeps for us (Gemini's ``cachedContents``): made, referred to, made anew, deleted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import anyio

from llmprod.clock import Clock
from llmprod.context import Context
from llmprod.decisions import CachedContentLost
from llmprod.errors import BadRequest, CallError, NotFound, PermissionDenied
from llmprod.mechanisms.cache_key import CacheKey, Unkeyable
from llmprod.mechanisms.prefix_chain import Cut
from llmprod.provider import Provider
from llmprod.request import GenerateRequest
from llmprod.response import Response
from llmprod.types import Message

__all__ = ["KeepsContent", "KeptContent"]

_MARGIN = 30.0
"""Seconds before its end from which content is not referred to any more."""
_AFTER_FAILURE = 300.0
_CLOSING = 5.0
_FIELD = "cachedContent"
_KEY = CacheKey()
_NOTHING = (Message.user(""),)  # a request needs a message
_log = logging.getLogger("llmprod")


@runtime_checkable
class KeepsContent(Protocol):
    """A provider that can keep the beginning of requests."""

    kind: str

    async def keep_content(self, request: GenerateRequest, stable: int, seconds: float) -> tuple[str, int]:
        """Keep tools and the first ``stable`` messages; return a name and the number of tokens."""
        ...

    async def drop_content(self, name: str) -> None:
        """Delete what was kept."""
        ...


@dataclass(slots=True)
class _Kept:
    name: str | None  # None while it is being made, or after it could not be
    until: float


class KeptContent:
    """The kept content of one target.

    Args:
        provider: keeps it.
        seconds: for how long.
        minimum: fewer tokens are not kept.
        clock: time.
    """

    def __init__(self, provider: KeepsContent, seconds: float, minimum: int, clock: Clock) -> None:
        self._provider = provider
        self._seconds = seconds
        self._minimum = minimum
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    async def send(
        self, inner: Provider, request: GenerateRequest, cut: Cut, stable: int, context: Context
    ) -> Response:
        """Send a request, referring to what is kept of it; whole where nothing is."""
        if not self._fits(request, cut, stable):
            return await inner.send(request, context)
        digest = _digest(request, stable)
        name = None if digest is None else await self._name(digest, request, stable, inner.name, context)
        if digest is None or name is None:
            return await inner.send(request, context)
        try:
            return await inner.send(self._referring(request, stable, name), context)
        except (BadRequest, NotFound, PermissionDenied) as error:
            # Content that is gone is "not found" or "permission denied" to the API; a wrong request fails again, whole.
            if not context.extra_attempt("retry", inner.name):
                raise
            self._kept.pop(digest, None)
            context.decided(CachedContentLost, inner.name, error=type(error).__name__, made=True)
        return await inner.send(request, context)

    def _fits(self, request: GenerateRequest, cut: Cut, stable: int) -> bool:
        # The API refuses tools, tool choice and system instruction beside kept content: they have to be in it.
        return (
            cut.tokens >= self._minimum
            and stable < len(request.messages)
            and any(message.role != "system" for message in request.messages[stable:])
            and all(message.role != "system" for message in request.messages[stable:])
            and request.tool_choice in (None, "auto")
            and not request.extra.get(self._provider.kind, {}).keys()
            & {_FIELD, "tools", "toolConfig", "systemInstruction", "contents"}
        )

    async def _name(
        self, digest: str, request: GenerateRequest, stable: int, target: str, context: Context
    ) -> str | None:
        now = self._clock.now()
        known = self._kept.get(digest)
        if known is not None and now < known.until:
            return known.name
        # Others go without it until it is made: none of them waits.
        making = self._kept[digest] = _Kept(None, now + _AFTER_FAILURE)
        try:
            name, _ = await self._provider.keep_content(request, stable, self._seconds)
        except CallError as error:
            context.decided(CachedContentLost, target, error=type(error).__name__, made=False)
            return None
        except BaseException:
            self._kept.pop(digest, None)
            raise
        making.name, making.until = name, now + max(self._seconds - _MARGIN, self._seconds / 2)
        for past in [each for each, kept in self._kept.items() if kept.until <= now]:
            del self._kept[past]
        return name

    def _referring(self, request: GenerateRequest, stable: int, name: str) -> GenerateRequest:
        kind = self._provider.kind
        extra = {**request.extra, kind: {**request.extra.get(kind, {}), _FIELD: name}}
        return replace(request, messages=request.messages[stable:], tools=(), tool_choice=None, extra=extra)

    async def aclose(self) -> None:
        """Delete all of it, as far as the API lets us in a few seconds; what is left ends by itself."""
        kept, self._kept = self._kept, {}
        with anyio.move_on_after(_CLOSING, shield=True):
            for content in kept.values():
                if content.name is None:
                    continue
                try:
                    await self._provider.drop_content(content.name)
                except CallError as error:
                    _log.warning("cached content could not be deleted: %s", type(error).__name__)


def _digest(request: GenerateRequest, stable: int) -> str | None:
    """What is kept, in full: a cut's digest knows what costs tokens, not all that the model is told (``meta``)."""
    kept = request.messages[:stable]
    try:
        return f"{len(kept)}:{_KEY(GenerateRequest(messages=kept or _NOTHING, tools=request.tools))}"
    except Unkeyable:
        return None

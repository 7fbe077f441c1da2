"""Bounds answers: a limit for requests that set none, and an end to streams that find none.

An answer without a limit may take all that its model can write, in money, in time, and in what a budget has to set
aside for it. The limit comes from the endpoint's own setting, from what answers of its kind needed so far
(:mod:`llmprod.mechanisms.answer_length`), or from a default. Some servers pass a limit over, and some models never come
to an end: such a stream is closed, which aborts it at the provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

from llmprod import _validate
from llmprod.context import Context
from llmprod.decisions import AnswerLimited, RunawayStopped
from llmprod.errors import InvalidArgument, RunawayAnswer
from llmprod.events import Event, RefusalDelta, Reset, Seam, TextDelta, ThinkingDelta, ToolCallDelta, UsageUpdate
from llmprod.mechanisms.answer_length import AnswerLengths
from llmprod.mechanisms.repetition import Repetition
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import EventSource, Outcome, Response, WrappedSource
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves

__all__ = ["MaxTokens"]

Source = Literal["default", "endpoint", "learned"]

_BYTES_A_TOKEN = 8
_SPARE_BYTES = 1000
"""A stream is longer than its limit for sure when it has more than so many bytes a token, and these besides: the mean
of no language and no code is near 8, and one token of many blanks does not make a mean."""


class MaxTokens(Wrapper):
    """Set ``max_tokens`` where a request has none, and stop streams that run away.

    A stream that is stopped ends with :class:`StreamInterrupted`, what arrived as its partial answer and
    :class:`RunawayAnswer` as its cause; whole answers can't be stopped, since they are there when they are seen.
    Embeddings and decorated functions pass untouched.

    Args:
        default: tokens for a request that sets no limit and has none of those below (default None: as it is).
        by: tokens by endpoint, the value of the call's tag ``tag``: ``{"title": 40, "summary": 800}``.
        tag: name of that tag (default ``endpoint``).
        learn: take the 0.99 quantile of the answers of the same endpoint and prompt so far, times 1.5, where that is
            less than the limits above; after 50 answers, and never below 256 tokens. True, False (default), or an
            :class:`AnswerLengths` with other figures.
        ceiling: no request asks for more than this, whatever its caller set (default None).
        stop_repetition: stop a stream whose end is one short cycle repeated: True (default), False, or other
            thresholds: ``cycle``, characters of a cycle at most (400); ``repeats``, how often it must stand there in a
            row at least (12); ``characters``, what all of that must take at least (3000).
        stop_length: stop a stream that is longer than its ``max_tokens`` for sure: by the provider's own count, or by
            more than 8 bytes a token (default True).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.MAX_TOKENS

    def __init__(
        self,
        default: int | None = None,
        *,
        by: Mapping[str, int] | None = None,
        tag: str = "endpoint",
        learn: bool | AnswerLengths = False,
        ceiling: int | None = None,
        stop_repetition: bool | Mapping[str, int] = True,
        stop_length: bool = True,
    ) -> None:
        _validate.whole("default", default, 1, optional=True)
        _validate.whole("ceiling", ceiling, 1, optional=True)
        if by is not None and not isinstance(by, Mapping):
            raise InvalidArgument("by", type(by).__name__, "a dict of tokens by endpoint")
        for endpoint, tokens in (by or {}).items():
            _validate.whole(f"by[{endpoint!r}]", tokens, 1)
        if not isinstance(tag, str) or not tag:
            raise InvalidArgument("tag", repr(tag)[:40], "a tag's name")
        _validate.flag("stop_length", stop_length)
        if not isinstance(learn, (bool, AnswerLengths)):
            raise InvalidArgument("learn", type(learn).__name__, "True, False or an AnswerLengths")
        options: dict[str, Any] = {}
        if isinstance(stop_repetition, Mapping):
            options = dict(stop_repetition)
            if unknown := sorted(set(options) - {"cycle", "repeats", "characters"}):
                raise InvalidArgument("stop_repetition", str(unknown[0])[:40], "cycle, repeats, characters")
            Repetition(**options)
        else:
            _validate.flag("stop_repetition", stop_repetition)
        self.default = default
        self.by: dict[str, int] = dict(by or {})
        self.tag = tag
        self.lengths: AnswerLengths | None = (
            learn if isinstance(learn, AnswerLengths) else AnswerLengths() if learn else None
        )
        self.ceiling = ceiling
        self.repetition: dict[str, int] | None = options if stop_repetition is not False else None
        self.stop_length = stop_length

    def wrap(self, inner: Provider) -> Provider:
        """Bound ``inner``'s answers."""
        return _MaxTokensProvider(inner, self)

    def __repr__(self) -> str:
        told = [str(self.default)] if self.default is not None else []
        told += [f"{endpoint}: {tokens}" for endpoint, tokens in self.by.items()]
        told += ["learned"] if self.lengths is not None else []
        told += [f"at most {self.ceiling}"] if self.ceiling is not None else []
        return f"MaxTokens({', '.join(told)})"


class _MaxTokensProvider(WrappedProvider):
    wrapper: MaxTokens

    def __init__(self, inner: Provider, wrapper: MaxTokens) -> None:
        super().__init__(inner, wrapper)
        # A limit that a target has no place for would keep the call from it.
        self._can_set = all("max_tokens" in leaf.capabilities.parameters for leaf in leaves(inner))

    async def send(self, request: Request, context: Context) -> Response:
        if not isinstance(request, GenerateRequest):
            return await self.inner.send(request, context)
        wrapper = self.wrapper
        route = f"{context.tags.get(wrapper.tag, '')}\x1f{context.prompt[0] if context.prompt is not None else ''}"
        if self._can_set:
            request = self._limited(request, route, context)
        response = await self.inner.send(request, context)
        if wrapper.lengths is not None:
            response.on_close(lambda outcome: self._learn(route, outcome))
        if request.stream and not response.closed and (wrapper.repetition is not None or wrapper.stop_length):
            limit = request.max_tokens if wrapper.stop_length else None
            response.transform(lambda source: _Watched(source, self.name, context, limit, wrapper.repetition))
        return response

    def _limited(self, request: GenerateRequest, route: str, context: Context) -> GenerateRequest:
        wrapper, before = self.wrapper, request.max_tokens
        limit: int | None = before
        source: Source | Literal["ceiling"] = "default"
        if limit is None:
            endpoint = wrapper.by.get(context.tags.get(wrapper.tag, ""))
            limit, source = (wrapper.default, "default") if endpoint is None else (endpoint, "endpoint")
            learned = wrapper.lengths.limit(route) if wrapper.lengths is not None else None
            if learned is not None and (limit is None or learned < limit):
                limit, source = learned, "learned"
        if wrapper.ceiling is not None and (limit is None or limit > wrapper.ceiling):
            limit, source = wrapper.ceiling, "ceiling"
        if limit == before:
            return request
        context.decided(AnswerLimited, self.name, max_tokens=limit, before=before, source=source)
        return replace(request, max_tokens=limit)

    def _learn(self, route: str, outcome: Outcome) -> None:
        if outcome.kind == "ok" and outcome.usage is not None and outcome.usage.total_output:
            cut = outcome.finish_reason == "length"
            cast("AnswerLengths", self.wrapper.lengths).learn(route, outcome.usage.total_output, cut=cut)


class _Watched(WrappedSource):
    """A stream that ends in an error when it runs away, after the event that shows it."""

    __slots__ = ("_bytes", "_characters", "_context", "_failure", "_limit", "_name", "_options", "_over", "_parts")

    def __init__(
        self, source: EventSource, name: str, context: Context, limit: int | None, options: dict[str, int] | None
    ) -> None:
        super().__init__(source)
        self._name = name
        self._context = context
        self._limit = limit
        self._options = options
        self._parts: dict[int, Repetition] = {}
        self._bytes = 0
        self._characters = 0
        self._over = False  # by the provider's count; one that is told at the end is no reason to throw the answer away
        self._failure: RunawayAnswer | None = None
        self.poll = self._checked_poll

    def _checked_poll(self) -> Event | None:
        if self._failure is not None or (event := self._poll()) is None:
            return None
        self._check(event)
        return event

    async def __anext__(self) -> Event:
        if self._failure is not None:
            raise self._failure
        event = await self._next()
        self._check(event)
        return event

    def _check(self, event: Event) -> None:
        kind = type(event)
        if kind is TextDelta or kind is ThinkingDelta or kind is RefusalDelta:
            self._written(event.part, event.text)  # type: ignore[union-attr]
        elif isinstance(event, ToolCallDelta):
            self._written(event.part, event.arguments)
        elif isinstance(event, UsageUpdate):
            if self._limit is not None and event.usage.total_output > self._limit:
                self._over = True
        elif isinstance(event, (Reset, Seam)):
            # Another request goes on, with a limit of its own; what is told from here on is the sum of both.
            self._limit, self._over, self._bytes = None, False, 0
            self._parts.clear()

    def _written(self, part: int, text: str) -> None:
        self._characters += len(text)
        if self._limit is not None:
            self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            if self._over or self._bytes > _BYTES_A_TOKEN * self._limit + _SPARE_BYTES:
                self._stop("length")
        if self._options is not None:
            seen = self._parts.get(part)
            if seen is None:
                seen = self._parts[part] = Repetition(**self._options)
            if seen.feed(text):
                self._stop("repetition")

    def _stop(self, reason: Literal["repetition", "length"]) -> None:
        if self._failure is None:
            self._context.decided(RunawayStopped, self._name, reason=reason, characters=self._characters)
            self._failure = RunawayAnswer(provider=self._name, reason=reason, detail=reason, in_stream=True)

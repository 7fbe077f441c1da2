"""A stand-in model for demos, tests and notebooks. It is a simulation: no model runs, and its words mean nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import (
    CallError,
    ConnectError,
    ContextTooLong,
    InvalidArgument,
    Overloaded,
    RateLimited,
    ReadError,
    ServerError,
)
from llmprod.events import Event, Finish, Start, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities
from llmprod.providers._simulate_answer import embedding, tokens_of, write
from llmprod.request import EmbedRequest, Request
from llmprod.response import Response
from llmprod.usage import Usage

__all__ = ["Simulated"]

FAILURES = ("rate_limited", "overloaded", "server_error", "refused", "silent", "slow", "cut")
_DIMENSIONS = 256
_SILENCE = 600.0
_SLOWER = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preset:
    ttft: float
    ttft_spread: float
    tokens_per_second: float
    answer_tokens: float
    context_window: int
    failures: Mapping[str, float] = field(default_factory=dict[str, float])


_PRESETS = {
    "small": _Preset(ttft=0.25, ttft_spread=0.35, tokens_per_second=120, answer_tokens=60, context_window=32_768),
    "large": _Preset(ttft=0.8, ttft_spread=0.5, tokens_per_second=50, answer_tokens=150, context_window=200_000),
    "flaky": _Preset(
        ttft=0.25,
        ttft_spread=0.8,
        tokens_per_second=120,
        answer_tokens=60,
        context_window=32_768,
        failures={"rate_limited": 0.08, "overloaded": 0.08, "server_error": 0.08, "refused": 0.03, "cut": 0.08},
    ),
    "instant": _Preset(ttft=0, ttft_spread=0, tokens_per_second=math.inf, answer_tokens=30, context_window=32_768),
}


class Simulated(BaseProvider):
    """A simulated model: answers by chance, takes time and fails as real ones do. No model runs.

    The name is ``simulated:<model>`` and every text begins with ``[simulated]`` (JSON for an output schema does not:
    it has to fit the schema). What it says follows from ``seed`` and the request alone; how long it takes and whether
    it fails, from ``seed`` and the number of the call.

    Asked for tools it calls those that are forced by ``tool_choice``, or whose names the user's last message
    mentions; given a tool's result it answers in text. It honours ``max_tokens``, ``stop``, output schemas,
    ``reasoning_effort`` (by thinking), ``logprobs``, and embeds texts so that similar ones lie close.

    Args:
        model: ``small``, ``large``, ``flaky`` (fails in about a third of the calls) or ``instant`` (takes no time);
            after a slash may follow any name, to tell several apart: ``small/eu``. Sets the defaults of what follows.
        seed: the same seed gives the same answers, times and failures.
        ttft: median seconds to the first token.
        ttft_spread: sigma of its lognormal distribution; 0 for always the same.
        tokens_per_second: speed after the first token.
        answer_tokens: median length of an answer, lognormal.
        failures: how often each kind of failure happens, from 0 to 1: ``rate_limited``, ``overloaded``,
            ``server_error``, ``refused`` (no connection), ``silent`` (no answer for ten minutes), ``slow`` (ten times
            slower), ``cut`` (the connection breaks inside the answer).
        retry_after: seconds that a rate-limited call is told to wait.
        capacity: calls that it serves at once at full speed; None for any number.
        at_capacity: beyond it, ``refuse`` more with :class:`Overloaded`, or ``slow`` down as batching does.
        context_window: prompt and answer together, in tokens.

    Raises:
        InvalidArgument: naming the argument.
    """

    def __init__(
        self,
        model: str = "small",
        *,
        seed: int = 0,
        ttft: float | None = None,
        ttft_spread: float | None = None,
        tokens_per_second: float | None = None,
        answer_tokens: float | None = None,
        failures: Mapping[str, float] | None = None,
        retry_after: float = 1.0,
        capacity: int | None = None,
        at_capacity: Literal["refuse", "slow"] = "refuse",
        context_window: int | None = None,
    ) -> None:
        preset = _PRESETS.get(model.partition("/")[0]) if isinstance(model, str) else None
        if preset is None:
            raise InvalidArgument("model", repr(model)[:60], ", ".join(_PRESETS) + ", or one of them followed by /name")
        self.model = model
        self.seed = seed
        self.ttft: float = preset.ttft if ttft is None else ttft
        self.ttft_spread: float = preset.ttft_spread if ttft_spread is None else ttft_spread
        self.tokens_per_second: float = preset.tokens_per_second if tokens_per_second is None else tokens_per_second
        self.answer_tokens: float = preset.answer_tokens if answer_tokens is None else answer_tokens
        self.failures: dict[str, float] = dict(preset.failures if failures is None else failures)
        self.retry_after = retry_after
        self.capacity = capacity
        self.at_capacity = at_capacity
        self._check()
        self._name = f"simulated:{model}"
        _validate.whole("context_window", context_window, 1, optional=True)
        self._capabilities = Capabilities(embeddings=True, context_window=context_window or preset.context_window)
        self._calls = 0
        self._in_flight = 0

    def _check(self) -> None:
        _validate.whole("seed", self.seed, 0)
        _validate.seconds("ttft", self.ttft, zero=True)
        _validate.between("ttft_spread", self.ttft_spread, 0, 3)
        if self.tokens_per_second != math.inf:
            _validate.between("tokens_per_second", self.tokens_per_second, 0.001, math.inf)
        _validate.between("answer_tokens", self.answer_tokens, 1, 1_000_000)
        _validate.seconds("retry_after", self.retry_after, zero=True)
        _validate.whole("capacity", self.capacity, 1, optional=True)
        if self.at_capacity not in ("refuse", "slow"):
            raise InvalidArgument("at_capacity", repr(self.at_capacity)[:40], "refuse, slow")
        for kind, rate in self.failures.items():
            if kind not in FAILURES:
                raise InvalidArgument("failures", repr(kind)[:40], ", ".join(FAILURES))
            _validate.between(f"failures[{kind!r}]", rate, 0, 1)
        if sum(self.failures.values()) > 1 + 1e-9:
            raise InvalidArgument(
                "failures", f"rates that sum to {sum(self.failures.values()):g}", "at most 1 together"
            )

    @property
    def name(self) -> str:
        """``simulated:<model>``."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """All of them."""
        return self._capabilities

    @property
    def in_flight(self) -> int:
        """Calls being served, open streams among them."""
        return self._in_flight

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        self._calls += 1
        chance = Random(f"{self.model} {self.seed} {self._calls}")
        failure = self._failure(chance)
        slower = _SLOWER if failure == "slow" else 1.0
        if self.capacity is not None and self._in_flight >= self.capacity:
            if self.at_capacity == "refuse":
                raise self._error(Overloaded, status=529, code="overloaded")
            slower *= (self._in_flight + 1) / self.capacity
        first = slower * self.ttft * math.exp(chance.gauss(0, 1) * self.ttft_spread)
        self._in_flight += 1
        try:
            response = await self._answer(request, context, chance, failure, first, slower, dropped)
        except BaseException:
            self._in_flight -= 1
            raise
        response.on_close(self._left)
        return response

    def _left(self, _: object) -> None:
        self._in_flight -= 1

    def _failure(self, chance: Random) -> str | None:
        drawn = chance.random()
        for kind, rate in self.failures.items():
            drawn -= rate
            if drawn < 0:
                return kind
        return None

    def _error(self, kind: type[CallError], **fields: Any) -> CallError:
        return kind(provider="simulated", model=self.model, detail="simulated", **fields)

    async def _fail(self, failure: str | None, context: Context, first: float) -> None:
        """Raise what keeps the call from getting any answer."""
        if failure == "refused":
            raise self._error(ConnectError, silent=True)
        if failure == "silent":
            await context.clock.sleep(_SILENCE)
            raise self._error(ReadError, silent=True)
        if failure in ("rate_limited", "overloaded", "server_error"):
            await context.clock.sleep(first / 4)
        if failure == "rate_limited":
            raise self._error(RateLimited, status=429, code="rate_limit_exceeded", retry_after=self.retry_after)
        if failure == "overloaded":
            raise self._error(Overloaded, status=529, code="overloaded")
        if failure == "server_error":
            raise self._error(ServerError, status=500, code="internal_error")

    async def _answer(
        self,
        request: Request,
        context: Context,
        chance: Random,
        failure: str | None,
        first: float,
        slower: float,
        dropped: tuple[str, ...],
    ) -> Response:
        started = context.clock.now()
        await self._fail(failure, context, first)
        if isinstance(request, EmbedRequest):
            await context.clock.sleep(first)
            if failure == "cut":
                raise self._error(ReadError, in_stream=True)
            return self._embed(request, context, dropped)
        answer = write(request, self.seed, self.model, self.answer_tokens)
        window = self._capabilities.context_window or 0
        if answer.usage.total_input + (request.max_tokens or 0) > window:
            raise self._error(ContextTooLong, status=400, code="context_length_exceeded")
        due = started + first
        script: list[tuple[float, Event]] = [(due, Start(self._name, f"simulated-{chance.getrandbits(48):012x}"))]
        pause = slower / self.tokens_per_second
        for event, tokens in answer.steps:
            script.append((due, event))
            due += pause * tokens * chance.lognormvariate(-0.045, 0.3)  # of mean 1
        if failure == "cut":
            del script[1 + chance.randint(1, max(1, len(answer.steps) - 1)) :]
        else:
            script += [(due, UsageUpdate(answer.usage)), (due, Finish(answer.finish, answer.finish))]
        cut = self._error(ReadError, in_stream=True) if failure == "cut" else None
        if request.stream:
            await context.clock.sleep(first)
            source = _Source(script, cut, context)
            return Response(
                provider=self._name, context=context, request=request, model=self._name, source=source, dropped=dropped
            )
        await context.clock.sleep(max(0.0, script[-1][0] - started))
        if cut is not None:
            raise cut
        events = [event for _, event in script]
        return Response(
            provider=self._name, context=context, request=request, model=self._name, events=events, dropped=dropped
        )

    def _embed(self, request: EmbedRequest, context: Context, dropped: tuple[str, ...]) -> Response:
        dimensions = request.dimensions or _DIMENSIONS
        tokens = sum(map(tokens_of, request.inputs))
        return Response(
            provider=self._name,
            context=context,
            request=request,
            model=self._name,
            embeddings=[embedding(text, dimensions, self.seed) for text in request.inputs],
            events=[Start(self._name), UsageUpdate(Usage(input=tokens, estimated=True))],
            dropped=dropped,
        )

    def __repr__(self) -> str:
        return f"<Simulated {self._name}, no real model>"


class _Source:
    """Hands out events when they are due; a slow reader finds them waiting."""

    __slots__ = ("_context", "_cut", "_next", "_script")

    def __init__(self, script: list[tuple[float, Event]], cut: CallError | None, context: Context) -> None:
        self._script = script
        self._cut = cut
        self._context = context
        self._next = 0

    async def __anext__(self) -> Event:
        if self._next >= len(self._script):
            if self._cut is not None:
                raise self._cut
            raise StopAsyncIteration
        due, event = self._script[self._next]
        wait = due - self._context.clock.now()
        if wait > 0:
            await self._context.clock.sleep(wait)
        self._next += 1
        return event

    async def aclose(self) -> None:
        """Stop writing."""
        self._script, self._cut = [], None

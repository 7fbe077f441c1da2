"""What an engine does, from what it tells after each step: queue, cache, tokens, time, and what a token costs.

A token's cost is measured, not assumed: the engine's price by the second, times the seconds in which it was busy,
shared out to the calls by the tokens that were computed for them (see :mod:`llmprod.mechanisms.engine_share`). Prompt
tokens that the prefix cache had are not computed and not paid for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from weakref import WeakValueDictionary

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.engine_share import CallBill, EngineShare, ShareMark
from llmprod.response import EngineTiming

__all__ = ["EngineMeter", "EngineStats", "EngineStep", "FinishedCall", "hourly_price"]

_WINDOW = 60.0
_SAMPLES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCall:
    """A request that the engine is done with.

    Attributes:
        request: its id.
        queue, prefill, decode: seconds, as in :class:`EngineTiming`.
        prompt_tokens: prompt tokens computed for it, those found in the prefix cache left out.
        generated_tokens: answer tokens.
        arrived: when it arrived, by the engine's clock; None if not told.
        preempted: how often it had to give up its place in the cache.
    """

    request: str
    queue: float
    prefill: float
    decode: float
    prompt_tokens: int = 0
    generated_tokens: int = 0
    arrived: float | None = None
    preempted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStep:
    """What an engine tells after a step. Counts are of this step alone; levels (running …) are as it left them.

    Attributes:
        running: requests in the batch.
        waiting: requests that wait for a place in it.
        kv_cache_use: share of the KV cache that is taken, 0 to 1.
        prefix_queries: prompt tokens looked up in the prefix cache.
        prefix_hits: those found.
        prompt_tokens: prompt tokens computed, those found in the cache left out.
        generated_tokens: answer tokens.
        preemptions: requests thrown out of the batch for want of cache.
        draft_tokens: tokens proposed by speculation.
        accepted_tokens: those accepted.
        first_token_seconds: of each request whose first token came in this step, the seconds since it arrived.
        first_arrived: when those arrived, by the engine's clock.
        between_tokens_seconds: of the others, the seconds since their last token.
        finished: requests that ended.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_use: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    first_token_seconds: tuple[float, ...] = ()
    first_arrived: tuple[float, ...] = ()
    between_tokens_seconds: tuple[float, ...] = ()
    finished: tuple[FinishedCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """An engine's numbers at one moment; counts are since it was started.

    Attributes:
        in_flight: calls of this process in the engine.
        running: requests in the batch, by the engine's last word.
        waiting: requests waiting for a place in it.
        kv_cache_use: share of the KV cache that is taken, 0 to 1.
        prefix_cache_hit_rate: share of the prompt tokens that the prefix cache had; None before any.
        prompt_tokens: prompt tokens computed.
        cached_tokens: prompt tokens found in the prefix cache.
        generated_tokens: answer tokens.
        tokens_per_second: answer tokens a second over the last minute of busy time; None before any.
        finished: requests that ended.
        preemptions: requests thrown out of the batch for want of cache.
        draft_tokens: tokens proposed by speculation.
        accepted_tokens: those accepted.
        acceptance_rate: accepted over proposed; None without speculation.
        ttft_p50, ttft_p95: seconds to the first token, of the last 2,048 requests; None before any.
        between_tokens_p50: seconds between tokens; None before any.
        busy_seconds: time with at least one call in the engine.
    """

    in_flight: int
    running: int
    waiting: int
    kv_cache_use: float
    prefix_cache_hit_rate: float | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    tokens_per_second: float | None
    finished: int
    preemptions: int
    draft_tokens: int
    accepted_tokens: int
    acceptance_rate: float | None
    ttft_p50: float | None
    ttft_p95: float | None
    between_tokens_p50: float | None
    busy_seconds: float


class EngineMeter:
    """Adds up an engine's steps and the calls of this process.

    Written on the engine's thread and read on any: each number is replaced as a whole.

    Args:
        clock: time.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._now = clock.now
        self._steps: dict[int, EngineStep] = {}
        self._in_flight = 0
        self._busy = 0.0
        self._busy_since: float | None = None
        self._prompt = self._cached = self._generated = self._queries = 0
        self._finished = self._preemptions = self._drafts = self._accepted = 0
        self._firsts: deque[float] = deque(maxlen=_SAMPLES)
        self._betweens: deque[float] = deque(maxlen=_SAMPLES)
        self._rate: deque[tuple[float, int]] = deque()
        self._watched: WeakValueDictionary[str, EngineTiming] = WeakValueDictionary()
        self._bills: WeakValueDictionary[str, CallBill] = WeakValueDictionary()
        self._shares: dict[int, EngineShare] = {}
        self._shared_to = 0.0

    # ---- written --------------------------------------------------------------------------------------------------

    def call_began(self) -> None:
        """Count a call of this process into the engine."""
        if self._in_flight == 0:
            self._busy_since = self._now()
        self._in_flight += 1

    def call_ended(self) -> None:
        """Count it out."""
        self._in_flight -= 1
        if self._in_flight == 0 and self._busy_since is not None:
            self._busy += self._now() - self._busy_since
            self._busy_since = None

    def watch(self, request: str) -> EngineTiming:
        """Return a record that is filled in when the engine is done with the request of this id."""
        timing = self._watched[request] = EngineTiming()
        return timing

    def bill(self, request: str) -> CallBill:
        """Return what the request of this id will have to pay for; begin it before the request is sent."""
        bill = self._bills[request] = CallBill(self.share_mark())
        return bill

    def step(self, step: EngineStep, engine: int = 0) -> None:
        """Add what engine number ``engine`` (of several data-parallel ones) told."""
        self._steps[engine] = step
        self._prompt += step.prompt_tokens
        self._cached += step.prefix_hits
        self._queries += step.prefix_queries
        self._generated += step.generated_tokens
        self._preemptions += step.preemptions
        self._drafts += step.draft_tokens
        self._accepted += step.accepted_tokens
        self._firsts.extend(step.first_token_seconds)
        self._betweens.extend(step.between_tokens_seconds)
        self._finished += len(step.finished)
        busy = self._busy_so_far()
        share = self._share_out(step, engine, busy)
        for call in step.finished:
            timing, bill = self._watched.get(call.request), self._bills.get(call.request)
            if timing is not None:
                timing.queue, timing.prefill, timing.decode = call.queue, call.prefill, call.decode
            if bill is not None:
                prompt, answer = call.prompt_tokens, call.generated_tokens
                bill.add(share.sequence(call.arrived, prompt, answer), prompt, answer)
        if step.generated_tokens and (not self._rate or busy - self._rate[-1][0] > 0.5):
            self._rate.append((busy, self._generated))
            while busy - self._rate[0][0] > _WINDOW:
                self._rate.popleft()

    def engine_ended(self) -> None:
        """Forget the levels: nothing runs or waits in an engine that is gone, and what it computed last was lost."""
        self._steps.clear()
        self._shared_to = self._busy_so_far()
        for share in list(self._shares.values()):
            share.forget()

    def _share_out(self, step: EngineStep, engine: int, busy: float) -> EngineShare:
        share = self._shares.get(engine)
        if share is None:
            share = self._shares[engine] = EngineShare()
        told = len(step.first_token_seconds) + len(step.between_tokens_seconds)
        share.step(
            busy - self._shared_to,
            step.prompt_tokens,
            step.generated_tokens,
            firsts=step.first_arrived,
            under_way=step.running + len(step.finished) > told,
        )
        self._shared_to = busy
        return share

    # ---- read -----------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls of this process in the engine."""
        return self._in_flight

    def waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return sum(step.waiting for step in list(self._steps.values())) if self._in_flight else 0

    def kv_cache_use(self) -> float:
        """Share of the KV cache that is taken, of the fullest engine."""
        return max((step.kv_cache_use for step in list(self._steps.values())), default=0.0) if self._in_flight else 0.0

    def share_mark(self) -> ShareMark:
        """Return a reading of what was shared out, over all engines."""
        return sum((share.mark for share in list(self._shares.values())), ShareMark())

    def seconds_per_token(self) -> float | None:
        """Return the mean busy seconds of a token, of prompts and answers alike; None before any."""
        tokens = self._prompt + self._generated
        return self._busy_so_far() / tokens if tokens else None

    def _busy_so_far(self) -> float:
        since = self._busy_since
        return self._busy + (self._now() - since if since is not None else 0.0)

    def stats(self) -> EngineStats:
        """Return all numbers."""
        busy, rate = self._busy_so_far(), None
        if self._rate:
            then, tokens = self._rate[0]
            rate = (self._generated - tokens) / (busy - then) if busy - then > 0.1 else None
        return EngineStats(
            in_flight=self._in_flight,
            running=sum(step.running for step in list(self._steps.values())),
            waiting=sum(step.waiting for step in list(self._steps.values())),
            kv_cache_use=max((step.kv_cache_use for step in list(self._steps.values())), default=0.0),
            prefix_cache_hit_rate=self._cached / self._queries if self._queries else None,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            tokens_per_second=rate,
            finished=self._finished,
            preemptions=self._preemptions,
            draft_tokens=self._drafts,
            accepted_tokens=self._accepted,
            acceptance_rate=self._accepted / self._drafts if self._drafts else None,
            ttft_p50=_quantile(self._firsts, 0.5),
            ttft_p95=_quantile(self._firsts, 0.95),
            between_tokens_p50=_quantile(self._betweens, 0.5),
            busy_seconds=busy,
        )


def _quantile(values: Iterable[float], share: float) -> float | None:
    ordered = sorted(list(values))  # noqa: C414 - a copy first: another thread may append
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def hourly_price(field: str, value: object) -> Decimal | None:
    """Return a price by the hour as a Decimal.

    Raises:
        InvalidArgument: not a number of dollars, or a negative one.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise InvalidArgument(field, type(value).__name__, "US dollars an hour, such as '2.49', or None")
    try:
        price = Decimal(str(value))
    except ArithmeticError:
        raise InvalidArgument(field, repr(value)[:40], "US dollars an hour, such as '2.49', or None") from None
    if not price.is_finite() or price < 0:
        raise InvalidArgument(field, repr(value)[:40], "US dollars an hour, 0 or more")
    return price

"""What each wrapper costs by itself: ``python -m benchmarks.wrappers [--rounds N] [--json FILE]``.

CPU time of one call through a wrapper around a provider that answers at once, less that of the provider alone: the
best of several rounds in one process, so on a busy machine too it is about what an idle core needs. Nothing fails and
nothing waits; that is the case which has to be cheap. A stream's 64 events are all there at once; where they come one
by one, a wrapper that limits its steps costs a cancel scope for each, however many such wrappers there are.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from llmprod import (
    AdaptiveThrottle,
    AttemptTimeout,
    Balance,
    BaseProvider,
    Bulkhead,
    Capabilities,
    Chaos,
    CircuitBreaker,
    Context,
    ContinueText,
    Deadline,
    Event,
    Failover,
    Finish,
    GenerateRequest,
    Gradient2,
    Hedge,
    KeyPool,
    Message,
    Provider,
    RateLimit,
    Request,
    Response,
    Restart,
    Resume,
    Retry,
    Stack,
    Start,
    TextDelta,
    ThroughputGuard,
    Usage,
    UsageUpdate,
    standard,
)

_EVENTS: list[Event] = [
    Start("instant"),
    *(TextDelta("word ") for _ in range(64)),
    UsageUpdate(Usage(input=10, output=64)),
    Finish("stop"),
]
_WHOLE = GenerateRequest(messages=(Message.user("Count to sixty-four."),), max_tokens=256)
_STREAM = GenerateRequest(messages=(Message.user("Count to sixty-four."),), max_tokens=256, stream=True)


class _Ready:
    """A stream whose events are all there."""

    def __init__(self) -> None:
        self._events = deque(_EVENTS)

    def poll(self) -> Event | None:
        return self._events.popleft() if self._events else None

    async def __anext__(self) -> Event:
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def aclose(self) -> None:
        pass


class Instant(BaseProvider):
    """Answers at once."""

    def __init__(self, name: str = "instant") -> None:
        self._name = name
        self._capabilities = Capabilities(prefill=True)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        if request.stream:
            return Response(provider=self._name, context=context, request=request, source=_Ready())
        return Response(provider=self._name, context=context, request=request, events=_EVENTS)


def _limit() -> RateLimit:
    return RateLimit(requests_per_minute=10**9, input_tokens_per_minute=10**12, output_tokens_per_minute=10**12)


def _fifteen() -> Provider:
    """Fifteen wrappers, as many as have a use at once."""
    each = Stack(
        AdaptiveThrottle(), _limit(), Bulkhead(Gradient2()), CircuitBreaker(), AttemptTimeout(), ThroughputGuard(),
        Chaos(fault_rate=1e-9),
    )  # fmt: skip
    around = Stack(
        Deadline(600), RateLimit(requests_per_minute=10**9, per="user"), Resume(ContinueText(), Restart()), Retry(3),
        Hedge(minimum=10**9),
    )  # fmt: skip
    pool = KeyPool(each(Instant("a")), each(Instant("b")))
    return around(Failover(Balance(pool, each(Instant("c"))), each(Instant("d"))))


STACKS: dict[str, Callable[[], Provider]] = {
    "Deadline": lambda: Deadline(600)(Instant()),
    "RateLimit, three dimensions": lambda: _limit()(Instant()),
    "RateLimit, a quota per user": lambda: RateLimit(requests_per_minute=10**9, per="user")(Instant()),
    "Resume": lambda: Resume(ContinueText(), Restart())(Instant()),
    "Retry": lambda: Retry(3)(Instant()),
    "Failover over two": lambda: Failover(Instant("a"), Instant("b")),
    "… with Hedge, which has no data yet": lambda: Hedge(minimum=10**9)(Failover(Instant("a"), Instant("b"))),
    "… with Hedge, its timer running": lambda: Hedge()(Failover(Instant("a"), Instant("b"))),
    "Balance over two": lambda: Balance(Instant("a"), Instant("b")),
    "KeyPool of two": lambda: KeyPool(Instant("a"), Instant("b")),
    "AdaptiveThrottle": lambda: AdaptiveThrottle()(Instant()),
    "Bulkhead": lambda: Bulkhead()(Instant()),
    "Bulkhead, Gradient2": lambda: Bulkhead(Gradient2())(Instant()),
    "CircuitBreaker": lambda: CircuitBreaker()(Instant()),
    "AttemptTimeout": lambda: AttemptTimeout()(Instant()),
    "ThroughputGuard": lambda: ThroughputGuard()(Instant()),
    "Chaos": lambda: Chaos(fault_rate=1e-9)(Instant()),
    "**standard stack, two targets**": lambda: standard(Instant("a"), [Instant("b")]),
    "**fifteen wrappers**": _fifteen,
}


async def _cost(provider: Provider, request: GenerateRequest, count: int) -> float:
    tags = {"user": "u"}
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for _ in range(count):
            response = await provider.send(request, Context.new(tags=tags))
            async for _event in response:
                pass
        return (time.process_time() - started) / count
    finally:
        gc.enable()


async def measure(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return microseconds of CPU a call over the bare provider's, by stack and mode; the bare one's under ``bare``."""
    providers = {"bare": Instant(), **{name: make() for name, make in STACKS.items()}}
    best: dict[str, dict[str, float]] = {name: {} for name in providers}
    for _ in range(rounds):
        for name, provider in providers.items():
            for mode, request in (("whole", _WHOLE), ("stream", _STREAM)):
                cost = await _cost(provider, request, count) * 1e6
                best[name][mode] = min(cost, best[name].get(mode, cost))
    bare = best["bare"]
    return {
        name: cost if name == "bare" else {mode: value - bare[mode] for mode, value in cost.items()}
        for name, cost in best.items()
    }


def table(costs: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| wrapper | whole, µs | 64-event stream, µs |", "|---|---|---|"]
    for name, cost in costs.items():
        shown = "(the provider alone)" if name == "bare" else name
        lines.append(f"| {shown} | {cost['whole']:.1f} | {cost['stream']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", metavar="FILE")
    options: Any = parser.parse_args()
    costs = asyncio.run(measure(options.rounds, options.calls))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(costs, file, indent=1)
            file.write("\n")
    print(table(costs))


if __name__ == "__main__":
    main()

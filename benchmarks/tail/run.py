"""Makes a plan's calls through a stack, and adds up what they took and cost."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from benchmarks.tail.latency import PROMPT_TOKENS, Call, Plan
from llmprod import (
    AttemptRefused,
    AttemptTimeout,
    Context,
    Failover,
    GenerateRequest,
    Hedge,
    HedgeEnded,
    HedgeStarted,
    Message,
    Provider,
    Response,
    Retry,
    RetryBudget,
)
from llmprod.clock import SYSTEM_CLOCK, Clock

PROMPT = (Message.user("word " * int(PROMPT_TOKENS * 4 / 5 - 4)),)
OUTPUT_PRICE = 4
"""What an answer's token costs, in prompt tokens; 4 to 5 with most vendors."""
_POINTS = 400


@dataclass
class Result:
    """What came of it.

    Attributes:
        seconds: of each call until its answer was committed, sorted.
        hedges: second attempts.
        won: of them, those that were first.
        refused: that the budget had no leave for.
        prompt, answer: tokens of the answers that were used.
        wasted: tokens that the losers probably cost, as the traces tell.
    """

    seconds: list[float] = field(default_factory=list)
    hedges: int = 0
    won: int = 0
    refused: int = 0
    prompt: int = 0
    answer: int = 0
    wasted_prompt: int = 0
    wasted_answer: int = 0

    def quantile(self, share: float) -> float:
        """Return the seconds that ``share`` of the calls stayed within."""
        return self.seconds[max(0, math.ceil(share * len(self.seconds)) - 1)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the tables, and points of the distribution for the figure."""
        calls = len(self.seconds)
        cost = self.prompt + OUTPUT_PRICE * self.answer
        extra = self.wasted_prompt + OUTPUT_PRICE * self.wasted_answer
        shares = [1 - 10 ** (-4 * point / _POINTS) for point in range(_POINTS)]
        return {
            "calls": calls,
            "mean": sum(self.seconds) / calls,
            **{name: self.quantile(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
            "p999": self.quantile(0.999),
            "extra_attempts": self.hedges / calls,
            "hedge_won": self.won / self.hedges if self.hedges else None,
            "extra_tokens": (self.wasted_prompt + self.wasted_answer) / (self.prompt + self.answer),
            "extra_cost": extra / cost,
            "above": [
                [round(self.quantile(share), 5), round(1 - share, 6)] for share in shares if share < 1 - 1 / calls
            ],
        }


def stack(targets: list[Provider], hedge: Hedge | None, clock: Clock = SYSTEM_CLOCK) -> Provider:
    """Return Retry → (Hedge) → Failover → (AttemptTimeout) for each target."""
    router: Provider = Failover(*(AttemptTimeout()(target) for target in targets), clock=clock)
    # The call's own budget is out of the way: the experiment is about the hedge's.
    return Retry(budget=RetryBudget(1, clock=clock), clock=clock)(router if hedge is None else hedge(router))


async def run(
    plan: Plan,
    provider: Provider,
    *,
    stream: bool,
    clock: Clock = SYSTEM_CLOCK,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> Result:
    """Make every call when it is due; no call waits for another."""
    result = Result()
    began = clock.now()

    async def one(call: Call) -> None:
        context = Context.new(clock=clock)
        # max_tokens tells the deployment how long this answer is, and seed which call it is.
        request = GenerateRequest(messages=PROMPT, stream=stream, max_tokens=call.tokens, seed=call.number)
        async with await provider.send(request, context) as response:
            result.seconds.append(context.elapsed)
            await response.read()
        _add(result, response)

    async with anyio.create_task_group() as group:
        for call in plan.drawn:
            wait = began + call.arrives - clock.now()
            if wait > 0:
                await sleep(wait)
            group.start_soon(one, call)
    result.seconds.sort()
    return result


def _add(result: Result, response: Response) -> None:
    assert response.usage is not None
    result.prompt += response.usage.total_input
    result.answer += response.usage.total_output
    for decision in response.trace.decisions:
        result.hedges += isinstance(decision, HedgeStarted)
        result.won += isinstance(decision, HedgeEnded) and decision.winner == "hedge"
        result.refused += isinstance(decision, AttemptRefused)
    for attempt in response.trace.attempts:
        if attempt.reason is not None and attempt.usage is not None:
            result.wasted_prompt += attempt.usage.total_input
            result.wasted_answer += attempt.usage.total_output

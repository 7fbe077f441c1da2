"""A process that spends from a shared budget: python budget_worker.py STORE PLACE LIMIT CALLERS ROUNDS LOG SEED LEASE.

Its provider keeps an account of its own, a line in a file for each attempt that it bills, written before the answer is
given. ROUNDS of 0 goes on until it is killed.
"""

import os
import random
import sys
from typing import Any

import anyio

from llmprod import Context, GenerateRequest, Message, Usage
from llmprod.errors import BudgetExceeded, ServerError, StreamInterrupted
from llmprod.events import Finish, Start, TextDelta, UsageUpdate
from llmprod.mechanisms.budget import BudgetLimit
from llmprod.provider import BaseProvider, Capabilities
from llmprod.response import Response
from llmprod.wrappers.budget import Budget
from llmprod.wrappers.retry import Retry

RESERVED = 110  # micro-dollars: ten tokens of prompt and a hundred of answer
PERIOD = 1e9  # seconds: no test sees its end


def limits(amount: int) -> tuple[BudgetLimit, ...]:
    """A budget for all in micro-dollars, and one a user that is large enough."""
    whole = f"{amount / 1e6:.6f}"
    return BudgetLimit(whole, per=PERIOD), BudgetLimit(whole, per=PERIOD, by="user")


def store(kind: str, place: str, lease: float = 900.0) -> Any:
    if kind == "disk":
        from llmprod.stores.disk_budgets import DiskBudgets

        return DiskBudgets(place, lease=lease, timeout=30)
    from llmprod.stores.redis_budgets import RedisBudgets

    return RedisBudgets(place, lease=lease, timeout=30)


class Billing(BaseProvider):
    """Answers after a moment, and writes down what it bills."""

    name = "a"
    capabilities = Capabilities()

    def __init__(self, log: str, chance: random.Random) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.chance = chance

    async def _send(self, request: Any, context: Context, dropped: tuple[str, ...]) -> Response:
        await anyio.sleep(self.chance.random() * 0.02)
        if self.chance.random() < 0.2:
            raise ServerError(status=500)
        tokens = self.chance.randint(1, 100)
        os.write(self.log, f"{5 + tokens}\n".encode())
        if self.chance.random() < 0.2:
            await anyio.sleep(self.chance.random() * 0.02)
        events = [Start("a"), TextDelta("x"), UsageUpdate(Usage(input=5, output=tokens)), Finish("stop")]
        return Response(provider="a", context=context, request=request, events=events)


async def main() -> None:
    kind, place, amount, callers, rounds, log, seed, lease = sys.argv[1:9]
    chance = random.Random(int(seed))
    kept = store(kind, place, float(lease))
    provider = Budget(
        *limits(int(amount)), price={"a": (1, 1)}, tokens=lambda request: 10, assume_output=100, store=kept
    )(Retry(2)(Billing(log, chance)))
    served = [0]

    async def caller(number: int) -> None:
        went = 0
        while went < int(rounds) or not int(rounds):
            went += 1
            try:
                context = Context.new(tags={"user": f"u{number % 3}"})
                await provider.send(GenerateRequest(messages=(Message.user("Hi"),)), context)
                served[0] += 1
            except (ServerError, StreamInterrupted):
                pass
            except BudgetExceeded as error:
                if int(rounds) and error.retry_after is not None:
                    return  # spent, rather than held by others who may give it back
                went -= 1
                await anyio.sleep(0.01)

    print("ready", flush=True)
    async with anyio.create_task_group() as group:
        for number in range(int(callers)):
            group.start_soon(caller, number)
    await kept.aclose()
    print(served[0], flush=True)


if __name__ == "__main__":
    anyio.run(main)

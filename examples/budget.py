"""Twenty users at once with a budget of a few cents: no more is spent, and a cheaper model takes over in time.

    python examples/budget.py

The models are simulated: nothing is sent anywhere, and nothing costs anything. The budget is kept in a
file, as for an application that is restarted or has several processes.
"""

import tempfile
from decimal import Decimal
from pathlib import Path

import anyio

from llmprod import (
    AsyncClient,
    Budget,
    BudgetExceeded,
    BudgetLimit,
    BudgetPassedSoft,
    Context,
    DiskBudgets,
    MaxTokens,
    Retry,
    Simulated,
    Usage,
)

PRICES = {"instant/large": (5, 25), "instant/small": (1, 5)}  # dollars a million tokens of prompt and answer


def price(provider: str, model: str, usage: Usage) -> Decimal | None:
    """What a price list says; None for a model that is not in it."""
    found = PRICES.get(model)
    return None if found is None else Decimal(found[0] * usage.total_input + found[1] * usage.total_output) / 10**6


def warn(passed: BudgetPassedSoft, context: Context) -> None:
    print(f"  warning: ${passed.used:.4f} of ${passed.amount} of {passed.limit} are in use")


async def ask(client: AsyncClient, user: str, ends: list[str]) -> None:
    """Make three calls and note who answered them."""
    for _ in range(3):
        try:
            response = await client.generate("Why do bridges have joints?", tags={"user": user, "endpoint": "chat"})
        except BudgetExceeded as error:
            ends.append(f"refused by {error.limit}")
        else:
            ends.append(f"answered by {response.provider}")


async def day(path: Path) -> None:
    """What one run of an application does."""
    store = DiskBudgets(path)
    budget = Budget(
        BudgetLimit("0.16", per="day", timezone="Europe/Berlin"),
        BudgetLimit("0.016", per="hour", by="user", soft=None),
        price=price,
        store=store,
        on_soft=warn,
        cheaper=Simulated("instant/small"),
    )
    limit = MaxTokens(by={"chat": 300})
    ends: list[str] = []
    async with AsyncClient(Simulated("instant/large"), wrappers=[limit, budget, Retry()]) as client:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(ask, client, f"user {number}", ends)
    for end in sorted(set(ends)):
        print(f"  {ends.count(end):3} {end}")
    whole, user = await budget.state({"user": "user 0"})
    print(f"  spent: ${whole.spent:.4f} of ${whole.amount}; by user 0: ${user.spent:.4f} of ${user.amount}")
    assert whole.spent <= whole.amount
    await store.aclose()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for run in ("first run", "after a restart"):
            print(run)
            await day(Path(folder) / "budgets.db")
    print("Who was refused found the rest set aside for what calls under way might cost; they cost less, as a rule.")


anyio.run(main)

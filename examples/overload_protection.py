"""A model with little capacity under too much load: with a bulkhead, and with a client-side throttle.

    python examples/overload_protection.py

The model is simulated: it serves 8 calls at once and refuses the ninth, as a hosted API does with a 529. Nothing is
sent anywhere.
"""

import anyio

from llmprod import AdaptiveThrottle, AsyncClient, Bulkhead, BulkheadFull, CallError, Overloaded, Shed, Simulated


def model(name: str, capacity: int = 8) -> Simulated:
    return Simulated(f"small/{name}", ttft=0.1, tokens_per_second=800, answer_tokens=20, capacity=capacity)


async def ask(client: AsyncClient, ends: list[str]) -> None:
    """Make one call and note how it ended."""
    try:
        await client.generate("Why do bridges have expansion joints?")
    except (Overloaded, BulkheadFull, Shed) as error:
        ends.append(type(error).__name__)
    except CallError as error:
        ends.append(f"other: {type(error).__name__}")
    else:
        ends.append("answered")


async def burst(title: str, client: AsyncClient) -> None:
    """Forty callers at once."""
    ends: list[str] = []
    async with client, anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(ask, client, ends)
    print(f"{title:38}", ", ".join(f"{ends.count(kind)} {kind}" for kind in sorted(set(ends))))


async def overload() -> None:
    """A hundred calls a second for three seconds; for one of them the model has an eighth of its capacity."""
    target = model("shrinks", capacity=24)
    # A window of a fifth of a second suits this hurry; the usual one is ten seconds.
    client = AsyncClient(target, wrappers=[AdaptiveThrottle(window=0.2)])
    print("\nfifty calls in half a second  capacity  answered  refused by the model  refused here")
    async with client:
        for number in range(6):
            target.capacity = 3 if number in (2, 3) else 24
            ends: list[str] = []
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(ask, client, ends)
                    await anyio.sleep(0.01)
            here, there, answered = (ends.count(kind) for kind in ("Shed", "Overloaded", "answered"))
            print(f"{number + 1:28}  {target.capacity:8}  {answered:8}  {there:20}  {here:12}")


async def main() -> None:
    print("forty calls at once, to a model that serves eight:")
    await burst("  nothing", AsyncClient(model("bare"), wrappers=[]))
    await burst("  Bulkhead(8)", AsyncClient(model("bulkhead"), wrappers=[Bulkhead(8)]))
    short = Bulkhead(8, at_most_waiting=8)
    await burst("  Bulkhead(8, at_most_waiting=8)", AsyncClient(model("short line"), wrappers=[short]))

    # Who waits is told, and who can't be answered in time is not sent.
    stack = Bulkhead(1)(model("one at a time", capacity=1))
    async with AsyncClient(stack) as client, anyio.create_task_group() as group:
        group.start_soon(client.generate, "First!")
        await anyio.sleep(0.05)
        second = await client.generate("Second.")
        print(f"\nthe second of two calls:\n{second.trace}")

    await overload()


anyio.run(main)

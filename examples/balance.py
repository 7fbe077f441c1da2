"""Three replicas behind one Balance, one of them slow, then another failing: where the calls go.

    python examples/balance.py

The replicas are simulated; the balancing is real. Power of two choices with peak EWMA moves calls away from trouble and
comes back when it is over, without anybody telling it.
"""

import random
from collections import Counter

import anyio

from llmprod import AsyncClient, Balance, BaseProvider, Capabilities, Response, ServerError
from llmprod.events import Finish, Start, TextDelta

NAMES = ("replica-1", "replica-2", "replica-3")


class Replica(BaseProvider):
    """Answers after a while; the program changes how long that is, and whether it fails."""

    def __init__(self, name):
        self._name = name
        self.seconds = 0.02
        self.failing = False

    name = property(lambda self: self._name)
    capabilities = property(lambda self: Capabilities())

    async def _send(self, request, context, dropped):
        await context.clock.sleep(0.001 if self.failing else self.seconds)
        if self.failing:
            raise ServerError(provider=self._name)
        events = [Start("model"), TextDelta("Hello."), Finish("stop")]
        return Response(provider=self._name, context=context, request=request, events=events, dropped=dropped)


async def traffic(client, seconds):
    """About 100 calls a second; returns who answered and which attempts failed."""
    answered, failed = Counter(), Counter()

    async def call():
        response = await client.generate("Hello")
        answered[response.provider] += 1
        failed.update(attempt.target for attempt in response.trace.attempts if attempt.state == "failed")

    async with anyio.create_task_group() as group:
        end = anyio.current_time() + seconds
        while anyio.current_time() < end:
            group.start_soon(call)
            await anyio.sleep(drawn.expovariate(100))
    return answered, failed


def show(title, counts):
    answered, failed = counts
    shares = "  ".join(f"{name} {answered[name] / answered.total():4.0%}" for name in NAMES)
    print(f"{title:24} {shares}   failed attempts: {failed.total()} of {answered.total() + failed.total()}")


async def main():
    replicas = [Replica(name) for name in NAMES]
    # A memory of a quarter of a second, and failures that count as much, since these replicas answer within 20 ms.
    balanced = Balance(*replicas, decay=0.25, penalty=0.25)
    async with AsyncClient(balanced) as client:
        show("all healthy", await traffic(client, 0.8))
        replicas[0].seconds = 0.4
        show("replica-1 is slow", await traffic(client, 0.8))
        replicas[0].seconds, replicas[1].failing = 0.02, True
        show("replica-2 fails fast", await traffic(client, 0.8))
        replicas[1].failing = False
        await traffic(client, 0.8)
        show("all healthy again", await traffic(client, 0.8))

    sticky = Balance(*replicas, sticky="session")
    async with AsyncClient(sticky) as client:
        print("\nsticky by session: where five turns of each conversation go")
        for session in ("ada", "bob", "cyd"):
            homes = [(await client.generate("Hello", tags={"session": session})).provider for _ in range(5)]
            print(f"  {session}: {', '.join(homes)}")


drawn = random.Random(7)
anyio.run(main)

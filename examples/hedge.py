"""A model that is now and then very slow, with and without a second deployment that is asked in its place.

    python examples/hedge.py

Both deployments are servers on loopback, started here. Every eighth call to each of them takes a second.
"""

import asyncio
import statistics

from llmprod import AsyncClient, AttemptTimeout, Failover, Hedge, HedgeEnded, OpenAI, Provider, Retry
from llmprod.testing.fault_server import Answer, Behaviour, FaultServer, RequestRecord


def now_and_then_slow(offset: int) -> FaultServer:
    """Make a server whose every eighth answer is late."""

    def behave(record: RequestRecord) -> Behaviour:
        late = (record.number + offset) % 8 == 7
        return Behaviour(answer=Answer(text="Here you are."), first_token_delay=1.0 if late else 0.03)

    return FaultServer(behave)


async def measure(title: str, provider: Provider, calls: int = 48) -> None:
    """Stream some answers, four at a time, and print the times to their first tokens."""
    times: list[float] = []
    async with AsyncClient(provider) as client:

        async def some() -> None:
            for _ in range(calls // 4):
                async with client.stream("Hello?") as response:
                    await response.read()
                times.append(response.timing.ttft or 0.0)
                hedged = [each for each in response.trace.decisions if isinstance(each, HedgeEnded)]
                if hedged and hedged[0].winner == "hedge" and not shown:
                    shown.append(str(response.trace))

        shown: list[str] = []
        await asyncio.gather(*(some() for _ in range(4)))
    print(
        f"{title}: median {statistics.median(times):.2f} s, slowest tenth {sorted(times)[-calls // 10]:.2f} s or more"
    )
    for trace in shown:
        print("\nthe first call that its hedge won:\n", trace, "\n", sep="")


async def main() -> None:
    """Measure both."""
    with now_and_then_slow(0) as one, now_and_then_slow(4) as two:
        # The budget allows more here than its default, 5% of the calls, and the delay is fixed, so that a few calls
        # are enough to see it work. Leave both out in an application.
        for title, wrap in (("without", lambda inner: inner), ("with", Hedge(delay=0.1, budget=0.25))):
            targets = [
                AttemptTimeout()(OpenAI(name, base_url=f"{server.url}/v1", api_key="none"))
                for name, server in (("one", one), ("two", two))
            ]
            await measure(title, Retry()(wrap(Failover(*targets))))


asyncio.run(main())

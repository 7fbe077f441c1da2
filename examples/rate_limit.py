"""A burst of calls at a provider that allows ten a second, with and without a limit that knows it; then a user's quota.

    python examples/rate_limit.py

The provider is a `FaultServer`: a real HTTP server on 127.0.0.1 that answers 429 to what is too much.
"""

import asyncio
import time

from llmprod import AsyncClient, AttemptTimeout, OpenAI, RateLimit, RateLimited, RateLimitExceeded, Wrapper
from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer, RequestRecord

PER_SECOND, DEPTH = 10.0, 5.0


class Allowance:
    """What a provider does: a bucket of five calls that gets ten more each second."""

    def __init__(self) -> None:
        self.level, self.seen = DEPTH, time.monotonic()

    def __call__(self, record: RequestRecord) -> Behaviour:
        now = time.monotonic()
        self.level = min(DEPTH, self.level + (now - self.seen) * PER_SECOND)
        self.seen = now
        if self.level < 1:
            return Behaviour(error=ErrorReply(kind="rate_limit", retry_after=1))
        self.level -= 1
        return Behaviour(answer=Answer(text="Here you are."))


async def burst(title: str, *wrappers: Wrapper) -> None:
    """Make 30 calls at once and tell how they ended."""
    with FaultServer(Allowance()) as server:
        model = OpenAI("model", base_url=f"{server.url}/v1", api_key="none")
        async with AsyncClient(model, wrappers=[*wrappers, AttemptTimeout()]) as client:

            async def ask() -> str:
                try:
                    response = await client.generate("Hello?")
                except RateLimited:
                    return "refused by the provider"
                waited = [decision.values()["seconds"] for decision in response.trace.decisions]
                longest.extend(waited)
                return "answered"

            longest: list[float] = [0.0]
            started = time.monotonic()
            ends = await asyncio.gather(*(ask() for _ in range(30)))
            took = time.monotonic() - started
    print(
        f"{title}: {ends.count('answered')} answered, {ends.count('refused by the provider')} refused by the provider"
    )
    print(f"  in {took:.1f} s; the longest wait was {max(longest):.1f} s\n")


async def quota() -> None:
    """Two calls a minute for each user."""
    with FaultServer(Behaviour(answer=Answer(text="Here you are."))) as server:
        model = OpenAI("model", base_url=f"{server.url}/v1", api_key="none")
        limit = RateLimit(requests_per_minute=2, per="user", wait_at_most=0)
        async with AsyncClient(model, wrappers=[limit, AttemptTimeout()]) as client:
            for user in ("ann", "ann", "ann", "bob"):
                try:
                    response = await client.generate("Hello?", tags={"user": user})
                    print(f"{user}: {response.text}")
                except RateLimitExceeded as error:
                    print(f"{user}: {error}")


async def main() -> None:
    await burst("without a limit")
    # The server's own depth is half a second of its rate; a burst of as much fits into it.
    await burst("with a limit", RateLimit(requests_per_minute=60 * PER_SECOND, burst=DEPTH / PER_SECOND / 1.5))
    await quota()


asyncio.run(main())

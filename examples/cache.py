"""Twenty equal questions at once, once more later, and the model goes down: what reaches the model.

    python examples/cache.py

The model is a server on loopback, started here. Twenty callers stream the same answer while it is being written, the
first of them is cancelled, and the model is asked once. Later the answer comes from the store, and when the model fails
a stale one stands in.
"""

import asyncio

from llmprod import AsyncClient, Cache, OpenAI, Retry
from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer, RequestRecord

QUESTION = "What does a cache do?"
down: list[str] = []


def behave(record: RequestRecord) -> Behaviour:
    if down:
        return Behaviour(error=ErrorReply(kind="overloaded"))
    return Behaviour(answer=Answer(text="It remembers, so that nobody has to ask twice."), token_delay=0.02)


async def main() -> None:
    cache = Cache(ttl=0.5, stale_if_error=60, early=0)
    with FaultServer(behave) as server:
        model = OpenAI("gpt-5-mini", base_url=f"{server.url}/v1", api_key="none")
        async with AsyncClient(model, wrappers=[cache, Retry(1)]) as client:

            async def ask() -> str:
                async with client.stream(QUESTION, temperature=0) as response:
                    await response.read()
                return response.text

            callers = [asyncio.create_task(ask()) for _ in range(20)]
            await asyncio.sleep(0.05)
            callers[0].cancel()
            answers = await asyncio.gather(*callers[1:])
            asked = len(server.requests)
            print(f"{len(answers)} callers got {len(set(answers))} answer; the model was asked {asked} time")

            response = await client.generate(QUESTION, temperature=0)
            print(f"later: {response.text!r}, {response.cached.age:.2f} s old, {response.usage.total} tokens")

            await asyncio.sleep(0.6)
            down.append("the model")
            response = await client.generate(QUESTION, temperature=0)
            print(f"the model is down: {response.text!r}, stale: {response.cached.stale}")
            print(response.trace)

    stats = cache.stats()
    print(f"hit rate {stats.hit_rate:.0%}, {stats.tokens_saved} tokens saved")


if __name__ == "__main__":
    asyncio.run(main())

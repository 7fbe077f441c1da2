"""Equal calls through a Cache on a shared store: ``python -m tests.stores.cache_worker STORE LEASE SECONDS``.

Prints ``asking`` when the model is asked, and at the end how often it was, how many calls were hits, and the texts.
"""

import asyncio
import sys

from llmprod import Context, GenerateRequest, Message
from llmprod.store import Store
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.cache import Cache


def opened(where: str) -> Store:
    if where.startswith("unix:"):
        from llmprod.stores.redis_store import RedisStore

        return RedisStore(where, timeout=10)
    from llmprod.stores.disk import DiskStore

    return DiskStore(where, timeout=60)


class Model(Scripted):
    async def _send(self, request, context, dropped):
        print("asking", flush=True)
        return await super()._send(request, context, dropped)


async def main(where: str, lease: float, seconds: float) -> None:
    store = opened(where)
    model = Model(then=[seconds / 2, "Hel", seconds / 2, "lo"])
    cache = Cache(store, lease=lease)
    provider = cache(model)

    async def ask(stream: bool) -> str:
        asked = GenerateRequest(messages=(Message.user("Hi"),), temperature=0, stream=stream)
        response = await provider.send(asked, Context.new())
        return (await response.read()).text

    texts = await asyncio.gather(*(ask(number % 2 == 0) for number in range(20)))
    print(model.calls, cache.stats().hits, *sorted(set(texts)), flush=True)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))

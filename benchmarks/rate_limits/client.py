"""Callers, in a process of their own: ``python -m benchmarks.rate_limits.client KIND PLAN URL PROCESS OF REDIS``.

A closed loop: each caller asks again as soon as its call has ended, until the time is over. A line with a time of the
monotonic clock starts it; at the end the calls' lengths and errors are printed.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.loopback import read_line, say
from benchmarks.rate_limits.plan import Plan

Ask = Callable[[str], Awaitable[object]]
_DEADLINE = 60.0


def naive(plan: Plan, url: str, _: str) -> Ask:
    """The vendor's SDK under OpenAI's cookbook's decorator."""
    from openai import AsyncOpenAI
    from tenacity import retry, stop_after_attempt, wait_random_exponential

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=_DEADLINE)

    @retry(wait=wait_random_exponential(min=1, max=60), stop=stop_after_attempt(6), reraise=True)
    async def ask(prompt: str) -> object:
        messages: Any = [{"role": "user", "content": prompt}]
        return await client.chat.completions.create(model="model", messages=messages, max_tokens=plan.max_tokens)

    return ask


def limited(plan: Plan, url: str, redis: str) -> Ask:
    """llmprod with a RateLimit that is told the allowance, shared over Redis if there is one."""
    from llmprod import AsyncClient, AttemptTimeout, Deadline, OpenAI, RateLimit, Retry

    store: Any = None
    if redis:
        from llmprod import RedisLimits

        store = RedisLimits(redis)
    limit = RateLimit(requests_per_minute=plan.requests, tokens_per_minute=plan.tokens, store=store)
    model = OpenAI("model", base_url=url, api_key="none")
    client = AsyncClient(model, wrappers=[Deadline(_DEADLINE), Retry(), limit, AttemptTimeout()])

    async def ask(prompt: str) -> object:
        return await client.generate(prompt, max_tokens=plan.max_tokens)

    return ask


KINDS: dict[str, Callable[[Plan, str, str], Ask]] = {"naive": naive, "limited": limited}


async def _main(kind: str, plan: Plan, url: str, process: int, of: int, redis: str) -> None:
    ask = KINDS[kind](plan, f"{url}/v1", redis)
    numbers = itertools.count(process, of)
    took: list[float] = []
    errors: Counter[str] = Counter()
    await ask("call 0")  # imports, a connection
    gc.freeze()
    say("ready")
    began = float(await read_line())
    end = began + plan.length

    async def caller() -> None:
        while (started := time.monotonic()) < end:
            try:
                await ask(plan.prompt_text(next(numbers)))
            except Exception as error:
                errors[type(error).__name__] += 1
                await asyncio.sleep(0.1)  # a refusal at once must not become a busy loop
            else:
                took.append(time.monotonic() - started)

    await asyncio.sleep(max(0.0, began - time.monotonic()))
    tasks = [asyncio.create_task(caller()) for _ in range(plan.callers // of)]
    await asyncio.wait(tasks, timeout=end - time.monotonic())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    say({"took": took, "errors": dict(errors)})


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    _kind, _plan, _url, _process, _of, _redis = sys.argv[1:]
    asyncio.run(_main(_kind, Plan.from_json(_plan), _url, int(_process), int(_of), _redis))

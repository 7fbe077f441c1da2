"""The provider, in a process of its own: ``python -m benchmarks.rate_limits.server PLAN``.

Prints its address; a line with a time of the monotonic clock starts the plan, the line ``end`` ends it and has the log
printed: what was charged when, when a call was refused, and what the buckets held at both ends of the measured time.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from typing import Any

from benchmarks.loopback import Reply, answer, listen, read_line, refusal, say
from benchmarks.rate_limits.plan import Plan
from llmprod.testing._wire.http import HttpRequest

_CALL = re.compile(r"call (\d+)")


class Allowance:
    """Requests or tokens: a bucket that refills, or a window that begins anew."""

    def __init__(self, a_minute: float, plan: Plan) -> None:
        self.rate = a_minute / 60
        self.limit = a_minute
        self.windows = plan.mode == "window"
        self.period = plan.period
        self.depth = self.rate * (plan.period if self.windows else plan.depth)
        self.level = self.depth
        self.seen = time.monotonic()
        self.began = self.seen - plan.period / 3  # callers don't know where the windows lie

    def _refill(self) -> None:
        now = time.monotonic()
        if self.windows:
            if now >= self.began + self.period:
                self.began += self.period * math.floor((now - self.began) / self.period)
                self.level = self.depth
        else:
            self.level = min(self.depth, self.level + (now - self.seen) * self.rate)
        self.seen = now

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` is there, 0 if it is."""
        self._refill()
        short = amount - self.level
        if short <= 0:
            return 0.0
        return self.began + self.period - self.seen if self.windows else short / self.rate

    def holds(self) -> float:
        """What may be taken now, negative for a debt."""
        self._refill()
        return self.level

    def take(self, amount: float) -> None:
        """Charge, into debt if need be."""
        self._refill()
        self.level -= amount

    def headers(self, name: str) -> dict[str, str]:
        """As OpenAI tells it."""
        self._refill()
        reset = self.began + self.period - self.seen if self.windows else (self.depth - self.level) / self.rate
        return {
            f"x-ratelimit-limit-{name}": f"{self.limit:.0f}",
            f"x-ratelimit-remaining-{name}": f"{max(0.0, self.level):.0f}",
            f"x-ratelimit-reset-{name}": f"{reset * 1000:.0f}ms",
        }


class Server:
    """Admits or refuses, answers, and charges."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests = Allowance(plan.requests, plan)
        self.tokens = Allowance(plan.tokens, plan)
        self.charged: list[tuple[float, float]] = []
        self.admitted: list[float] = []
        self.refused: list[float] = []

    def serve(self, request: HttpRequest, reply: Reply) -> None:
        """Admit or refuse a request."""
        body = json.loads(request.body)
        text = body["messages"][-1]["content"]
        prompt = text.count(" ") + 1 + 7
        most = body.get("max_tokens") or body.get("max_completion_tokens") or self.plan.max_tokens
        now = time.monotonic()
        at_once = prompt + most if self.plan.mode == "reserve" else prompt
        wait = max(self.requests.wait(1), self.tokens.wait(at_once))
        headers = self.requests.headers("requests") | self.tokens.headers("tokens")
        if wait > 0:
            self.refused.append(now)
            if self.requests.level >= 1:
                self.requests.take(1)  # "unsuccessful requests contribute to your per-minute limit"
            headers |= {"retry-after": f"{math.ceil(wait)}", "retry-after-ms": f"{wait * 1000:.0f}"}
            reply(429, refusal("tokens", "rate_limit_exceeded", "Rate limit reached."), headers)
            return
        self.requests.take(1)
        self._charge(at_once)
        self.admitted.append(now)
        headers = self.requests.headers("requests") | self.tokens.headers("tokens")
        found = _CALL.search(text)
        length = min(most, self.plan.answer_tokens(int(found[1]) if found else 0))
        takes = self.plan.first_token + length / self.plan.speed
        asyncio.get_running_loop().call_later(takes, self._done, prompt, length, headers, reply)

    def _done(self, prompt: int, length: int, headers: dict[str, str], reply: Reply) -> None:
        if self.plan.mode != "reserve":
            self._charge(length)
        reply(200, answer("model", "word " * 4, input_tokens=prompt, output_tokens=length), headers)

    def _charge(self, tokens: float) -> None:
        self.tokens.take(tokens)
        self.charged.append((time.monotonic(), tokens))

    def left(self) -> dict[str, float]:
        """What the buckets hold now."""
        return {"requests": self.requests.holds(), "tokens": self.tokens.holds()}


async def _main(plan: Plan) -> None:
    server = Server(plan)
    listener, url = await listen(server.serve)
    say(url)
    began = float(await read_line())
    held: list[dict[str, float]] = []
    for at in (plan.warm_up, plan.length):
        asyncio.get_running_loop().call_later(began + at - time.monotonic(), lambda: held.append(server.left()))
    assert await read_line() == "end"
    log: dict[str, Any] = {
        "charged": [(at - began, tokens) for at, tokens in server.charged],
        "admitted": [at - began for at in server.admitted],
        "refused": [at - began for at in server.refused],
        "held": held,
        "windows": server.tokens.began - began,
    }
    say(log)
    listener.close()


if __name__ == "__main__":
    asyncio.run(_main(Plan.from_json(sys.argv[1])))

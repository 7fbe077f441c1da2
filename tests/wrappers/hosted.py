"""A hosted model API's rate limits, as far as a client can see them, in virtual time."""

import math
import random
from collections import deque
from dataclasses import dataclass, field

import anyio

from llmprod import Capabilities, Context, EmbedRequest, RateLimited, Response, Usage
from llmprod.events import Finish, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider


class Bucket:
    """Refills evenly; holds ``depth`` seconds of its rate."""

    def __init__(self, amount: float, now: float, depth: float = 60.0) -> None:
        self.rate, self.cap = amount / 60.0, amount * depth / 60.0
        self.level, self.at = self.cap, now

    def _refill(self, now: float) -> None:
        self.level = min(self.cap, self.level + (now - self.at) * self.rate)
        self.at = now

    def wait(self, cost: float, now: float) -> float:
        self._refill(now)
        return max(0.0, (min(cost, self.cap) - self.level) / self.rate)

    def take(self, cost: float, now: float) -> None:
        self._refill(now)
        self.level -= cost

    def remaining(self, now: float) -> float:
        self._refill(now)
        return max(0.0, self.level)

    def reset(self, now: float) -> float:
        self._refill(now)
        return (self.cap - self.level) / self.rate


class FixedWindow:
    """Counts from minute to minute, as the server's clock has them."""

    def __init__(self, amount: float, now: float, offset: float = 17.0) -> None:
        self.amount, self.offset = amount, offset
        self.window, self.used = self._number(now), 0.0

    def _number(self, now: float) -> int:
        return math.floor((now + self.offset) / 60.0 + 1e-9)

    def _roll(self, now: float) -> None:
        if self._number(now) != self.window:
            self.window, self.used = self._number(now), 0.0

    def wait(self, cost: float, now: float) -> float:
        self._roll(now)
        return 0.0 if self.used + cost <= self.amount else self.reset(now)

    def take(self, cost: float, now: float) -> None:
        self._roll(now)
        self.used += cost

    def remaining(self, now: float) -> float:
        self._roll(now)
        return max(0.0, self.amount - self.used)

    def reset(self, now: float) -> float:
        return (self._number(now) + 1) * 60.0 - self.offset - now


class SlidingWindow:
    """No more than the amount in any sixty seconds."""

    def __init__(self, amount: float, now: float) -> None:
        self.amount, self.log, self.used = amount, deque(), 0.0

    def _roll(self, now: float) -> None:
        while self.log and self.log[0][0] <= now - 60.0 + 1e-9:
            self.used -= self.log.popleft()[1]

    def wait(self, cost: float, now: float) -> float:
        self._roll(now)
        short = self.used + cost - self.amount
        for at, used in self.log:
            if short <= 0:
                break
            short -= used
            if short <= 0:
                return at + 60.0 - now
        return 0.0

    def take(self, cost: float, now: float) -> None:
        self._roll(now)
        self.log.append((now, cost))
        self.used += cost

    def remaining(self, now: float) -> float:
        self._roll(now)
        return max(0.0, self.amount - self.used)

    def reset(self, now: float) -> float:
        return self.log[0][0] + 60.0 - now if self.log else 0.0


STYLES = {
    "bucket": Bucket,
    "small bucket": lambda amount, now: Bucket(amount, now, depth=10.0),
    "fixed minute": FixedWindow,
    "sliding minute": SlidingWindow,
}


@dataclass
class Told:
    """What the server saw."""

    accepted: int = 0
    refused: int = 0
    tokens: float = 0.0
    refused_at: list[float] = field(default_factory=list)


class Hosted(BaseProvider):
    """Enforces requests and tokens a minute, answers with lengths that nobody knows beforehand.

    charge: when the answer's tokens count: ``start`` (the server guesses right), ``end`` (when they were made), ``max``
    (``max_tokens`` at the start, never given back).
    """

    def __init__(
        self, *, rpm, tpm, style="bucket", charge="end", headers=True, seed=1, prompt=400, answer=300, now=0.0
    ):
        self.random = random.Random(seed)
        self.requests, self.tokens = STYLES[style](rpm, now), STYLES[style](tpm, now)
        self.charge, self.with_headers = charge, headers
        self.prompt, self.answer = prompt, answer
        self.limits = (rpm, tpm)
        self.told = Told()
        self.until = math.inf  # what comes later is not counted

    name = "hosted:model"
    capabilities = Capabilities(embeddings=True)

    async def _send(self, request, context: Context, dropped) -> Response:
        chance, clock = self.random, context.clock
        await clock.sleep(0.02 + 0.03 * chance.random())  # on its way
        now = clock.now()
        prompt = int(self.prompt * chance.uniform(0.6, 1.4))
        answer = max(1, int(self.answer * chance.lognormvariate(-0.32, 0.8)))  # mean 1
        most = getattr(request, "max_tokens", None)
        answer = answer if most is None else min(answer, most)
        start = prompt + {"start": answer, "end": 0, "max": most or 4096}[self.charge]
        wait = max(self.requests.wait(1, now), self.tokens.wait(max(1, start), now))
        if wait > 0:
            if now < self.until:
                self.told.refused += 1
                self.told.refused_at.append(now)
            raise RateLimited(status=429, retry_after=math.ceil(wait))
        self.requests.take(1, now)
        self.tokens.take(start, now)
        if now < self.until:
            self.told.accepted += 1
            self.told.tokens += start
        headers = {}
        if self.with_headers:
            for name, limit, amount in (
                ("requests", self.requests, self.limits[0]),
                ("tokens", self.tokens, self.limits[1]),
            ):
                headers[f"x-ratelimit-limit-{name}"] = str(amount)
                headers[f"x-ratelimit-remaining-{name}"] = str(int(limit.remaining(now)))
                headers[f"x-ratelimit-reset-{name}"] = f"{limit.reset(now):.3f}s"
        await clock.sleep(0.3 + answer / 60.0)
        if self.charge == "end":
            self.tokens.take(answer, clock.now())
            self.told.tokens += answer if clock.now() < self.until else 0
        usage = Usage(input=prompt, output=answer)
        events = [TextDelta("x"), UsageUpdate(usage), Finish("stop")]
        embedded = [[1.0]] if isinstance(request, EmbedRequest) else None
        return Response(
            provider=self.name, context=context, request=request, events=events, headers=headers, embeddings=embedded
        )


async def callers(stack, request, number, until, make_context) -> None:
    """As many callers, each asking again as soon as it has its answer; a refused one waits as it is told."""

    async def caller() -> None:
        while anyio.current_time() < until:
            context = make_context()
            try:
                response = await stack.send(request, context)
                await response.read()
            except RateLimited as error:
                await context.clock.sleep(error.retry_after or 1.0)

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(caller)

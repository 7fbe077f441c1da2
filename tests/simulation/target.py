"""A simulated deployment: it has latency, capacity and faults, counts what is under way, and bills."""

from dataclasses import dataclass, field
from typing import Any

from llmprod.clock import Clock
from llmprod.context import Context
from llmprod.errors import (
    AuthenticationFailed,
    BadRequest,
    CallError,
    ConnectError,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    ReadError,
    ServerError,
)
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities, committed
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.response import Outcome, Response
from llmprod.usage import Usage
from tests.simulation.plan import TargetPlan
from tests.simulation.worlds import TICK, WorldClock, random_for

INPUT_TOKENS = 10
_FOR_EVER = 1_000.0


def pieces(call: int, tokens: int) -> list[str]:
    """The right answer, whoever gives it."""
    return [f"{call}.{place} " for place in range(tokens)]


def vector(call: int) -> list[float]:
    return [float(call), 1.0]


@dataclass
class Arrival:
    """One attempt as the target saw it."""

    call: int
    stack: int
    at: float
    target: str
    fault: str | None = None
    refused: bool = False
    asked_to_wait: float | None = None
    told_at: float | None = None
    billed: int = 0
    ended: float | None = None


@dataclass
class Ledger:
    """What all targets of a scenario saw."""

    seed: int
    clock: WorldClock
    calls: dict[int, tuple[int, int]]  # number of the call: tokens, stack
    arrivals: list[Arrival] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class SimulatedTarget(BaseProvider):
    """Answers as its plan and the seed say."""

    def __init__(self, plan: TargetPlan, ledger: Ledger) -> None:
        self.plan = plan
        self.ledger = ledger
        self.in_flight = 0
        self.open_sources = 0
        self._asked = 0
        self._capabilities = Capabilities(embeddings=True, prefill=plan.prefill)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def identity(self) -> Any:
        return self.plan.name

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        ledger, clock = self.ledger, self.ledger.clock
        number = _number(request)
        tokens, stack = ledger.calls[number]
        arrival = Arrival(number, stack, clock.now(), self.name)
        ledger.arrivals.append(arrival)
        self.in_flight += 1
        self._asked += 1
        try:
            attempt = _Attempt(self, arrival, tokens, request, self._asked)
            response = await attempt.answer(request, context, dropped)
        except BaseException as error:
            self.in_flight -= 1
            arrival.ended = arrival.told_at = clock.now()
            arrival.asked_to_wait = getattr(error, "retry_after", None)
            raise
        response.on_close(lambda outcome: self._left(arrival, outcome))
        return response

    def _left(self, arrival: Arrival, outcome: Outcome) -> None:
        self.in_flight -= 1
        if arrival.ended is not None:
            self.ledger.wrong.append(f"an attempt of call {arrival.call} at {self.name} ended twice")
        arrival.ended = self.ledger.clock.now()


def _number(request: Request) -> int:
    if isinstance(request, EmbedRequest):
        return int(request.inputs[0])
    assert isinstance(request, GenerateRequest)
    return int(request.messages[0].text)


class _Attempt:
    """What the seed says about one attempt."""

    def __init__(self, target: SimulatedTarget, arrival: Arrival, tokens: int, request: Request, asked: int) -> None:
        self.target, self.arrival = target, arrival
        plan, now = target.plan, arrival.at
        # By the number of the call and not only of the attempt: callers that arrive together do not swap their luck.
        again = sum(1 for other in target.ledger.arrivals if (other.call, other.target) == (arrival.call, target.name))
        self.random = chance = random_for(target.ledger.seed, target.name, arrival.call, again)
        roll = chance.random()
        self.fault: str | None = None
        for fault, share in plan.faults.items():
            roll -= share
            if roll < 0 and self.fault is None:
                self.fault = fault
        for begin, end, fault in plan.outages:
            if begin <= now < end:
                self.fault = fault
        if plan.capacity is not None and target.in_flight > plan.capacity:
            self.fault, arrival.refused = plan.full, True
        arrival.fault = self.fault
        self.ttft = plan.ttft * chance.lognormvariate(0, plan.sigma)
        self.closing = chance.randint(1, 20) * TICK
        self.text = _rest(pieces(arrival.call, tokens), request, target.ledger, arrival)
        pace = 20.0 if self.fault == "crawl" else plan.pace
        self.gaps = [pace * chance.uniform(0.5, 1.5) for _ in self.text]
        self.headers = {"x-ratelimit-remaining-requests": str(chance.randint(0, 60))} if plan.tells_limits else {}
        self.break_at = chance.randint(1, max(1, len(self.text)))
        self.wait: float | None = None
        if plan.retry_after is not None and chance.random() < 0.7:
            self.wait = round(chance.uniform(*plan.retry_after), 3)

    async def answer(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        clock, fault = context.clock, self.fault
        name = self.target.name
        quick = self.random.uniform(0.001, 0.05)
        if fault == "connect":
            await clock.sleep(quick)
            raise ConnectError(provider=name, silent=True)
        if fault in ("rate_limited", "overloaded", "bad_key", "no_credit", "refused"):
            await clock.sleep(quick)
            raise self._refusal(fault)
        self.arrival.billed += INPUT_TOKENS
        if fault == "silent":
            await clock.sleep(_FOR_EVER)
            raise ReadError(provider=name, silent=True)
        if fault == "server_error":
            await clock.sleep(self.ttft)
            raise ServerError(provider=name, status=500)
        if isinstance(request, EmbedRequest):
            await clock.sleep(self.ttft)
            if fault in ("cut", "early_cut", "stall"):
                raise ReadError(provider=name)
            return Response(
                provider=name, context=context, request=request, dropped=dropped,
                headers=self.headers, events=[UsageUpdate(Usage(input=INPUT_TOKENS)), Finish("stop")],
                embeddings=[vector(self.arrival.call)],
            )  # fmt: skip
        source = _Source(self, clock)
        if request.stream:
            return Response(
                provider=name,
                context=context,
                request=request,
                dropped=dropped,
                headers=self.headers,
                source=await committed(source),
            )
        return Response(
            provider=name,
            context=context,
            request=request,
            dropped=dropped,
            headers=self.headers,
            events=await source.whole(),
        )

    def _refusal(self, fault: str) -> CallError:
        name = self.target.name
        if fault == "rate_limited":
            return RateLimited(provider=name, status=429, retry_after=self.wait)
        if fault == "overloaded":
            return Overloaded(provider=name, status=529, retry_after=self.wait)
        if fault == "bad_key":
            return AuthenticationFailed(provider=name, status=401)
        if fault == "no_credit":
            return QuotaExhausted(provider=name, status=402)
        return BadRequest(provider=name, status=400)

    def script(self) -> list[tuple[float, Event | Exception]]:
        """Seconds, and what comes after them."""
        fault, name = self.fault, self.target.name
        steps: list[tuple[float, Event | Exception]] = [(self.ttft, Start(name))]
        cut = ReadError(provider=name, in_stream=True)
        if fault == "early_cut":
            return [*steps, (self.gaps[0] if self.gaps else 0.001, cut)]
        for place, (gap, piece) in enumerate(zip(self.gaps, self.text, strict=True), 1):
            steps.append((gap, TextDelta(piece)))
            if fault in ("cut", "stall") and place == self.break_at:
                return [*steps, (gap if fault == "cut" else _FOR_EVER, cut)]
        if self.target.plan.tells_usage:
            steps.append((TICK, UsageUpdate(Usage(input=INPUT_TOKENS, output=len(self.text)))))
        return [*steps, (TICK, Finish("stop"))]


def _rest(right: list[str], request: Request, ledger: Ledger, arrival: Arrival) -> list[str]:
    """What is still to be said: a prompt that ends with the beginning of the answer is continued."""
    last = request.messages[-1] if isinstance(request, GenerateRequest) else None
    if last is None or last.role != "assistant":
        return right
    said, whole = last.text, "".join(right)
    if not whole.startswith(said.rstrip()):
        ledger.wrong.append(f"call {arrival.call}: {arrival.target} was to continue what is not the right text")
        return right
    left = whole[len(said) :]
    rest = [piece + " " for piece in left.split(" ") if piece]
    return [left[: len(left) - len("".join(rest))] + rest[0], *rest[1:]] if rest else []


class _Source:
    """Plays a script. Closing takes time, as closing a connection does."""

    __slots__ = ("_attempt", "_clock", "_closed", "_place", "_script")

    def __init__(self, attempt: _Attempt, clock: Clock) -> None:
        self._attempt, self._clock = attempt, clock
        self._script = attempt.script()
        self._place = 0
        self._closed = False
        attempt.target.open_sources += 1

    async def __anext__(self) -> Event:
        if self._place >= len(self._script):
            raise StopAsyncIteration
        seconds, step = self._script[self._place]
        self._place += 1
        await self._clock.sleep(seconds)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, TextDelta):
            self._attempt.arrival.billed += 1
        return step

    async def whole(self) -> list[Event]:
        events: list[Event] = []
        try:
            while True:
                events.append(await self.__anext__())
        except StopAsyncIteration:
            return events
        finally:
            self.abandon()

    async def aclose(self) -> None:
        if not self._closed:
            await self._clock.sleep(self._attempt.closing)
            self.abandon()

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._attempt.target.open_sources -= 1

"""Two deployments in virtual time: an hour of calls in a few seconds."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from benchmarks.tail.latency import PROMPT_TOKENS, TOKENS_A_SECOND, Plan
from benchmarks.tail.run import Result, run, stack
from llmprod import BaseProvider, Capabilities, Context, GenerateRequest, Hedge, LoopClock, Response, Usage
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.request import Request


class Deployment(BaseProvider):
    """Answers as the plan says.

    Attributes:
        spent: prompt and answer tokens of the attempts that were cancelled, as the vendor would bill them: a model
            goes on until the connection ends.
    """

    def __init__(self, plan: Plan, place: int) -> None:
        self._plan = plan
        self._place = place
        self.spent = [0.0, 0.0]

    @property
    def name(self) -> str:
        """``deployment:0`` or ``deployment:1``."""
        return f"deployment:{self._place}"

    @property
    def capabilities(self) -> Capabilities:
        """All."""
        return Capabilities()

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        assert isinstance(request, GenerateRequest)
        assert request.seed is not None
        call = self._plan.drawn[request.seed]
        began = context.clock.now()
        first, writing = call.first[self._place], (call.tokens - 1) / TOKENS_A_SECOND
        try:
            await context.clock.sleep(first if request.stream else first + writing)
        except BaseException:
            self.spent[0] += PROMPT_TOKENS
            self.spent[1] += max(0.0, context.clock.now() - began - first) * TOKENS_A_SECOND
            raise
        usage = Usage(input=PROMPT_TOKENS, output=call.tokens)
        events: list[Event] = [Start(self.name), TextDelta("x"), UsageUpdate(usage), Finish("stop")]
        if not request.stream:
            return Response(provider=self.name, context=context, request=request, events=events)
        return Response(provider=self.name, context=context, request=request, source=_Source(events, writing, context))


class _Source:
    """The first token at once, the rest when it is written."""

    def __init__(self, events: list[Event], writing: float, context: Context) -> None:
        self._events = iter(events)
        self._writing = writing
        self._context = context

    async def __anext__(self) -> Event:
        event = next(self._events, None)
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, UsageUpdate):
            await self._context.clock.sleep(self._writing)
        return event

    async def aclose(self) -> None:
        pass


class _Leap(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Does not wait: time leaps to where something is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


def measure(plan: Plan, *, stream: bool, hedged: bool, **options: Any) -> dict[str, Any]:
    """Run the plan in virtual time; ``billed_extra`` is what the vendors would have billed for the losers."""
    clock = LoopClock()
    targets = [Deployment(plan, 0), Deployment(plan, 1)]

    async def main() -> Result:
        provider = stack([*targets], Hedge(clock=clock, **options) if hedged else None, clock)
        return await run(plan, provider, stream=stream, clock=clock)

    with asyncio.Runner(loop_factory=_Loop) as runner:
        result = runner.run(main())
    spent = sum(target.spent[0] for target in targets), sum(target.spent[1] for target in targets)
    return {**result.to_json(), "billed_extra_tokens": sum(spent) / (result.prompt + result.answer)}

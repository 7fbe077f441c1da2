"""A provider whose answers take the time that their prompts say, and what counts calls at once."""

from llmprod import AsyncClient, BaseProvider, Capabilities, Overloaded, Response, Usage
from llmprod.clock import LoopClock
from llmprod.events import Finish, TextDelta, UsageUpdate


class Timed(BaseProvider):
    """Answers ``a <prompt>`` after as many seconds as the prompt says; one with ``fail`` in it fails."""

    name = "timed"
    capabilities = Capabilities()

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.in_flight = 0
        self.most = 0
        self.cancelled = 0

    async def _send(self, request, context, dropped):
        prompt = request.messages[-1].text
        self.asked.append(prompt)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        done = False
        try:
            await context.clock.sleep(float(prompt.split()[0]))
            done = True
        finally:
            self.in_flight -= 1
            self.cancelled += not done
        if "fail" in prompt:
            raise Overloaded(provider=self.name)
        events = [TextDelta(f"a {prompt}"), UsageUpdate(Usage(input=1, output=2)), Finish("stop")]
        return Response(provider=self.name, model="timed-1", context=context, request=request, events=events)


def bare(provider, **options) -> AsyncClient:
    return AsyncClient(provider, wrappers=options.pop("wrappers", []), clock=LoopClock(), **options)

"""What the tests of wrappers share."""

from typing import Any

from llmprod import Context, EmbedRequest, GenerateRequest, LoopClock, Message, Provider, Response

HI = (Message.user("Hi"),)
WHOLE = GenerateRequest(messages=HI)
STREAM = GenerateRequest(messages=HI, stream=True)
EMBED = EmbedRequest(inputs=("Hi",))


class Drawn:
    """Chance that always draws the same."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def context(**options: Any) -> Context:
    """A context in virtual time whose jitter is always half of its bound."""
    return Context.new(**{"clock": LoopClock(), "random": Drawn(), **options})


async def ask(provider: Provider, request: Any = WHOLE, **options: Any) -> Response:
    """Send and read to the end."""
    response = await provider.send(request, context(**options))
    return await response.read()


def states(response: Any) -> list[str]:
    return [entry.state for entry in response.trace.entries]

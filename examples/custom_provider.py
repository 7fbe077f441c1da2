"""A provider and a wrapper of your own, under the same stack as the built-in ones.

    python examples/custom_provider.py

The provider answers from a function, as an in-process model or an internal service would; the wrapper counts the
tokens of each tenant. Both get retries, deadlines, breakers and the trace without knowing of them.
"""

from collections import Counter
from typing import ClassVar

from llmprod import (
    BaseProvider,
    Capabilities,
    Client,
    Context,
    Finish,
    Outcome,
    Overloaded,
    Phase,
    Provider,
    Request,
    Response,
    TextDelta,
    Usage,
    UsageUpdate,
    WrappedProvider,
    Wrapper,
    standard,
)


class Shouting(BaseProvider):
    """Repeats the last message in capitals; has no capacity at every third call."""

    name = "shouting:v1"
    capabilities = Capabilities(parameters=frozenset({"max_tokens"}), images=False, audio=False, files=False)

    def __init__(self) -> None:
        self.calls = 0

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        self.calls += 1
        if self.calls % 3 == 1:
            raise Overloaded(provider="shouting", model="v1", retry_after=0.1)
        words = request.messages[-1].text.upper().split()[: request.max_tokens]
        events = [
            TextDelta(" ".join(words)),
            UsageUpdate(Usage(input=len(words), output=len(words))),
            Finish("stop"),
        ]
        return Response(
            provider=self.name, model="v1", context=context, request=request, events=events, dropped=dropped
        )


class CountTokens(Wrapper):
    """Adds each call's tokens to ``totals``, by the tag ``tenant``."""

    phase: ClassVar[Phase] = Phase.BUDGET

    def __init__(self, totals: Counter[str]) -> None:
        self.totals = totals

    def wrap(self, inner: Provider) -> Provider:
        """Count around ``inner``."""
        return _Counting(inner, self)

    def __repr__(self) -> str:
        return "CountTokens()"


class _Counting(WrappedProvider):
    wrapper: CountTokens

    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)
        tenant = context.tags.get("tenant", "nobody")

        def ended(outcome: Outcome) -> None:  # once, however the answer ends; for a whole one, now
            if outcome.usage is not None:
                self.wrapper.totals[tenant] += outcome.usage.total

        response.on_close(ended)
        return response


totals: Counter[str] = Counter()
with Client(CountTokens(totals)(standard(Shouting()))) as client:
    print(client.describe(), end="\n\n")
    for tenant in ("ants", "bees", "ants"):
        response = client.generate(f"hello from the {tenant}", tags={"tenant": tenant})
        print(f"{response.text}\n{response.trace}\n")
print(dict(totals))

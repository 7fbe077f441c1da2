"""What calls cost: failures, a hedge's loser and a stream that was closed early, by user and by target.

    python examples/costs.py

The two providers are `FaultServer`s: real HTTP servers on 127.0.0.1 that speak OpenAI's API. The first is overloaded at
times and slow at others, so some calls are answered by the second, and some ask both.
"""

import random

from llmprod import Client, CostMeter, Failover, Hedge, OpenAICompatible, Price, PriceBook, Retry
from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer, RequestRecord

STORY = "Once upon a time there was a token that wanted to know what it had cost. " * 3

PRICES = PriceBook(
    {
        "openai-compatible:small": Price(input="0.25", cache_read="0.025", output="2"),
        "openai-compatible:large": Price(input="1.25", cache_read="0.125", output="10"),
    }
)


class Moody:
    """Overloaded one time in five, and slow one time in four."""

    def __init__(self) -> None:
        self.random = random.Random(7)

    def __call__(self, record: RequestRecord) -> Behaviour:
        mood = self.random.random()
        if mood < 0.2:
            return Behaviour(error=ErrorReply(kind="overloaded"))
        return Behaviour(answer=Answer(text=STORY), first_token_delay=0.5 if mood < 0.45 else 0.0)


def main() -> None:
    with FaultServer(Moody()) as moody, FaultServer(Behaviour(answer=Answer(text=STORY))) as steady:
        small = OpenAICompatible("small", base_url=f"{moody.url}/v1")
        large = OpenAICompatible("large", base_url=f"{steady.url}/v1")
        stack = Retry(3)(Hedge(delay=0.1, budget=1.0)(Failover(small, large)))
        with Client(stack, cost_meter=CostMeter(PRICES)) as client:
            calls = [
                client.generate("Tell me a story.", tags={"user": ("ann", "bob")[place % 2]}) for place in range(20)
            ]
            hedged = next(call for call in reversed(calls) if len(call.trace.decisions) > 1)
            print(f"a call whose first target was slow, which cost {hedged.trace.cost}:\n{hedged.trace}\n")

            with client.stream("Tell me a story.", tags={"user": "cid"}) as stream:
                next(stream.text_stream())  # one piece is enough
            print(f"a stream that was closed after its first piece: {stream.response.trace.cost}\n")

            print("by user")
            print(client.costs.by("user"))
            print("\nby target, losers of races and all")
            print(client.costs.by("target"))


if __name__ == "__main__":
    main()

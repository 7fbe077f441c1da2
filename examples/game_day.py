"""A game day: the primary model is broken on purpose, for one tenant, and the trace shows what the stack makes of it.

    python examples/game_day.py                                   both models are simulated
    python examples/game_day.py openai:gpt-5-mini google:gemini-2.5-flash

`Chaos` stands innermost, so retries, failover, breakers and timeouts meet its faults as they would meet real ones.
"""

import sys
from collections import Counter

from llmprod import AttemptTimeout, CallError, Chaos, ChaosInjected, Client, StreamInterrupted, standard
from llmprod.providers.registry import from_string

primary, fallback = [*sys.argv[1:], "simulated:instant/primary", "simulated:instant/fallback"][:2]

chaos = Chaos(
    fault_rate=0.25,  # rate limits, overload, errors, broken connections
    latency=(0.1, 0.8), latency_rate=0.3,  # seconds: median and sigma of a lognormal distribution
    cut=(2, 6), cut_rate=0.1,  # the connection breaks after so many pieces of text
    seed=11,
    enabled=lambda request, context: context.tags.get("tenant") == "game-day",
)  # fmt: skip

stack = standard(
    chaos(from_string(primary)), [from_string(fallback)], timeouts=AttemptTimeout(first_token=2, total=5), deadline=20
)

with Client(stack) as client:
    print(client.describe(), end="\n\n")

    quiet = client.generate("Hello?", tags={"tenant": "somebody else"})
    assert not any(isinstance(decision, ChaosInjected) for decision in quiet.trace.decisions)

    tally: Counter[str] = Counter()
    for number in range(25):
        try:
            with client.stream("Tell me about tides.", tags={"tenant": "game-day"}) as response:
                response.read()
            outcome, trace = f"answered by {response.provider}", response.trace
        except StreamInterrupted as error:
            outcome, trace = "interrupted; the caller has the first part", error.trace
        except CallError as error:
            outcome, trace = f"failed: {type(error).__name__}", error.trace
        tally[outcome] += 1
        injected = [decision for decision in trace.decisions if isinstance(decision, ChaosInjected)]
        tally.update(f"injected: {decision.kind}" for decision in injected)
        if len(injected) > 1:
            print(f"call {number}: {outcome}\n{trace}\n")

    chaos.enabled = False
    assert client.generate("Over?", tags={"tenant": "game-day"}).complete
    for line, count in sorted(tally.items()):
        print(f"{count:4}  {line}")

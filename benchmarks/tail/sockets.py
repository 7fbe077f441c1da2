"""Two fault servers on loopback for each contestant, in real time; the contestants run side by side."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import anyio

from benchmarks.tail.latency import PROMPT_TOKENS, Plan
from benchmarks.tail.run import Result, run, stack
from llmprod import Hedge, OpenAI
from llmprod.testing.fault_server import Answer, Behaviour, FaultServer, RequestRecord, TokenCounts, words

_PIECES = 8
"""Events of a streamed answer. How long it is does not matter here: the first token is measured."""


def _server(plan: Plan, place: int, *, stream: bool) -> FaultServer:
    def behave(record: RequestRecord) -> Behaviour:
        number: Any = record.body["seed"]
        call = plan.drawn[number]
        # Whole answers take as long as their tokens, at a speed to match the scale of the plan's latencies.
        writing = 0.0 if stream else call.tokens / plan.tokens * plan.median
        return Behaviour(
            answer=Answer(text=words(_PIECES), usage=TokenCounts(input=PROMPT_TOKENS, output=call.tokens)),
            first_token_delay=round(call.first[place] + writing, 3),
        )

    return FaultServer(behave)


async def _measure(plan: Plan, *, stream: bool, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    results: dict[str, Result] = {}
    with ExitStack() as servers:

        async def one(name: str, hedge: Hedge | None) -> None:
            urls = [servers.enter_context(_server(plan, place, stream=stream)).url for place in (0, 1)]
            provider = stack(
                [OpenAI(f"{at}", base_url=f"{url}/v1", api_key="none") for at, url in enumerate(urls)], hedge
            )
            results[name] = await run(plan, provider, stream=stream)
            await provider.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(one, "without", None)
            group.start_soon(one, "with", Hedge(**options))
    return {name: results[name].to_json() for name in ("without", "with")}


def measure(plan: Plan, *, stream: bool, **options: Any) -> dict[str, dict[str, Any]]:
    """Run the plan with and without hedging at once, so that both see the same machine."""
    return anyio.run(lambda: _measure(plan, stream=stream, options=options))

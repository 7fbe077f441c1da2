"""Hedged calls over real sockets: the winner's stream outlives the task that opened it, the loser's connection ends."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from llmprod import Context, Failover, GenerateRequest, HTTPOptions, Message, OpenAI, Response
from llmprod.request import EmbedRequest
from llmprod.testing.fault_server import Answer, Behaviour, FaultServer, TokenCounts, words
from llmprod.wrappers.hedge import Hedge

ENGINES = [("asyncio", "httpx"), ("trio", "httpx"), ("asyncio", "pyreqwest")]
PROMPT = (Message.user("Go on."),)
STREAM = GenerateRequest(messages=PROMPT, stream=True)
WHOLE = GenerateRequest(messages=PROMPT)
TOLD = TokenCounts(input=9, output=20)


def answering(text: str, first: float, gap: float = 0.01) -> Behaviour:
    return Behaviour(answer=Answer(text=words(20, text), usage=TOLD), first_token_delay=first, token_delay=gap)


def let_go(server: FaultServer) -> bool:
    end = time.monotonic() + 60
    while server.in_flight and time.monotonic() < end:
        time.sleep(0.01)
    return not server.in_flight


def race(backend: str, engine: str, slow: FaultServer, quick: FaultServer, request: Any, calls: int = 1) -> list[Any]:
    """Ask ``slow``, and ``quick`` after a tenth of a second; return the responses, read to their ends."""
    responses: list[Response] = []

    async def main() -> None:
        http = HTTPOptions(engine=engine)
        targets = [
            OpenAI(f"{n}", base_url=f"{s.url}/v1", api_key="none", http=http) for n, s in enumerate((slow, quick))
        ]
        provider = Hedge(delay=0.1, budget=1.0)(Failover(*targets))
        for _ in range(calls):
            with anyio.fail_after(120):
                response = await provider.send(request, Context.new(seconds=100))
                assert [entry.state for entry in response.trace.attempts].count("running") == int(request.stream)
                await response.read()
            responses.append(response)
        await provider.aclose()

    anyio.run(main, backend=backend)
    return responses


@pytest.mark.parametrize(("backend", "engine"), ENGINES)
def test_the_hedges_stream_is_read_after_its_task_has_ended(backend: str, engine: str) -> None:
    with FaultServer(answering("slow", 90)) as slow, FaultServer(answering("quick", 0.05)) as quick:
        for response in race(backend, engine, slow, quick, STREAM, calls=3):
            assert response.text == words(20, "quick")
            assert response.complete
            assert response.usage is not None
            assert [entry.reason for entry in response.trace.attempts] == ["lost to the hedge", None]
            assert response.timing.ttft < 60
        assert let_go(slow)
        assert [record.outcome for record in slow.requests] == ["client_gone"] * 3
        assert [record.outcome for record in quick.requests] == ["completed"] * 3


@pytest.mark.parametrize(("backend", "engine"), ENGINES)
def test_the_primarys_stream_goes_on_when_the_hedge_is_cancelled(backend: str, engine: str) -> None:
    with FaultServer(answering("slow", 0.5)) as slow, FaultServer(answering("quick", 90)) as quick:
        for response in race(backend, engine, slow, quick, STREAM, calls=2):
            assert response.text == words(20, "slow")
            assert [entry.reason for entry in response.trace.attempts] == [None, "lost to the primary"]
        assert let_go(quick)
        assert [record.outcome for record in slow.requests] == ["completed"] * 2
        assert [record.outcome for record in quick.requests] == ["client_gone"] * 2


@pytest.mark.parametrize(("backend", "engine"), ENGINES)
def test_whole_answers(backend: str, engine: str) -> None:
    with FaultServer(answering("slow", 90)) as slow, FaultServer(answering("quick", 0.05, 0)) as quick:
        for response in race(backend, engine, slow, quick, WHOLE, calls=2):
            assert response.text == words(20, "quick")
            lost = response.trace.attempts[0].usage
            assert (lost.input, lost.output, lost.estimated) == (9, 20, True)
        assert engine == "pyreqwest" or let_go(slow)  # pyreqwest waits for the headers before it lets go


@pytest.mark.parametrize(("backend", "engine"), ENGINES)
def test_embeddings(backend: str, engine: str) -> None:
    with FaultServer(Behaviour(first_token_delay=90)) as slow, FaultServer() as quick:
        (response,) = race(backend, engine, slow, quick, EmbedRequest(inputs=("Hi",)))
        assert len(response.embeddings) == 1
        assert response.provider == "openai:1"
        assert engine == "pyreqwest" or let_go(slow)

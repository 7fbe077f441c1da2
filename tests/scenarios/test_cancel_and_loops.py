"""A caller that walks away, and a client that outlives its event loop, over real sockets."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import pytest

from llmprod import AsyncClient, Client, OpenAI, Outcome, StreamInterrupted, TextDelta
from llmprod.testing.fault_server import Answer, Behaviour, Cut, FaultServer, TokenCounts, words

SLOW = Behaviour(answer=Answer(text=words(40), usage=TokenCounts(input=9, output=40)), token_delay=0.05)


def client(server: FaultServer) -> AsyncClient:
    return AsyncClient(OpenAI("fault-model", base_url=f"{server.url}/v1", api_key="none"))


def _let_go(server: FaultServer) -> bool:
    end = time.monotonic() + 60
    while (server.in_flight or server.open_connections) and time.monotonic() < end:
        time.sleep(0.01)
    return not server.in_flight and not server.open_connections


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_stream_lets_go_of_its_connection_and_keeps_what_arrived(backend: str) -> None:
    outcomes: list[Outcome] = []
    held = []

    async def main(server: FaultServer) -> None:
        ours = client(server)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                response = await ours.stream("Go on.")
                held.append(response)
                response.on_close(outcomes.append)
                async for _ in response:
                    if len(response.text.split()) >= 4:
                        group.cancel_scope.cancel()

            group.start_soon(read)
        await ours.aclose()

    with FaultServer(SLOW) as server:
        anyio.run(main, server, backend=backend)
        assert _let_go(server)
        assert [record.outcome for record in server.requests] == ["client_gone"]
    (response,) = held
    assert [outcome.kind for outcome in outcomes] == ["cancelled"]
    assert response.text.split()[:4] == words(40).split()[:4]
    assert [attempt.state for attempt in response.trace.attempts] == ["cancelled"]


def test_usage_known_so_far_stays_with_a_cut_stream() -> None:
    """Anthropic tells the prompt's tokens first; a cut answer keeps them."""
    from llmprod import Anthropic

    cut = Behaviour(answer=SLOW.answer, cut=Cut(after=10))
    with FaultServer(cut) as server, Client(Anthropic("fault-model", base_url=server.url, api_key="none")) as ours:
        stream = ours.stream("Go on.")
        with pytest.raises(StreamInterrupted) as caught:
            stream.read()
    assert caught.value.partial is not None
    assert len(caught.value.partial.text.split()) == 10
    assert caught.value.usage is not None
    assert caught.value.usage.total_input == 9


def test_closing_early_lets_go_of_the_connection() -> None:
    with FaultServer(SLOW) as server, Client(OpenAI("m", base_url=f"{server.url}/v1", api_key="none")) as ours:
        with ours.stream("Go on.") as stream:
            first = next(event for event in stream if isinstance(event, TextDelta))
        assert first.text
        assert not stream.complete
        assert _let_go(server)


def test_event_loops_one_after_the_other() -> None:
    with FaultServer() as server:
        ours = client(server)

        async def ask() -> str:
            return (await ours.generate("Hi.")).text

        async def last() -> str:
            async with ours:
                return await ask()

        answers = [asyncio.run(ask()), asyncio.run(ask()), asyncio.run(last())]
        assert len(set(answers)) == 1


def test_event_loops_side_by_side() -> None:
    with FaultServer(Behaviour(token_delay=0.002)) as server:
        ours = client(server)
        answers: list[str] = []

        async def many() -> None:
            for _ in range(5):
                async with ours.stream("Hi.") as stream:
                    await stream.read()
                answers.append(stream.text)
            await ours.provider.aclose()  # this loop's connections alone

        threads = [
            threading.Thread(target=anyio.run, args=(many,), kwargs={"backend": name})
            for name in ("asyncio", "trio", "asyncio")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 15
        assert len(set(answers)) == 1


def test_a_client_shared_by_threads() -> None:
    with FaultServer() as server, Client(OpenAI("m", base_url=f"{server.url}/v1", api_key="none")) as ours:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(ours.generate("Hi.").text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8
        assert len(set(answers)) == 1

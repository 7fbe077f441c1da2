"""Tests of an application, as you would write them: the plugin's fixtures in place of models, networks and waits.

    pytest examples/test_my_app.py
    python examples/test_my_app.py

The application is `summarize` and `Chat`, below; in yours they would be imported.
"""

import subprocess
import sys

import anyio
import pytest

from llmprod import AsyncClient, Client, Overloaded, Provider, RateLimited, Retry, StreamInterrupted
from llmprod.testing import Toxics, assert_stack, scenario, scripted_pair

# ---- the application -------------------------------------------------------------------------------------------------


def summarize(client: Client, text: str) -> str:
    """Say it shorter."""
    return client.generate(f"Summarize: {text}", max_tokens=200).text.strip()


class Chat:
    """Shows an answer piece by piece, and says so when it broke off."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.screen = ""

    async def ask(self, question: str) -> None:
        """Ask, and show the answer as it comes."""
        try:
            async with self.client.stream(question) as response:
                async for piece in response.text_stream():
                    self.screen += piece
        except StreamInterrupted:
            self.screen += " […]"


# ---- its tests -------------------------------------------------------------------------------------------------------


def test_an_answer_after_trouble(scripted, no_waits):
    model = scripted(Overloaded(), RateLimited(retry_after=30), " Short. ")
    with Client(model, clock=no_waits) as client:
        assert summarize(client, "long") == "Short."
    assert no_waits.skipped > 30  # nobody waited
    assert model.requests[0].max_tokens == 200


def test_the_stack_is_the_one_that_was_agreed_on(scripted):
    with Client(scripted(), fallbacks=[scripted(name="backup")]) as client:
        assert_stack(client).order("Deadline", "Retry", "Failover").contains(Retry, attempts=3).sound()
        assert_stack(client).lacks("Chaos").targets("scripted", "backup")


@pytest.mark.anyio
async def test_the_chat_waits_as_long_as_it_is_told(virtual_time, scripted):
    async with AsyncClient(scripted(RateLimited(retry_after=50), "Hello."), clock=virtual_time) as client:
        chat, before = Chat(client), virtual_time.now()
        await chat.ask("Hi")
    assert chat.screen == "Hello."
    assert 50 <= virtual_time.now() - before <= 55.1


@pytest.mark.anyio
async def test_closing_the_chat_stops_the_model():
    provider: Provider
    provider, model = scripted_pair()
    async with AsyncClient(provider) as client, anyio.create_task_group() as tasks:
        chat = Chat(client)
        tasks.start_soon(chat.ask, "Hi")
        call = await model.next_call()
        call.chunk("Hel")
        await anyio.wait_all_tasks_blocked()
        assert chat.screen == "Hel"
        tasks.cancel_scope.cancel()
    assert call.cancelled


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["reset-in-the-middle", "clean-cut", "error-in-the-middle"])
async def test_a_broken_answer_is_shown_as_broken(fault_server, name):
    fault_server.behave(scenario(name).primary)
    async with AsyncClient(f"openai:m@{fault_server.url}/v1") as client:
        chat = Chat(client)
        await chat.ask("Hi")
    assert chat.screen.endswith(" […]")
    assert len(chat.screen) > 100


def test_a_slow_network_is_no_error(fault_server, fault_proxy):
    fault_proxy.downstream = Toxics(latency=0.05, jitter=0.02, slice=20)
    with Client(f"openai:m@{fault_proxy.url}/v1") as client:
        assert summarize(client, "long")
    assert fault_server.request_count == 1


def test_nothing_real_is_asked(no_network, scripted):
    with Client(scripted("Short.")) as client:
        summarize(client, "long")
    assert no_network.attempts == []


if __name__ == "__main__":
    # The plugin by its module's name: so it is there even where the package was not installed anew.
    plugin = ["-p", "no:llmprod", "-p", "llmprod.testing.plugin"]
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, __file__]))

"""The synchronous client where synchronous code lives: scripts, threads, notebooks, forks, interrupts, exits."""

import asyncio
import contextvars
import gc
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from llmprod import BaseProvider, Capabilities, Client, ClientClosed, Response, Simulated, Static
from llmprod._background import background
from llmprod.events import Finish, TextDelta

SPEAKER = contextvars.ContextVar("SPEAKER", default="nobody")


class Echo(BaseProvider):
    """Says which context and thread it runs in."""

    name = "echo:context"
    capabilities = Capabilities()

    async def _send(self, request, context, dropped):
        text = f"{SPEAKER.get()} {threading.current_thread().name}"
        return Response(provider=self.name, context=context, request=request, events=[TextDelta(text), Finish("stop")])


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_beside_a_running_event_loop_as_in_a_notebook():
    with Client(Static("Hello")) as client:

        async def cell() -> str:
            with client.stream("Hi") as stream:
                return client.generate("Hi").text + "".join(stream.text_stream())

        assert asyncio.run(cell()) == "HelloHello"


def test_context_variables_follow_the_call():
    token = SPEAKER.set("Ada")
    try:
        with Client(Echo()) as client:
            assert client.generate("Hi").text == "Ada llmprod"
    finally:
        SPEAKER.reset(token)


def test_threads_share_a_client_and_its_loop():
    with Client(Simulated("instant")) as client:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(client.generate("Hi").text)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 16
    assert sum(thread.name == "llmprod" for thread in threading.enumerate()) == 1


def test_a_closed_client_says_so():
    client = Client(Static("Hello"))
    client.generate("Hi")
    client.close()
    client.close()
    with pytest.raises(ClientClosed, match="closed"):
        client.generate("Hi")


def test_on_its_own_loop_it_refuses_rather_than_wait_for_itself():
    with Client(Static("Hello")) as client:

        async def inside() -> None:
            client.generate("Hi")

        with pytest.raises(RuntimeError, match="AsyncClient"):
            background().run(inside)


def test_after_a_fork_the_child_is_told_and_may_make_its_own():
    done = run("""
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
        from llmprod import Client, ForkedProcess, Static
        client = Client(Static("Hello"))
        client.generate("Hi")
        child = os.fork()
        if child == 0:
            try:
                client.generate("Hi")
            except ForkedProcess as error:
                assert "before fork" in str(error)
                os._exit(0 if Client(Static("Mine")).generate("Hi").text == "Mine" else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.generate("Hi").text == "Hello"
    """)
    assert done.returncode == 0, done.stderr


def test_exit_with_a_client_left_open_is_silent():
    done = run("""
        from llmprod import Client
        client = Client("simulated:instant")
        print(client.generate("Hi").complete)
    """, "-X", "dev", "-W", "error")  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "True", "")


def test_exit_with_an_open_stream_does_not_hang():
    done = run("""
        from llmprod import Client
        client = Client("simulated:small")
        stream = client.stream("Say something long.", max_tokens=400)
        print(next(iter(stream)) is not None)
    """)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "True", "")


def test_an_interrupt_cancels_the_call():
    done = run("""
        import os, signal, threading
        from llmprod import Client, Simulated
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
        slow = Simulated("small", ttft=60, ttft_spread=0)
        client = Client(slow, wrappers=[])
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            client.generate("Hi")
        except KeyboardInterrupt:
            print("interrupted", client.provider.name)
        client.close()
    """)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted simulated:small"), done.stderr


class Held(Echo):
    """An engine: stopped when it is closed and nobody holds it."""

    def __init__(self):
        self.holders = set()
        self.stopped = 0

    def held_by(self, holder):
        self.holders.add(id(holder))

    def released_by(self, holder):
        self.holders.discard(id(holder))

    async def aclose(self):
        self.stopped += not self.holders


def test_an_engine_is_held_by_each_client_and_stopped_by_the_last_even_one_that_never_called():
    engine = Held()
    first, second = Client(engine), Client(engine)
    assert len(engine.holders) == 2
    first.generate("Hi")
    first.close()
    assert (len(engine.holders), engine.stopped) == (1, 0)
    second.close()
    assert (len(engine.holders), engine.stopped) == (0, 1)


class Endless(BaseProvider):
    """Speaks until it is closed."""

    name = "endless"
    capabilities = Capabilities()

    async def _send(self, request, context, dropped):
        async def words():
            while True:
                yield TextDelta("on ")

        return Response(provider=self.name, context=context, request=request, source=words())


def until_closed(response: Response) -> None:
    until = time.monotonic() + 60
    while not response.closed:
        assert time.monotonic() < until, "never closed"
        time.sleep(0.001)


def test_a_stream_dropped_by_a_collection_on_the_loops_own_thread_is_closed():
    with Client(Endless()) as client:
        held = [client.stream("Hi").__enter__()]
        response = held[0].response

        async def drop() -> None:
            held.clear()
            gc.collect()

        background().run(drop)
        until_closed(response)


def test_dropping_a_stream_waits_for_nothing():
    """A collection may come while its thread holds a lock for which the loop's thread waits."""
    lock, waiting = threading.Lock(), threading.Event()

    async def wait() -> None:
        waiting.set()
        with lock:
            pass

    with Client(Endless()) as client:
        held = [client.stream("Hi").__enter__()]
        response = held[0].response
        with lock:
            blocked = threading.Thread(target=lambda: background().run(wait))
            blocked.start()
            assert waiting.wait(60)

            def drop() -> None:
                held.clear()
                gc.collect()

            dropping = threading.Thread(target=drop)
            dropping.start()
            dropping.join(60)
            stuck = dropping.is_alive()
        blocked.join(60)
        dropping.join(60)
        assert not stuck
        until_closed(response)

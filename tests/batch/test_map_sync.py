"""Client.map, where nothing awaits: loops, threads, interrupts, files."""

import itertools
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import pytest

from llmprod import Client, EmbedRequest, InvalidArgument, Overloaded, Simulated
from llmprod.testing import HANG, Scripted
from tests.batch.helpers import Timed


@pytest.fixture
def provider():
    return Timed()


@pytest.fixture
def client(provider):
    with Client(provider, wrappers=[]) as client:
        yield client


def gone(provider) -> bool:
    """Calls that were cancelled without waiting go soon."""
    until = time.monotonic() + 60
    while provider.in_flight and time.monotonic() < until:
        time.sleep(0.001)
    return provider.in_flight == 0


def test_order_and_fields(client):
    results = list(client.map(["0.03", "0.01", "0.02 fail", "0"]))
    assert [result.text for result in results] == ["a 0.03", "a 0.01", "", "a 0"]
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert isinstance(results[2].error, Overloaded)


def test_as_completed(client):
    assert [result.text for result in client.map(["0.3", "0.01", "0.15", "0"], ordered=False)][-1] == "a 0.3"


def test_five_thousand_with_a_bounded_number_at_once(client, provider):
    seen = [result.text for result in client.map((f"0 {number}" for number in range(5_000)), concurrency=50)]
    assert seen == [f"a 0 {number}" for number in range(5_000)]
    assert provider.most <= 50


def test_the_input_is_taken_in_this_thread_as_there_is_room(client, provider):
    threads = set()
    taken = itertools.count()

    def endless():
        while True:
            threads.add(threading.current_thread())
            next(taken)
            yield "0"

    results = client.map(endless(), concurrency=5)
    for _ in range(200):
        assert next(results).ok
    assert threads == {threading.current_thread()}
    assert next(taken) <= 200 + 5 * 5
    results.close()
    assert list(results) == []
    assert provider.in_flight == 0


def test_results_come_while_the_input_goes_on(client):
    taken = []
    came = threading.Event()

    def slow():
        for number in range(1000):
            if not came.is_set():
                time.sleep(0.02)
            taken.append(number)
            yield "0"

    results = client.map(slow())
    next(results)
    assert len(taken) < 1000
    came.set()
    assert len(list(results)) == 999


def test_a_generator_is_closed_with_it(client):
    log = []

    def source():
        try:
            yield from itertools.repeat("0")
        finally:
            log.append("closed")

    with client.map(source()) as results:
        next(results)
    assert log == ["closed"]


def test_an_async_input_runs_on_the_background_loop(client):
    async def source():
        for number in range(10):
            await anyio.sleep(0.001)
            assert threading.current_thread().name == "llmprod"
            yield f"0 {number}"

    assert [result.text for result in client.map(source())] == [f"a 0 {number}" for number in range(10)]


def test_an_input_that_fails_is_told_after_what_came_before_it(client):
    def source():
        yield from ("0.01", "0")
        raise OSError("the file is gone")

    results = client.map(source())
    assert [next(results).text, next(results).text] == ["a 0.01", "a 0"]
    with pytest.raises(OSError, match="gone"):
        next(results)
    assert list(results) == []


def test_leaving_the_loop_cancels(client, provider):
    for result in client.map(itertools.chain(["0"], itertools.repeat("60")), concurrency=5):
        assert result.ok
        break
    assert gone(provider)
    with client.map(itertools.chain(["0"], itertools.repeat("60")), concurrency=5) as results:
        next(results)
    assert provider.in_flight == 0


def test_raise_at_the_first_failure(client, provider):
    results = client.map(itertools.chain(["0.01", "0 fail"], itertools.repeat("60")), concurrency=4, on_error="raise")
    assert next(results).text == "a 0.01"
    with pytest.raises(Overloaded) as raised:
        next(results)
    assert raised.value.__notes__ == ["in item 1 of client.map"]
    assert provider.in_flight == 0
    assert list(results) == []


def test_threads_share_the_results(client):
    results = client.map((f"0 {number}" for number in range(500)), concurrency=8)
    seen: list[int] = []

    def read():
        seen.extend(result.index for result in results)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(500))


def test_closed_by_another_thread_the_loop_ends():
    provider = Scripted(then=HANG)
    with Client(provider, wrappers=[]) as client:
        results = client.map(["x"] * 10, concurrency=3)
        closer = threading.Timer(0.05, results.close)
        closer.start()
        assert list(results) == []
        closer.join()
        assert provider.in_flight == 0


def test_a_checkpoint(tmp_path):
    path = tmp_path / "out.jsonl"
    items = [EmbedRequest(inputs=(f"text {number}",), dimensions=4) for number in range(20)]
    with Client(Simulated("instant")) as client:
        before = list(client.map(items, checkpoint=path))
        after = list(client.map(items, checkpoint=str(path)))
        assert all(result.restored for result in after)
        assert [result.embeddings for result in after] == [result.embeddings for result in before]
        with client.map(items, checkpoint=path) as one:
            next(one)
        path.write_text("something else\n")
        with pytest.raises(InvalidArgument, match="something else"):
            list(client.map(items, checkpoint=path))


def test_wrong_arguments_are_told_at_once(client):
    for arguments, field in (({"concurrency": 0}, "concurrency"), ({"max_token": 1}, "max_token")):
        with pytest.raises(InvalidArgument) as raised:
            client.map(["x"], **arguments)
        assert raised.value.field == field
    with pytest.raises(InvalidArgument, match="requests"):
        client.map("x")


def test_progress_can_be_asked_for(client):
    results = client.map(["0"] * 10)
    assert results.progress.done == 0
    list(results)
    assert (results.progress.done, results.progress.total, results.progress.eta) == (10, 10, 0)
    assert repr(results) == "<SyncBatch 10 of 10 done, 0 failed>"


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_an_interrupt_cancels_what_is_in_flight():
    done = run("""
        import os, signal, threading, time
        from llmprod import Client, Simulated
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
        slow = Simulated("small", ttft=60, ttft_spread=0)
        def interrupt():
            while not slow.in_flight:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        with Client(slow, wrappers=[]) as client:
            results = client.map(["Hi"] * 100)
            try:
                threading.Thread(target=interrupt).start()
                next(results)
            except KeyboardInterrupt:
                print("interrupted", slow.in_flight, list(results))
    """)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "interrupted 0 []", "")


def test_exit_with_one_open_is_silent():
    done = run("""
        from llmprod import Client, Simulated
        client = Client(Simulated("small", ttft=60, ttft_spread=0), wrappers=[])
        results = client.map(["Hi"] * 100)
        fast = Client("simulated:instant").map(iter(lambda: "Hi", None))
        print(next(fast).ok)
    """)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")

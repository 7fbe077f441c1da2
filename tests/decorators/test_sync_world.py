"""Decorated synchronous code needs no event loop, and lives with threads, running loops, context and interrupts."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from llmprod import (
    AttemptTimedOut,
    AttemptTimeout,
    Deadline,
    DeadlineExceeded,
    InvalidArgument,
    StreamInterrupted,
    capture,
    resilient,
)
from tests.decorators.scripted import Scripted, Wait, retry

RESET = ConnectionResetError()
SOURCE = Path(__file__).resolve().parents[2] / "src"


def run(code: str, **options):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def eventually(check, seconds=60.0):
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    assert check()


def test_two_threads_at_once():
    both = threading.Barrier(2, timeout=60)

    @resilient(retry())
    def ask(question):
        both.wait()  # passes only if the other call is inside at the same time
        return question.upper()

    answers = {}
    threads = [threading.Thread(target=lambda q=q: answers.setdefault(q, ask(q))) for q in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {"a": "A", "b": "B"}


def test_more_calls_at_once_than_a_thread_pool_usually_has():
    count = 60
    all_in = threading.Barrier(count, timeout=60)
    ask = resilient(retry())(lambda: all_in.wait() >= 0)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * count


def test_inside_a_running_loop_as_in_a_notebook():
    ask = resilient(retry())(Scripted("sync", RESET, "a").function)
    stream = resilient(retry())(Scripted("items", RESET, ("a", "b")).function)

    async def cell():
        return ask(), list(stream())

    assert asyncio.run(cell()) == ("a", ["a", "b"])


def test_context_variables_are_seen_inside():
    user = contextvars.ContextVar("user", default="nobody")
    ask = resilient(retry())(lambda: user.get())

    @resilient(retry())
    def stream():
        yield user.get()
        yield user.get()

    user.set("somebody")
    assert ask() == "somebody"
    assert list(stream()) == ["somebody", "somebody"]


def test_a_call_within_a_call():
    inner = resilient(retry())(Scripted("sync", RESET, "a").function)
    outer = resilient(retry(), AttemptTimeout(total=5))(lambda: inner() + "!")
    assert outer() == "a!"


def test_what_a_thread_that_was_left_behind_brings_is_closed():
    opened, over = [], threading.Event()

    class Stream:
        closed = False

        def __iter__(self):
            return self

        def __next__(self):
            return "x"

        def close(self):
            self.closed = True

    @resilient(AttemptTimeout(total=0.05))
    def ask():
        over.wait(60)
        opened.append(Stream())
        return opened[-1]

    with pytest.raises(AttemptTimedOut):
        ask()
    assert opened == []
    over.set()
    eventually(lambda: opened and opened[0].closed)


def test_a_generator_left_behind_is_closed_when_it_comes_back():
    closed, over = [], threading.Event()

    @resilient(AttemptTimeout(idle=0.3))
    def ask():
        try:
            yield "a"
            over.wait(60)
            yield "b"
        finally:
            closed.append(True)

    stream = ask()
    assert next(stream) == "a"
    with pytest.raises(StreamInterrupted) as caught:
        next(stream)
    assert caught.value.partial.text == "a"
    assert closed == []
    over.set()
    eventually(lambda: closed == [True])


@pytest.mark.parametrize("how", ["close", "with", "throw", "drop"])
def test_a_generator_that_is_not_read_to_its_end_is_closed(how):
    ask = Scripted("items", ("a", "b", "c"))
    decorated = resilient(retry())(ask.function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if how == "drop":
            for _ in decorated():
                break
            gc.collect()
        elif how == "with":
            with decorated() as stream:
                next(stream)
        else:
            stream = decorated()
            next(stream)
            if how == "close":
                stream.close()
                assert list(stream) == []
            else:
                with pytest.raises(KeyError):
                    stream.throw(KeyError("x"))
    eventually(lambda: ask.closed == 1)


def test_a_generator_starts_when_it_is_first_asked():
    ask = Scripted("items", ("a",))
    stream = resilient(retry())(ask.function)()
    assert ask.calls == []
    assert repr(stream) == "<SyncStream: not begun>"
    stream.close()
    assert list(stream) == []
    assert ask.calls == []


def test_a_generator_takes_nothing_in():
    stream = resilient(retry())(Scripted("items", ("a", "b")).function)()
    assert stream.send(None) == "a"
    with pytest.raises(TypeError):
        stream.send(1)
    stream.close()


def test_a_wait_between_attempts_ends_with_the_deadline():
    ask = Scripted("sync", (Wait(0.02), RESET))
    started = time.monotonic()
    with pytest.raises((ConnectionResetError, DeadlineExceeded)):
        resilient(Deadline(0.5), retry(100000))(ask.function)()
    assert time.monotonic() - started < 60


def test_an_interrupt_ends_the_call():
    process = run(
        """
        import signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
        from llmprod import Retry, resilient

        @resilient(Retry(3))
        def ask():
            print("inside", flush=True)
            time.sleep(600)

        try:
            ask()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)


def test_the_process_ends_though_a_thread_hangs():
    process = run(
        """
        import threading, time
        from llmprod import AttemptTimedOut, AttemptTimeout, resilient

        @resilient(AttemptTimeout(total=0.1))
        def ask():
            time.sleep(600)

        try:
            ask()
        except AttemptTimedOut:
            print("late")
        """
    )
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("late\n", "", 0)


def test_decorating_starts_nothing():
    process = run(
        """
        import threading
        from llmprod import resilient

        @resilient
        def ask():
            return threading.active_count()

        assert threading.active_count() == 1
        print(ask() - 3)  # this thread, the loop's, the worker
        """
    )
    assert process.communicate(timeout=60) == ("0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork_the_function_works_again():
    ask = resilient(retry())(Scripted("sync", "a").function)
    assert ask() == "a"
    child = os.fork()
    if child == 0:
        os._exit(0 if ask() == "a" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_function_that_returns_something_to_be_awaited_is_refused():
    async def coroutine():
        return "a"

    async def stream():
        yield "a"

    for function in (lambda: coroutine(), lambda: stream()):
        with pytest.raises(InvalidArgument, match="to be awaited; allowed: a value; write it as `async def`"):
            resilient(retry())(function)()


@pytest.mark.parametrize("value", [None, 0, [], ["a"], {"a": 1}, b"bytes", object(), ("a", "b"), MagicMock()])
def test_values_of_any_type_pass_unchanged(value):
    with capture() as calls:
        assert resilient(retry())(lambda: value)() is value
    assert calls[-1].response.raw is value
    assert calls[-1].response.finish_reason == "unknown"


def test_files_pass_unchanged(tmp_path):
    (tmp_path / "f").write_text("x")
    with resilient(retry())(lambda: (tmp_path / "f").open())() as file:
        assert file.read() == "x"


def test_a_stop_iteration_does_not_hang():
    with pytest.raises(RuntimeError):
        resilient(retry())(lambda: next(iter([])))()


def test_records_are_kept_apart():
    ask = resilient(retry())(Scripted("sync", "a").function)
    with capture() as outer:
        ask()
        with capture() as inner:
            ask()
        ask()
    ask()
    assert (len(outer), len(inner)) == (3, 1)

    seen = {}

    def in_thread():
        with capture() as mine:
            ask()
        seen["mine"] = len(mine)

    with capture() as here:
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    assert seen == {"mine": 1}
    assert here == []

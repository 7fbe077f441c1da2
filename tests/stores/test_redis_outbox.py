"""What is told to a server later: in order, once it answers, and nothing is lost on its way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmprod.stores._redis_outbox import Errand, Outbox


class Server:
    """As much of a link as an outbox asks for."""

    errors = (OSError,)

    def __init__(self) -> None:
        self.lost = False
        self.loop = asyncio.get_running_loop()
        self.answers = asyncio.Event()
        self.told: list[str] = []
        self.breaks = 0

    async def run(self, sha: str, script: str, keys: list[str], arguments: list[str]) -> None:
        await self.answers.wait()
        if self.breaks:
            self.breaks -= 1
            raise OSError("gone")
        self.told.append(arguments[0])

    def lose(self, error: BaseException) -> None:
        self.lost = True


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that redis-py has


def outbox_of(server: Server) -> Outbox:
    link: Any = server
    return Outbox(link, "sha", "script")


async def test_in_order_and_flush_waits_for_the_answer() -> None:
    server = Server()
    outbox, done = outbox_of(server), []
    for number in range(5):
        outbox.add(Errand([], [str(number)], lambda number=number: done.append(number)))
    flush = asyncio.create_task(outbox.flush(lambda: None))
    await asyncio.sleep(0.01)
    assert not flush.done(), "what is on its way has not been told"
    server.answers.set()
    await flush
    assert server.told == ["0", "1", "2", "3", "4"]
    assert done == [0, 1, 2, 3, 4]
    assert outbox.empty


async def test_one_that_is_on_its_way_is_waited_for_though_nothing_else_is_left() -> None:
    server = Server()
    outbox = outbox_of(server)
    outbox.add(Errand([], ["settled"]))
    await asyncio.sleep(0.01)
    flush = asyncio.create_task(outbox.flush(lambda: None))
    await asyncio.sleep(0.01)
    assert not flush.done()
    server.answers.set()
    await flush
    await outbox.aclose()
    assert server.told == ["settled"]


async def test_a_cancellation_and_a_loss_leave_it_there() -> None:
    server = Server()
    outbox = outbox_of(server)
    outbox.add(Errand([], ["first"]))
    outbox.add(Errand([], ["second"]))
    await asyncio.sleep(0.01)
    await outbox.aclose()
    assert [errand.arguments for errand in outbox.errands] == [["first"], ["second"]]
    server.answers.set()
    server.breaks = 1
    outbox.start()
    await outbox.flush(lambda: None)
    assert server.lost
    assert len(outbox.errands) == 2
    server.lost = False
    await outbox.flush(lambda: None)
    assert server.told == ["first", "second"]


async def test_too_many_push_out_the_oldest_and_no_other() -> None:
    server = Server()
    outbox = outbox_of(server)
    outbox.add(Errand([], ["oldest"]))
    await asyncio.sleep(0.01)  # it is on its way
    for number in range(10_000):
        outbox.add(Errand([], [str(number)]))
    server.answers.set()
    await outbox.flush(lambda: None)
    assert server.told == ["oldest", *map(str, range(10_000))]


async def test_what_is_not_wanted_any_more_is_forgotten() -> None:
    server = Server()
    server.lost = True
    outbox = outbox_of(server)
    for kind in ("end", "calibrate", "end"):
        outbox.add(Errand([], [kind]))
    outbox.keep(lambda errand: errand.arguments[0] == "end")
    assert [errand.arguments for errand in outbox.errands] == [["end"], ["end"]]

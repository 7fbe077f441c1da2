"""What is told of a batch under way: the record, the function, the line."""

import io
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal

import pytest

from llmprod import AsyncClient, BatchProgress, EmbedRequest, Simulated
from llmprod.batch.meter import Line, Meter, line
from llmprod.clock import LoopClock
from llmprod.usage import Usage
from tests.batch.helpers import Timed, bare


async def test_a_function_is_told_of_each_item():
    told: list[BatchProgress] = []
    async for _ in bare(Timed()).map(["1", "2 fail", "3"], progress=told.append):
        pass
    assert [(item.done, item.failed, item.in_flight) for item in told] == [(1, 0, 2), (2, 1, 1), (3, 1, 0), (3, 1, 0)]
    assert {item.total for item in told} == {3}
    assert [round(item.seconds) for item in told] == [1, 2, 3, 3]
    assert told[-1].usage == Usage(input=2, output=4)
    assert told[0].eta == pytest.approx(2)
    assert told[-1].items_per_second == pytest.approx(1)
    assert told[-1].tokens_per_second == pytest.approx(4 / 3)


async def test_the_rate_is_that_of_the_last_minute():
    told: list[BatchProgress] = []
    prompts = ["1"] * 200 + ["10"] * 100
    async for _ in bare(Timed()).map(prompts, progress=told.append, concurrency=1):
        pass
    assert told[150].items_per_second == pytest.approx(1, rel=0.05)
    assert told[290].items_per_second == pytest.approx(0.1, rel=0.05)
    assert told[150].eta == pytest.approx(300 - 151, rel=0.05)
    assert told[-1].items_per_second == pytest.approx(300 / 1200, rel=0.05)  # of the whole run


async def test_what_was_restored_makes_no_rate(tmp_path):
    told: list[BatchProgress] = []
    for prompts in (["1"] * 10, ["1"] * 12):
        told.clear()
        client = bare(Timed())
        async for _ in client.map(prompts, progress=told.append, checkpoint=tmp_path / "x", concurrency=1):
            pass
    assert (told[-1].done, told[-1].restored) == (12, 10)
    assert told[-1].usage == Usage(input=2, output=4)
    assert told[-1].items_per_second == pytest.approx(1)


async def test_embeddings_count_what_was_embedded():
    client = AsyncClient(Simulated("instant"), wrappers=[], clock=LoopClock())
    results = client.map([EmbedRequest(inputs=("some words to embed",))] * 3)
    async for _ in results:
        pass
    assert results.progress.usage.total_input > 0


async def test_without_a_length_there_is_no_eta():
    told: list[BatchProgress] = []
    async for _ in bare(Timed()).map((str(number) for number in (1, 2)), progress=told.append):
        pass
    assert {(item.total, item.eta) for item in told} == {(None, None)}


async def test_a_function_that_fails_ends_the_run():
    def fail(progress):
        raise ZeroDivisionError

    provider = Timed()
    results = bare(provider).map(["1", "5"], progress=fail)
    with pytest.raises(ZeroDivisionError):
        [result async for result in results]
    assert provider.in_flight == 0


class Hand:
    """A clock moved by hand."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(screen: str) -> list[str]:
    """What a terminal shows of it, line by line."""
    lines = []
    for row in screen.split("\n"):
        cells: list[str] = []
        for piece in row.split("\r"):
            cells[: len(piece)] = list(piece)
        lines.append("".join(cells).rstrip())
    return lines


def test_on_a_terminal_one_line_is_rewritten(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clock, screen = Hand(), Terminal()
    meter = Meter(clock, 1000, Line(clock, screen))
    meter.begin()
    for done in range(1, 1001):
        clock.time += 0.01
        meter.done = done
        meter.in_flight = 32 if done < 990 else 0
        meter.show()
    meter.show(last=True)
    assert screen.getvalue().count("\n") == 1
    assert screen.getvalue().count("\r") <= 102
    assert shown(screen.getvalue()) == ["1,000/1,000 100%  100 items/s  took 10 s", ""]
    assert "\x1b" not in screen.getvalue()
    first = screen.getvalue().split("\r")[1]
    assert first.startswith("1/1,000 0%  32 in flight")


def test_a_narrow_terminal_gets_a_cut_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    clock, screen = Hand(), Terminal()
    meter = Meter(clock, 1000, Line(clock, screen))
    meter.begin()
    for _ in range(50):
        clock.time += 1
        meter.done += 7
        meter.show()
    assert all(len(piece) <= 19 for piece in screen.getvalue().split("\r"))
    assert shown(screen.getvalue())[0].endswith("…")


def test_elsewhere_a_line_now_and_then():
    clock, log = Hand(), io.StringIO()
    meter = Meter(clock, None, Line(clock, log))
    meter.begin()
    for _ in range(1000):
        clock.time += 0.1
        meter.done += 1
        meter.show()
    meter.show(last=True)
    lines = log.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1] == "1,000  10.0 items/s  took 1:40 min"
    assert "\r" not in log.getvalue()


def test_a_line_tells_all_there_is():
    progress = BatchProgress(
        done=5210, failed=3, restored=1200, in_flight=32, total=10_000, usage=Usage(), seconds=100,
        items_per_second=41.23, tokens_per_second=5310.2, eta=116.2,
    )  # fmt: skip
    assert line(progress) == (
        "5,210/10,000 52%  1,200 restored  3 failed  32 in flight  41.2 items/s  5,310 tokens/s  ETA 1:56 min"
    )
    assert "  $1,234.5000  ETA" in line(replace(progress, cost=Decimal("1234.5")))
    assert "  ≥ $0.0100  ETA" in line(replace(progress, cost=Decimal("0.01"), unpriced=1))


def test_nothing_is_written_to_standard_output():
    script = "from llmprod import Client\nfor _ in Client('simulated:instant').map(['x'] * 5, progress=True): pass"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == ""
    assert done.stderr.startswith("5/5 100%  ")
    assert done.stderr.count("\n") == 1

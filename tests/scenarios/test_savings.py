"""The money benchmark: conversations are found in a trace, equal calls are paid once, marks are billed by the rules."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.savings.replay import TARGETS, asked, pay
from benchmarks.savings.trace import read, text


def row(at: float, ids: list[int], length: int, output: int = 100) -> dict[str, Any]:
    return {"timestamp": at * 1000, "input_length": length, "output_length": output, "hash_ids": ids}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        row(0, [0, 1, 2, 3], 2000),
        row(1, [0, 1, 2, 3], 2000),  # the same while the first is in flight
        row(10, [0, 1, 2, 3], 2000),  # and after it
        row(60, [0, 1, 2, 4, 5], 2400),  # its next turn: the last block, which was not whole, is another
        row(400, [0, 6, 7, 8], 1600),
        row(1000, [0, 1, 2, 4, 5], 2400),
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_conversations_are_found(trace: Path) -> None:
    calls = read(trace)
    assert [call.prompt for call in calls] == [2000, 2000, 2000, 2400, 1600, 2400]
    assert [call.turn for call in calls] == [0, 0, 0, 1, 0, 1]
    assert calls[3].said[:2] == calls[0].said
    assert [(role, tokens) for role, _, tokens in calls[3].said[2:]] == [("assistant", 100), ("user", 300)]
    assert calls[5].said == calls[3].said
    assert calls[4].said[0] == calls[0].said[0]
    assert calls[4].said[1] != calls[0].said[1]
    told = calls[3].request().messages
    assert [len(message.text) // 4 for message in told] == [512, 1488, 100, 300]
    assert text(1, 100) != text(2, 100)


def test_who_reaches_the_provider(trace: Path) -> None:
    calls = read(trace)
    assert asked(calls, cache=None, together=False) == [True] * 6
    assert asked(calls, cache=None, together=True) == [True, False, True, True, True, True]
    assert asked(calls, cache=3600, together=False) == [True, True, False, True, True, False]
    assert asked(calls, cache=60, together=True) == [True, False, False, True, True, True]


def test_what_is_paid(trace: Path) -> None:
    calls = read(trace)
    everybody = [True] * len(calls)
    for target in TARGETS:
        without, caching = (pay(calls, everybody, target, caching=on) for on in (False, True))
        assert without.usage.total_input == caching.usage.total_input
        assert without.usage.cache_read == without.usage.cache_written == 0
        assert without.total == target.prices.without_cache(without.usage)
        assert caching.total == target.prices.cost(caching.usage)
        if target.style == "openai":
            assert caching.total < without.total
        if target.style == "google":  # all of it is shorter than the model's minimum
            assert caching.total == without.total
        assert caching.calls == 6
    claude = pay(calls, everybody, TARGETS[0], caching=True).usage
    # The first is found after a second, when its answer has begun, at 10 s and at 60 s; at 1,000 s nothing is left.
    assert claude.cache_read == 3 * 2008
    assert pay(calls, [False] * 6, TARGETS[0], caching=True).total == Decimal(0)

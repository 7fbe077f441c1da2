"""The fault wall against the client with its default settings, in real time: every scenario, whole and streamed.

All run at once, each on servers of its own, so the whole takes as long as the longest: the outage of 60 s under
traffic. What each must show is in ``llmprod.testing.scenarios``; the judge is the one that peers are measured by.
"""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from benchmarks.faults import ours
from benchmarks.faults.run import Result, run
from llmprod.testing.scenarios import SCENARIOS

pytestmark = pytest.mark.slow

_CASES = [(name, stream) for name in SCENARIOS for stream in (False, True) if name != "X11" or stream]
_SHOWN = {"S08", "S09", "S10", "S14", "X01", "X04"}
"""Scenarios that break a stream after text was shown: the safe ending is an interruption that carries the partial."""


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, bool], Result]:
    found = anyio.run(run, ours.make)
    return {(result.scenario.id, result.stream): result for result in found}


@pytest.mark.parametrize(("name", "stream"), _CASES, ids=[f"{n}-{'stream' if s else 'whole'}" for n, s in _CASES])
def test_scenario(results: dict[tuple[str, bool], Result], name: str, stream: bool) -> None:
    result = results[name, stream]
    if stream and name in _SHOWN:
        assert result.judgement.grade in ("safe", "pass"), result.judgement
        assert result.calls[0].kind == "interrupted"
        assert len(result.calls[0].text.split()) == 40, "the partial answer is what was shown"
    else:
        assert result.judgement.grade == "pass", result.judgement


def test_none_is_lost(results: dict[tuple[str, bool], Result]) -> None:
    grades = Counter(result.judgement.grade for result in results.values())
    assert sum(grades.values()) == len(_CASES)
    assert grades["fail"] == 0

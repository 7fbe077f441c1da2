"""The experiments of ``benchmarks/`` run, and say what they are to say. How well is for their full length to tell."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.overload.measures import measure, recovery
from benchmarks.overload.plan import QUICK, SCENARIOS, Plan
from benchmarks.rate_limits.measures import utilisation
from benchmarks.rate_limits.plan import Plan as RatePlan

PLAN = Plan(queue=1, before=5, drop=10, after=20, deadline=2)


def run(*arguments: str, results: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", *arguments, "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("|") > 10
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """The experiments, all at once: they wait far more than they work."""
    folder = tmp_path_factory.mktemp("experiments")
    rates = ("benchmarks.rate_limits", "--quick", "--processes", "2", "--mode", "actual", "one", "redis", "outage")
    pool = ThreadPoolExecutor(1 + len(QUICK))
    runs = {"rate limits": pool.submit(run, *rates, results=folder / "rates.json")}
    for name in QUICK:
        one = ("benchmarks.overload", "--quick", "--scenario", name, "none", "llmprod")
        runs[name] = pool.submit(run, *one, results=folder / f"{name}.json")
    yield runs
    pool.shutdown()


@pytest.mark.slow
def test_the_overload_experiment_runs(begun):
    for scenario, plan in QUICK.items():
        rows = begun[scenario].result()[scenario]
        assert set(rows) == {"none", "llmprod"}
        assert {row["calls"] for row in rows.values()} == {len(plan.arrivals())}
        assert rows["none"]["attempts_all"] == pytest.approx(1, abs=0.02)
        assert rows["llmprod"]["attempts_drop"] <= 1.25  # the retry budget, and its reserve
        assert rows["llmprod"]["answered"] > 0.3
        assert "WrongAnswer" not in rows["llmprod"]["errors"]


@pytest.mark.slow
def test_the_rate_limit_experiment_runs(begun):
    rows = begun["rate limits"].result()["actual"]
    assert "one" in rows
    for row in rows.values():
        assert row["calls"] > 0
        assert 0 < row["utilisation"] < 3
        assert 0 <= row["refused"] < 1
    assert "outage" not in rows or set(rows["outage"]["parts"]) == {"before", "dead", "after"}


def calls(good_from: float) -> list[tuple[float, float, str]]:
    """Ten calls a second, answered from a time on."""
    return [(at / 10, 0.1, "" if at / 10 >= good_from else "Late") for at in range(int(PLAN.length * 10))]


def test_recovery_is_when_calls_are_answered_for_good():
    assert recovery(PLAN, calls(0)) == 0
    assert recovery(PLAN, calls(PLAN.restored + 7)) == 7
    assert recovery(PLAN, calls(PLAN.length)) is None
    relapsed = calls(0)
    relapsed[int(PLAN.restored * 10) + 95] = (PLAN.restored + 9.5, 0.1, "")
    for at in range(int(PLAN.restored * 10) + 90, int(PLAN.restored * 10) + 100):
        relapsed[at] = (at / 10, 0.1, "Late")
    assert recovery(PLAN, relapsed) == 10


def test_goodput_and_attempts_are_shares_of_what_was_possible_and_asked():
    plan = SCENARIOS["refuses"]
    begun = [(at, 0.5, "" if number % 4 == 0 else "Refused") for number, at in enumerate(plan.arrivals())]
    arrived = [at for at, *_ in begun] * 2
    found = measure(plan, begun, arrived, refused=[])
    assert found["attempts_drop"] == found["attempts_all"] == 2
    assert found["answered"] == pytest.approx(0.25, abs=0.001)
    assert found["goodput_drop"] == pytest.approx(0.25 * plan.load / plan.drop_to, rel=0.1)
    assert found["late"] == 0


def test_every_contestant_meets_the_same_arrivals_and_work():
    plan = SCENARIOS["queues"]
    assert plan.arrivals() == plan.arrivals()
    assert len(plan.arrivals()) == pytest.approx(plan.load * plan.capacity * plan.length, rel=0.05)
    work = [plan.work(call) for call in range(4000)]
    assert sum(work) / len(work) == pytest.approx(plan.service, rel=0.05)


def test_a_burst_that_was_saved_up_flatters_no_utilisation():
    plan = RatePlan("actual", tokens=6000, requests=6000)
    seconds = int(plan.length - plan.warm_up)
    charged = [(plan.warm_up + at, 100.0) for at in range(seconds)]
    steady = {"charged": charged, "admitted": [], "held": [{"tokens": 500.0, "requests": 0.0}] * 2}
    assert utilisation(plan, steady, plan.warm_up, plan.length) == pytest.approx(1)
    drained = {**steady, "charged": [(at, 110.0) for at, _ in charged]}
    drained["held"] = [{"tokens": 600.0, "requests": 0.0}, {"tokens": 0.0, "requests": 0.0}]
    assert utilisation(plan, drained, plan.warm_up, plan.length) == pytest.approx(1)

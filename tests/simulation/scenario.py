"""One seed, investigated: on both backends, checked, and compared."""

from collections import Counter
from dataclasses import dataclass, field
from difflib import unified_diff
from itertools import chain
from types import MappingProxyType
from typing import Any

from tests.simulation.check import digest, violations
from tests.simulation.plan import Plan, plan
from tests.simulation.world import Replaced, Result, play
from tests.simulation.worlds import BACKENDS, Livelock


@dataclass
class Finding:
    """What a seed showed."""

    seed: int
    violations: list[str] = field(default_factory=list)
    digest: str = ""
    calls: int = 0
    attempts: int = 0
    wrappers: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    result: Any = None

    def __str__(self) -> str:
        told = "\n".join(f"  {found}" for found in self.violations[:12])
        return f"seed {self.seed} fails; python -m tests.simulation --seeds {self.seed} --explain\n{told}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "result": None}  # coroutines and clocks don't travel between processes


def investigate(seed: int, replaced: Replaced = MappingProxyType({}), made: Plan | None = None) -> Finding:
    """Run the scenario of ``seed`` on both backends."""
    made = made or plan(seed)
    found = Finding(seed)
    results: list[Result] = []
    for backend in BACKENDS:
        try:
            result = play(made, backend, replaced)
        except Livelock:
            found.violations.append(f"{backend}: tasks run on without time passing")
            return found
        results.append(result)
        found.violations += [f"{backend}: {violation}" for violation in violations(result)]
    first, second = results
    found.result = first
    found.digest = digest(first)
    if digest(second) != found.digest:
        found.violations += ["the backends differ:", *_difference(first, second)]
    _figures(found, made, first)
    return found


def _difference(first: Result, second: Result) -> list[str]:
    told = [list(map(repr, chain(*_lines(result)))) for result in (first, second)]
    return list(unified_diff(*told, "asyncio", "trio", lineterm="", n=0))[:12]


def _lines(result: Result) -> list[Any]:
    *calls, arrivals = result.traces()
    return [*(chain([call[:6]], call[6], call[7]) for call in calls), arrivals]


def _figures(found: Finding, made: Plan, result: Result) -> None:
    found.calls, found.attempts = len(result.calls), len(result.ledger.arrivals)
    found.wrappers = set().union(*(stack.names() for stack in made.stacks))
    for call in result.calls:
        found.ends[call.how if call.error is None else type(call.error).__name__] += 1
        found.states.update(entry.state for entry in call.context.trace.entries)
        found.decisions.update(type(decision).__name__ for decision in call.context.trace.decisions)

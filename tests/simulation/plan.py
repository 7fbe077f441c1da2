"""What a seed decides: targets and their faults, stacks, callers. Plain data, so that it can be printed and hashed."""

from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.worlds import TICK, random_for

FAULTS = (
    "server_error", "rate_limited", "overloaded", "connect", "cut", "early_cut", "stall", "silent", "crawl", "bad_key",
    "no_credit", "refused",
)  # fmt: skip
"""What can go wrong at a target, beside its capacity:

``cut`` breaks a stream after content, ``early_cut`` before it; ``stall`` stops a stream in its middle, ``silent`` never
answers, ``crawl`` writes ever so slowly; ``bad_key`` is a 401, ``no_credit`` a 402, ``refused`` a 400.
"""

_MOODS: dict[str, dict[str, float]] = {
    "healthy": {"server_error": 0.01},
    "flaky": {"server_error": 0.15, "rate_limited": 0.05, "overloaded": 0.05, "connect": 0.05, "early_cut": 0.05},
    "throttling": {"rate_limited": 0.4, "overloaded": 0.1},
    "cutting": {"cut": 0.4, "early_cut": 0.1, "stall": 0.1, "crawl": 0.1},
    "sick": {"server_error": 0.5, "overloaded": 0.2, "silent": 0.1},
    "dark": {"silent": 0.6, "stall": 0.2},
    "locked": {"bad_key": 0.5, "no_credit": 0.2},
    "picky": {"refused": 0.2, "server_error": 0.1},
}


_BETWEEN = 64.5 * TICK
"""Added to round numbers of seconds, so that they do not end on a caller's own tick."""


@dataclass(frozen=True)
class TargetPlan:
    """A simulated deployment.

    ``outages`` are (begin, end, fault): every call that comes between fails so. ``capacity`` calls at once are served,
    further ones are refused as ``full`` says. ``prefill``: it continues an answer that was begun elsewhere.
    """

    name: str
    mood: str
    faults: dict[str, float]
    ttft: float
    sigma: float
    pace: float
    outages: tuple[tuple[float, float, str], ...] = ()
    capacity: int | None = None
    full: str = "overloaded"
    retry_after: tuple[float, float] | None = None
    tells_usage: bool = True
    prefill: bool = False
    tells_limits: bool = False


@dataclass(frozen=True)
class CallPlan:
    """One caller. ``cancel`` and ``stop`` say after how many seconds it is cancelled or events it stops reading."""

    number: int
    at: float
    kind: str
    stack: int
    tokens: int
    seconds: float | None = None
    priority: int = 0
    cancel: float | None = None
    stop: int | None = None
    pause: float | None = None
    user: str = "a"


@dataclass(frozen=True)
class StackPlan:
    """Wrappers by name with their options, outermost first: around everything, and around each target."""

    around: tuple[tuple[str, dict[str, Any]], ...]
    router: tuple[str, dict[str, Any]] | None
    targets: tuple[int, ...]
    within: tuple[tuple[tuple[str, dict[str, Any]], ...], ...]
    last_resort: bool = False

    def names(self) -> set[str]:
        names = {name for name, _ in self.around} | {name for chain in self.within for name, _ in chain}
        return names | ({self.router[0]} if self.router else set()) | ({"Static"} if self.last_resort else set())


@dataclass(frozen=True)
class Plan:
    """One scenario."""

    seed: int
    targets: tuple[TargetPlan, ...]
    stacks: tuple[StackPlan, ...]
    calls: tuple[CallPlan, ...]
    shared: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, shared: {', '.join(sorted(self.shared)) or 'nothing'}"]
        lines += [f"  {target}" for target in self.targets]
        for stack in self.stacks:
            lines.append(f"  around {stack.around} router {stack.router} last resort {stack.last_resort}")
            lines += [f"    target {place}: {chain}" for place, chain in zip(stack.targets, stack.within, strict=True)]
        lines += [f"  {call}" for call in self.calls]
        return "\n".join(lines)

    def only(self, *calls: int) -> "Plan":
        """The same with fewer callers: what is left when a failing scenario is cut down by hand."""
        return replace(self, calls=tuple(call for call in self.calls if call.number in calls))


class _Draw:
    """Chance with the words that a plan needs."""

    def __init__(self, *names: object) -> None:
        self.random = random_for(*names)

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def whole(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def one(self, *items: Any) -> Any:
        return self.random.choice(items)

    def some(self, share: float, options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if self.often(share)}


def plan(seed: int) -> Plan:
    """Return the scenario of ``seed``."""
    draw = _Draw(seed, "plan")
    span = draw.one(5.0, 30.0, 120.0)
    targets = tuple(_target(_Draw(seed, "target", place), place, span) for place in range(draw.whole(1, 4)))
    stacks = tuple(_stack(_Draw(seed, "stack", place), len(targets)) for place in range(2 if draw.often(0.2) else 1))
    if any(stack.router is not None and stack.router[0] == "KeyPool" for stack in stacks):  # its targets are alike
        targets = tuple(replace(target, prefill=targets[0].prefill) for target in targets)
    count = draw.whole(1, 40)
    calls = tuple(_call(_Draw(seed, "call", number), number, span, len(stacks)) for number in range(count))
    shared = frozenset(name for name in ("budget", "breaker", "limit", "bulkhead") if draw.often(0.3))
    return Plan(seed, targets, stacks, calls, shared)


def _target(draw: _Draw, place: int, span: float) -> TargetPlan:
    mood = draw.one(*_MOODS, "healthy", "flaky")
    outages: list[tuple[float, float, str]] = []
    if draw.often(0.25):
        begin = draw.between(0, span)
        outages.append(
            (begin, begin + draw.between(0.1, span), draw.one("server_error", "overloaded", "connect", "silent"))
        )
    return TargetPlan(
        name=f"t{place}",
        mood=mood,
        faults=_MOODS[mood],
        ttft=draw.one(0.05, 0.3, 1.0, 4.0),
        sigma=draw.one(0.1, 0.5, 1.2),
        pace=draw.one(0.002, 0.02, 0.2),
        outages=tuple(outages),
        capacity=draw.whole(1, 8) if draw.often(0.3) else None,
        full=draw.one("overloaded", "rate_limited"),
        retry_after=draw.one(None, (0.2, 3.0), (0.2, 90.0)),
        tells_usage=draw.often(0.8),
        prefill=draw.often(0.5),
        tells_limits=draw.often(0.2),
    )


def _call(draw: _Draw, number: int, span: float, stacks: int) -> CallPlan:
    kind = draw.one("whole", "stream", "stream", "embed") if draw.often(0.9) else draw.one("whole", "stream")
    stops = kind == "stream" and draw.often(0.15)
    return CallPlan(
        number=number,
        at=draw.between(0, span),
        kind=kind,
        stack=draw.whole(0, stacks - 1),
        tokens=draw.whole(1, 30),
        seconds=draw.between(0.2, 60.0) if draw.often(0.5) else None,
        priority=draw.one(0, 0, 0, 1, -1),
        cancel=draw.between(0.001, 20.0) if draw.often(0.15) else None,
        stop=draw.whole(0, 10) if stops else None,
        pause=draw.between(0.01, 2.0) if kind == "stream" and draw.often(0.15) else None,
        user=draw.one("a", "a", "b", "c"),
    )


# ---- stacks ----------------------------------------------------------------------------------------------------------


def _stack(draw: _Draw, targets: int) -> StackPlan:
    order = list(range(targets))
    draw.random.shuffle(order)
    used = tuple(order[: draw.whole(1, targets)])
    around: list[tuple[str, dict[str, Any]]] = []
    if draw.often(0.9):
        around.append(("Deadline", {"seconds": draw.one(5.0, 30.0, 120.0) + _BETWEEN}))
    router = None
    if len(used) > 1 or draw.often(0.2):
        name = draw.one(*ROUTERS)
        router = (name, _ROUTER[name](draw, len(used)))
    around += [
        (name, options)
        for name in OUTER
        if (options := _options(draw, name)) is not None and (name != "Hedge" or _can_hedge(router, used))
    ]
    alike = draw.often(0.6)
    chains = [_chain(draw) for _ in used]
    within = tuple(chains[0] if alike else chain for chain in chains)
    return StackPlan(tuple(around), router, used, within, last_resort=draw.often(0.1))


def _can_hedge(router: tuple[str, dict[str, Any]] | None, targets: tuple[int, ...]) -> bool:
    # A hedge goes to another deployment; the targets of a pool of keys are one.
    return router is not None and router[0] != "KeyPool" and len(targets) > 1


def _chain(draw: _Draw) -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((name, options) for name in INNER if (options := _options(draw, name)) is not None)


def _options(draw: _Draw, name: str) -> dict[str, Any] | None:
    share, make = PARTS[name]
    return make(draw) if draw.often(share) else None


def _retry(draw: _Draw) -> dict[str, Any]:
    return {"attempts": draw.whole(1, 5)} | draw.some(
        0.3, {"attempts_at_most": draw.whole(1, 8), "retry_after_at_most": draw.one(0.0, 5.0, 60.0)}
    )


def _timeouts(draw: _Draw) -> dict[str, Any]:
    return {
        "first_token": draw.between(0.2, 30),
        "idle": draw.between(0.2, 20),
        "total": draw.one("auto", None, draw.between(1, 60)),
    }


def _breaker(draw: _Draw) -> dict[str, Any]:
    return draw.some(
        0.5,
        {
            "failure_ratio": draw.one(0.3, 0.5, 0.9),
            "minimum_calls": draw.whole(1, 10),
            "consecutive_failures": draw.whole(1, 5),
            "open_for": draw.between(0.5, 10),
            "trials": draw.whole(1, 3),
            "successes_to_close": draw.whole(1, 3),
            "trial_for_at_most": draw.between(1, 60),
            "slow_first_token": draw.between(0.1, 5),
            "window": draw.between(5, 60),
        },
    )


def _throttle(draw: _Draw) -> dict[str, Any]:
    return draw.some(0.5, {"k": draw.one(1.1, 1.5, 2.0), "minimum": draw.whole(1, 10), "window": draw.between(2, 30)})


def _bulkhead(draw: _Draw) -> dict[str, Any]:
    limits = (("fixed", draw.whole(1, 6)), ("fixed", draw.whole(1, 3)), ("aimd", 0), ("gradient2", 0), ("queue", 0))
    return {
        "limit": draw.one(*limits),
        "at_most_waiting": draw.one(0, 2, 100),
        "wait_at_most": draw.one(0.5, 10.0, None),
    }


def _chaos(draw: _Draw) -> dict[str, Any]:
    return {
        "seed": draw.whole(0, 2**30),
        "rate": draw.one(0.02, 0.2),
        **draw.some(0.7, {"latency": (1.0, 0.5), "cut": (1, 20), "drip": 0.3}),
        "fault_rate": draw.one(0.01, 0.1),
    }


def _guard(draw: _Draw) -> dict[str, Any]:
    return {"characters_per_second": draw.one(1.0, 4.0, 20.0), "over": draw.one(1.0, 5.0), "hold": draw.one(0, 20, 256)}


def _rate_limit(draw: _Draw) -> dict[str, Any]:
    limits = draw.some(
        0.5,
        {
            "requests_per_minute": draw.between(10, 300),
            "tokens_per_minute": draw.between(300, 10_000),
            "concurrent": draw.whole(1, 6),
            "burst": draw.one(0.5, 5.0, 60.0),
            "output_tokens_per_minute": draw.between(200, 5_000),
        },
    )
    limits.setdefault("requests_per_minute", 120.0)
    return {**limits, "wait_at_most": draw.one(None, None, 0.0, 5.0), "at_most_waiting": draw.one(1000, 3, None)}


def _quota(draw: _Draw) -> dict[str, Any]:
    return {"requests_per_minute": draw.between(5, 60), "per": "user", "wait_at_most": draw.one(None, 0.0, 10.0)} | (
        draw.some(0.5, {"concurrent": draw.whole(1, 4), "tokens_per_minute": draw.between(300, 3000)})
    )


def _resume(draw: _Draw) -> dict[str, Any]:
    plans = draw.one(("ContinueText", "Restart"), ("ContinueText",), ("Restart",), ())
    return {"plans": plans, "hold": draw.one(0, 5, 30) if plans else draw.one(5, 30), "resumes": draw.whole(1, 3)}


def _hedge(draw: _Draw) -> dict[str, Any]:
    return {
        "percentile": draw.one(0.5, 0.9, 0.95),
        "budget": draw.one(0.05, 0.3, 1.0),
        "delay": draw.one(None, 0.05, 0.5, 2.0),
        "minimum": draw.whole(1, 10),
    }


def _balance(draw: _Draw, targets: int) -> dict[str, Any]:
    policy = draw.one("p2c", "p2c", "weighted", "priority")
    options: dict[str, Any] = {"policy": policy, "sticky": draw.one(None, None, "session", "prefix")}
    if policy == "weighted":
        options["weights"] = tuple(draw.one(1, 2, 3) for _ in range(targets))
    if policy == "priority":
        options["priorities"] = (0, *(draw.whole(0, 1) for _ in range(targets - 1)))
    return options


def _key_pool(draw: _Draw, targets: int) -> dict[str, Any]:
    groups = tuple(draw.one(None, "one", "two") for _ in range(targets))
    return {"quota_groups": groups, "quarantine": draw.between(1, 60), "pause": draw.between(0.5, 10)}


PARTS: dict[str, tuple[float, Any]] = {
    "Quota": (0.1, _quota),
    "Resume": (0.3, _resume),
    "Retry": (0.8, _retry),
    "Hedge": (0.3, _hedge),
    "AdaptiveThrottle": (0.2, _throttle),
    "RateLimit": (0.25, _rate_limit),
    "Bulkhead": (0.25, _bulkhead),
    "CircuitBreaker": (0.7, _breaker),
    "AttemptTimeout": (0.8, _timeouts),
    "ThroughputGuard": (0.2, _guard),
    "Chaos": (0.1, _chaos),
}
"""How often a wrapper is there, and its options."""
OUTER: tuple[str, ...] = ("Quota", "Resume", "Retry", "Hedge")
INNER: tuple[str, ...] = (
    "AdaptiveThrottle", "RateLimit", "Bulkhead", "CircuitBreaker", "ThroughputGuard", "AttemptTimeout", "Chaos",
)  # fmt: skip
_ROUTER: dict[str, Any] = {"Failover": lambda _draw, _targets: {}, "Balance": _balance, "KeyPool": _key_pool}
ROUTERS: tuple[str, ...] = tuple(_ROUTER)

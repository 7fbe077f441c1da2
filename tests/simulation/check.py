"""What must hold in every scenario, whatever its seed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from llmprod import Breaker, LLMProdError, StreamInterrupted
from llmprod.mechanisms.concurrency_limit import ConcurrencyLimit
from llmprod.mechanisms.key_ring import KeyRing
from llmprod.mechanisms.peak_ewma import PeakEwma
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.wrappers._line import Line
from tests.simulation.plan import Plan, StackPlan
from tests.simulation.target import INPUT_TOKENS, Arrival, SimulatedTarget, pieces, vector
from tests.simulation.world import LATE, Call, CountedBudget, Result

_SOON = 1e-6
_PAUSE_AT_MOST = 60.0
_FINAL = {"ok", "failed", "interrupted", "cancelled", "closed", "skipped"}
_QUEUES = {"Bulkhead", "RateLimit", "Chaos"}
"""They let time pass between a router's decision and the attempt."""

Check = Callable[[Result], Iterator[str]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def violations(result: Result) -> list[str]:
    """All that does not hold, in words; empty if everything does."""
    return [f"{function.__name__}: {found}" for function in CHECKS for found in function(result)]


def digest(result: Result) -> str:
    """One number for all traces and decisions."""
    return hashlib.sha256(repr(result.traces()).encode()).hexdigest()[:16]


# ---- everything is given back ----------------------------------------------------------------------------------------


@check
def it_ends(result: Result) -> Iterator[str]:
    if result.hung:
        yield f"calls {[call.plan.number for call in result.calls if call.ended is None]} never ended"
    if result.left_over:
        yield f"{result.left_over} tasks outlived their calls"
    for message in result.warned:
        yield f"warned: {message}"


@check
def nothing_is_in_flight(result: Result) -> Iterator[str]:
    for target in result.targets:
        if target.in_flight or target.open_sources:
            yield f"{target.name}: {target.in_flight} calls and {target.open_sources} sources are open at the end"
    for arrival in result.ledger.arrivals:
        if arrival.ended is None:
            yield f"an attempt of call {arrival.call} at {arrival.target} has no end"
    yield from result.ledger.wrong


@check
def nothing_is_held(result: Result) -> Iterator[str]:
    for item in _parts(result.stacks):
        if isinstance(item, Line) and item.places:
            yield f"{len(item.places)} places in a line are still taken"
        elif isinstance(item, ConcurrencyLimit) and item.in_flight:
            yield f"{item!r} has {item.in_flight} permits out"
        elif isinstance(item, Breaker) and item._trials:
            yield f"{item!r} waits for {len(item._trials)} trials"
        elif isinstance(item, RateLimiter):
            if item.in_flight:
                yield f"{item!r} has {item.in_flight} reservations out"
            for bucket in item._buckets:
                if not bucket.level <= bucket.burst:
                    yield f"{item!r} holds {bucket.level} of {bucket.burst} {bucket.name}"
        elif isinstance(item, PeakEwma) and (item.calls or abs(item.pending) > _SOON):
            yield f"{item!r} counts {item.calls} calls under way, of weight {item.pending}"
        elif isinstance(item, KeyRing) and any(key.pending for key in item.keys):
            yield f"{item!r} counts {[key.pending for key in item.keys]} calls under way"


def _parts(roots: list[Any]) -> Iterator[Any]:
    """Every object of the library that the stacks are made of."""
    seen: set[int] = set()
    waiting: list[Any] = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, ModuleType, str, int, float, SimulatedTarget)):
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        elif type(item).__module__.startswith(("llmprod", "tests.simulation")):
            yield item
            waiting += getattr(item, "__dict__", {}).values()
            slots = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(item, name) for name in slots if name != "__weakref__" and hasattr(item, name)]


# ---- no more attempts than allowed -----------------------------------------------------------------------------------


def _stack(result: Result, call: Call) -> StackPlan:
    return result.plan.stacks[call.plan.stack]


def _options(stack: StackPlan, name: str) -> dict[str, Any] | None:
    return next((options for wrapper, options in stack.around if wrapper == name), None)


def _arrivals(result: Result, call: Call) -> list[Arrival]:
    return [arrival for arrival in result.ledger.arrivals if arrival.call == call.plan.number]


@check
def attempts_stay_within_the_cap(result: Result) -> Iterator[str]:
    for call in result.calls:
        stack, made = _stack(result, call), len(_arrivals(result, call))
        retry = _options(stack, "Retry")
        if retry is None:
            cap = len(stack.targets) * (2 if "Hedge" in stack.names() else 1)  # a hedge has a round of its own
            if "Resume" in stack.names():
                continue
        else:
            cap = retry.get("attempts_at_most") or max(retry["attempts"], 5)
        if made > cap:
            yield f"call {call.plan.number} made {made} attempts, {cap} are allowed"


@check
def cost_stays_within_the_cap(result: Result) -> Iterator[str]:
    for call in result.calls:
        most = INPUT_TOKENS + call.plan.tokens
        arrivals = _arrivals(result, call)
        billed = sum(arrival.billed for arrival in arrivals)
        retry = _options(_stack(result, call), "Retry")
        cap = len(arrivals) if retry is None else retry.get("attempts_at_most") or max(retry["attempts"], 5)
        if billed > cap * most:
            yield f"call {call.plan.number} was billed {billed} tokens; {cap} attempts of {most} are allowed"


@check
def the_retry_budget_covers_every_further_attempt(result: Result) -> Iterator[str]:
    by_budget: dict[int, tuple[CountedBudget, set[int]]] = {}
    for number, budgets in enumerate(result.budgets):
        for budget in budgets:
            by_budget.setdefault(id(budget), (budget, set()))[1].add(number)
    for budget, stacks in by_budget.values():
        yield from _covered(budget)
        moves = Counter(move for _, move, _ in budget.moves)
        calls = [call for call in result.calls if call.plan.stack in stacks]
        further = sum(max(0, call.context.call.attempts - 1) for call in calls)
        paid = moves["withdraw"] - moves["refund"]
        hedged = any("Hedge" in result.plan.stacks[number].names() for number in stacks)
        # Beside another attempt none is told from its neighbour. A resumption whose first round reaches nobody, as all
        # asked to be left alone, keeps its leave while the Retry within takes another.
        resumed = sum(1 for _, move, kind in budget.moves if (move, kind) == ("withdraw", "resume"))
        if further > paid or (further < paid - resumed and not hedged):
            yield f"{further} further attempts were made with leave for {paid}"
        if moves["refund"] > moves["withdraw"]:
            yield f"{moves['refund']} refunds of {moves['withdraw']} withdrawals"


def _covered(budget: CountedBudget) -> Iterator[str]:
    """The budget's rule, told over a list of all movements: in any window, the further attempts stay within it."""
    width = budget.window / 10
    for place, (at, move, kind) in enumerate(budget.moves):
        if move != "withdraw":
            continue
        within = [other for other in budget.moves[: place + 1] if int(at / width) - int(other[0] / width) < 10]
        counts = Counter(other for _, other, _ in within)
        ratio = budget.failover_ratio if kind == "failover" else budget.ratio
        taken = counts["withdraw"] - sum(1 for _, other, _ in budget.moves[:place] if other == "refund")
        if taken > budget.reserve + ratio * counts["deposit"] + _SOON:
            yield f"{taken} further attempts for {counts['deposit']} calls within a window at {at}"


@check
def limits_of_rate_and_of_calls_at_once_hold(result: Result) -> Iterator[str]:
    """What reaches a target through a limit, counted by the target."""
    for number, stack in enumerate(result.plan.stacks):
        if stack.names() & {"Chaos"}:
            continue  # its faults count, and the target never sees them
        for place, chain in zip(stack.targets, stack.within, strict=True):
            name = result.plan.targets[place].name
            came = [one for one in result.ledger.arrivals if (one.stack, one.target) == (number, name)]
            for wrapper, options in chain:
                if wrapper == "RateLimit" and "limit" not in result.plan.shared:
                    if "Bulkhead" not in dict(chain):
                        yield from _within_rate(name, came, options)
                    if "concurrent" in options:
                        yield from _at_once(name, came, options["concurrent"])
                if wrapper == "Bulkhead" and options["limit"][0] == "fixed" and "bulkhead" not in result.plan.shared:
                    yield from _at_once(name, came, options["limit"][1])


def _within_rate(name: str, came: list[Arrival], options: dict[str, Any]) -> Iterator[str]:
    rate = options["requests_per_minute"] / 60.0
    burst = max(1.0, rate * min(options.get("burst", 5.0), 60.0))
    for first, begin in enumerate(came):
        for last in range(first + 1, len(came)):
            made, seconds = last - first + 1, came[last].at - begin.at
            if made > burst + rate * seconds + 1e-3:
                yield f"{made} attempts reached {name} in {seconds} s; {burst + rate * seconds} are allowed"
                return


def _at_once(name: str, came: list[Arrival], limit: int) -> Iterator[str]:
    for one in came:
        under_way = sum(1 for other in came if other.at <= one.at and (other.ended is None or other.ended > one.at))
        if under_way > limit:
            yield f"{under_way} attempts were under way at {name} at {one.at}; {limit} are allowed"
            return


# ---- time ------------------------------------------------------------------------------------------------------------


@check
def deadlines_hold(result: Result) -> Iterator[str]:
    for call in result.calls:
        options = _options(_stack(result, call), "Deadline")
        if options is None:
            continue
        seconds = min(options["seconds"], call.plan.seconds or options["seconds"])
        end = call.began + seconds
        for began, ended in call.waits:
            if ended > max(began, end) + LATE:
                yield f"call {call.plan.number} waited until {ended}, its deadline was {end}"


@check
def a_cancelled_call_ends(result: Result) -> Iterator[str]:
    for call in result.calls:
        if call.plan.cancel is not None and call.ended is not None:
            end = call.began + call.plan.cancel
            if call.ended > end + LATE:
                yield f"call {call.plan.number} was cancelled at {end} and ended at {call.ended}"
            if call.ended > end and call.how in ("error", "foreign"):
                yield f"call {call.plan.number} was cancelled at {end} and got {call.error!r}"


@check
def a_target_that_asks_for_a_wait_is_left_alone(result: Result) -> Iterator[str]:
    for place, told in enumerate(result.ledger.arrivals):
        if not told.asked_to_wait or told.told_at is None:
            continue
        stack = result.plan.stacks[told.stack]
        names = stack.names()
        if not names & {"Retry", "Failover", "Balance"}:
            continue
        until = told.told_at + told.asked_to_wait
        pause = told.told_at + min(told.asked_to_wait, _PAUSE_AT_MOST)
        for other in result.ledger.arrivals[place + 1 :]:
            if other.target != told.target or not told.told_at < other.at:
                continue
            if other.call == told.call and other.at < until - _SOON:
                yield f"call {told.call} asked {told.target} again at {other.at}, {until - other.at} s too soon"
            router = stack.router[0] if stack.router is not None and len(stack.targets) > 1 else None
            shared = router in ("Failover", "Balance") and not names & _QUEUES
            if shared and other.stack == told.stack and other.at < pause - _SOON:
                yield f"call {other.call} asked {told.target} at {other.at}, to be left alone until {pause}"


# ---- what the caller gets --------------------------------------------------------------------------------------------


@check
def only_errors_of_the_library_reach_a_caller(result: Result) -> Iterator[str]:
    for call in result.calls:
        if call.error is not None and not isinstance(call.error, LLMProdError):
            yield f"call {call.plan.number} got {call.error!r}"
        if call.how == "cancelled" and call.plan.cancel is None:
            yield f"call {call.plan.number} was cancelled by the library"


@check
def an_answer_is_right_or_an_error(result: Result) -> Iterator[str]:
    for call in result.calls:
        right = "".join(pieces(call.plan.number, call.plan.tokens))
        if call.plan.kind == "embed":
            if call.how == "ok" and call.embeddings != [vector(call.plan.number)]:
                yield f"call {call.plan.number} got {call.embeddings}"
        elif call.text == "sorry" and _stack(result, call).last_resort:
            continue
        elif call.how == "ok" and (call.text != right or not call.finished):
            yield f"call {call.plan.number} got {call.text!r}, which is not the answer {right!r}"
        elif not right.startswith(call.text):
            yield f"call {call.plan.number} was shown {call.text!r}, which does not begin {right!r}"
        if isinstance(call.error, StreamInterrupted) and call.error.partial_text != call.text:
            yield f"call {call.plan.number}: the error tells of {call.error.partial_text!r}, shown was {call.text!r}"


@check
def every_response_settles_once(result: Result) -> Iterator[str]:
    for call in result.calls:
        expected = 0 if call.response is None else 1
        if len(call.outcomes) != expected:
            yield f"call {call.plan.number} has {len(call.outcomes)} outcomes"
        kinds = {"ok": {"ok"}, "stopped": {"closed", "ok"}, "error": {"error"}, "cancelled": {"cancelled", "closed"}}
        for outcome in call.outcomes:
            if call.how in kinds and outcome.kind not in kinds[call.how] | (
                {"ok"} if call.finished or call.whole else set()
            ):
                yield f"call {call.plan.number} ended as {call.how}, its outcome was {outcome.kind}"


# ---- what is told ----------------------------------------------------------------------------------------------------


@check
def the_trace_tells_every_attempt(result: Result) -> Iterator[str]:
    names = {target.name for target in result.targets}
    for call in result.calls:
        entries = call.context.trace.entries
        for entry in entries:
            if entry.state not in _FINAL:
                yield f"call {call.plan.number} left an attempt at {entry.target} {entry.state}"
        told = Counter(entry.target for entry in entries if entry.state != "skipped" and entry.target in names)
        came = Counter(arrival.target for arrival in _arrivals(result, call))
        if "Chaos" in _stack(result, call).names():
            came += told - came  # an injected fault is an attempt that the target never saw
        if told != came:
            yield f"call {call.plan.number}: the trace tells {dict(told)}, the targets saw {dict(came)}"
        counted = call.context.call.attempts
        if counted != sum(told.values()):
            yield f"call {call.plan.number} counts {counted} attempts, its trace has {sum(told.values())}"
        good = [entry for entry in entries if entry.state == "ok"]
        if call.how == "ok" and call.text != "sorry" and len(good) != 1:
            yield f"call {call.plan.number} was answered by {len(good)} attempts"


def explain(plan: Plan, result: Result) -> str:
    """The whole story of a scenario, for the one who has to find out."""
    lines = [str(plan)]
    for call in result.calls:
        lines.append(f"\n{call.plan}\n  {call.began} to {call.ended}: {call.how} {call.error!r} {call.text!r}")
        lines += [f"  {line}" for line in str(call.context.trace).splitlines()]
    lines += [f"  {arrival}" for arrival in result.ledger.arrivals]
    for place, budgets in enumerate(result.budgets):
        lines += [f"  budget of stack {place}: {move}" for budget in budgets for move in budget.moves]
    return "\n".join(lines)

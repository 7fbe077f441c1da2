"""Spreads calls over several equal targets: by cost, by weight, by level of priority, or by what belongs together.

The mechanisms and their sources: :mod:`llmprod.mechanisms.peak_ewma`, :mod:`llmprod.mechanisms.balancing` and
:mod:`llmprod.mechanisms.sticky`. What it shares with other routers is in :mod:`llmprod.wrappers._router`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.context import Context
from llmprod.decisions import TargetChosen
from llmprod.errors import AllTargetsFailed, ContextTooLong, InvalidArgument, Rejected, UnsupportedParameter
from llmprod.mechanisms.balancing import BalancePolicy, PowerOfTwo, Priority, Weighted
from llmprod.mechanisms.call_weight import CallWeight
from llmprod.mechanisms.peak_ewma import PeakEwma, Pending, first_token_time
from llmprod.mechanisms.prefix_key import prefix_key
from llmprod.mechanisms.sticky import Sticky
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Outcome, Response
from llmprod.verdict import Action, Classifier, classify
from llmprod.wrappers._router import Router

__all__ = ["Balance"]

StickyBy: TypeAlias = Literal["session", "prefix"] | Callable[[Request, Context], str | None]


@runtime_checkable
class Gate(Protocol):
    """A wrapped provider that knows beforehand whether it would refuse a call."""

    @property
    def ready(self) -> bool:
        """A call would be let through now."""
        ...


class Balance(Router):
    """A provider over several that are as good as one another.

    The policy chooses among the targets that can be asked: one that asked for a wait, whose breaker is open, that lacks
    what the request needs or has failed in this call comes last. After a failure the next one is asked at once, by the
    rules of :class:`Failover`; no failure is left to a Retry while another target is at hand.

    Args:
        targets: one or more different providers.
        policy: ``p2c`` (power of two choices by peak EWMA of the first-token time: the default), ``weighted``,
            ``priority``, or a :class:`BalancePolicy`.
        weights: for ``weighted``, and within the levels of ``priority``: a share for each target; 0 for one that is
            only asked when others fail.
        priorities: for ``priority``: a level for each target; 0 first, the others when none above can be asked.
        sticky: keeps calls at one target that have in common their ``session`` tag, the ``prefix`` of their prompt, or
            what a function of request and context returns (None for calls that belong to nothing). Within a level of
            ``priority`` and by ``weights``. A target with far more calls than the others is passed over.
        decay: seconds in which a measurement loses most of its weight (default 10).
        penalty: seconds of first-token time that a failure counts as (default 10), doubling with each further one in a
            row up to 60; well above the usual first-token time.
        classify: what an error means (default :func:`llmprod.classify`).
        clock: time.
        random: chance.

    Attributes:
        loads: what calls cost at each target, in order.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    label: ClassVar[str] = "Balance"

    def __init__(
        self,
        *targets: Provider,
        policy: Literal["p2c", "weighted", "priority"] | BalancePolicy = "p2c",
        weights: Sequence[float] | None = None,
        priorities: Sequence[int] | None = None,
        sticky: StickyBy | None = None,
        decay: float = 10.0,
        penalty: float = 10.0,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        super().__init__(targets, classify=classify, clock=clock)
        self._places: dict[int, int] = {id(target): place for place, target in enumerate(targets)}
        if len(self._places) != len(targets):
            raise InvalidArgument("targets", "the same provider twice", "different providers")
        if sticky is not None and sticky not in ("session", "prefix") and not callable(sticky):
            raise InvalidArgument(
                "sticky", repr(sticky)[:40], "session, prefix, a function of request and context, or None"
            )
        _validate.seconds("decay", decay)
        _validate.seconds("penalty", penalty)
        self.loads: tuple[PeakEwma, ...] = tuple(PeakEwma(decay, penalty=penalty, clock=clock) for _ in targets)
        self.policy: BalancePolicy = _policy(policy, weights, priorities)
        self.policy.check(len(targets))
        self.sticky = sticky
        self._effective = self.policy if sticky is None else self._stuck(self.policy, weights)
        self._random = random
        self._weight = CallWeight()
        self._gates = [_gates(target) for target in targets]
        self._alike = all(target.capabilities == targets[0].capabilities for target in targets)

    def _stuck(self, policy: BalancePolicy, weights: Sequence[float] | None) -> BalancePolicy:
        inner = policy.within if isinstance(policy, Priority) else policy
        stuck = Sticky([target.name for target in self.targets], otherwise=inner, weights=weights)
        return Priority(policy.priorities, within=stuck) if isinstance(policy, Priority) else stuck

    @property
    def ready(self) -> bool:
        """At least one target can be asked now; routers put a target that is not ready last."""
        return any(all(gate.ready for gate in gates) for gates in self._gates)

    def order(self, request: Request, context: Context) -> Sequence[Provider]:
        """The policy's choice first."""
        targets = self.targets
        if len(targets) == 1:
            return targets
        failures = context.call.failures
        ready: list[int] = []
        failed: list[int] = []
        out: list[int] = []
        for place, target in enumerate(targets):
            if not self._can_be_asked(place, target, request, context):
                out.append(place)
            elif failures and id(target) in failures:
                failed.append(place)
            else:
                ready.append(place)
        if not ready:
            ready, failed = failed, []
        if not ready:
            return targets  # the router says why none of them can be
        key = self._key(request, context) if self.sticky is not None else None
        ordered = self._effective.order(ready, self.loads, self._random, key)
        first = ordered[0]
        context.decided(
            TargetChosen,
            targets[first].name,
            policy=self.policy.name if key is None else "sticky",
            of=len(ready),
            cost=self.loads[first].cost if key is None and self.policy.compares else None,
        )
        return [targets[place] for place in (*ordered, *failed, *out)]

    def _can_be_asked(self, place: int, target: Provider, request: Request, context: Context) -> bool:
        for gate in self._gates[place]:
            if not gate.ready:
                return False
        lane = context.lane
        return (
            id(target) not in context.call.silent
            and (lane is None or lane.other is None or lane.other.asking != id(target))
            and self._hold(target, context) is None
            and (self._alike or not target.capabilities.missing(request))
        )

    def _key(self, request: Request, context: Context) -> str | None:
        if self.sticky == "session":
            return context.tags.get("session")
        if self.sticky == "prefix":
            return prefix_key(request)
        key = self.sticky(request, context) if callable(self.sticky) else None
        if key is not None and not isinstance(key, str):
            raise InvalidArgument("sticky", f"a function that returned {type(key).__name__}", "one that returns a str")
        return key

    async def ask(self, target: Provider, request: Request, context: Context) -> Response:
        """Send, and measure: the first token, failures, and calls under way until their answers have ended."""
        size = self._weight.weigh(request)
        pending = self.loads[self._places[id(target)]].begin(size.weight)
        try:
            response = await target.send(request, context)
        except Exception as error:
            self._failed(pending, error)
            raise
        except BaseException:
            pending.given_up()
            raise
        written = 0.0
        if response.closed:
            usage = response.usage
            written = usage.total_output if usage is not None else len(response.text) / 4
        pending.began(first_token_time(pending.elapsed, size.prompt, written))
        response.on_close(lambda outcome: self._ended(pending, request, outcome))
        return response

    def _ended(self, pending: Pending, request: Request, outcome: Outcome) -> None:
        if outcome.kind == "error" and outcome.error is not None:
            self._failed(pending, outcome.error)
            return
        pending.end()
        if outcome.kind == "ok":
            self._weight.learn(request, outcome.usage)

    def _failed(self, pending: Pending, error: BaseException) -> None:
        if self.classify(error).action is not Action.FATAL and _of_the_target(error):
            pending.failed()
        else:
            pending.end()


def _policy(
    policy: str | BalancePolicy, weights: Sequence[float] | None, priorities: Sequence[int] | None
) -> BalancePolicy:
    if weights is not None and policy not in ("weighted", "priority"):
        raise InvalidArgument("weights", "weights", "None, unless the policy is weighted or priority")
    if priorities is not None and policy != "priority":
        raise InvalidArgument("priorities", "priorities", "None, unless the policy is priority")
    if isinstance(policy, BalancePolicy):
        return policy
    if policy == "p2c":
        return PowerOfTwo()
    if policy == "weighted":
        if weights is None:
            raise InvalidArgument("weights", "None", "a number for each target")
        return Weighted(weights)
    if policy == "priority":
        if priorities is None:
            raise InvalidArgument("priorities", "None", "a level for each target")
        return Priority(priorities, within=None if weights is None else Weighted(weights))
    raise InvalidArgument("policy", repr(policy)[:40], "p2c, weighted, priority, or a BalancePolicy")


def _gates(provider: Provider | None) -> tuple[Gate, ...]:
    """What tells beforehand that a target can't be asked: its breakers, and routers inside it."""
    found: list[Gate] = []
    while provider is not None:
        if isinstance(provider, Gate):
            found.append(provider)
        provider = getattr(provider, "inner", None)
    return tuple(found)


def _of_the_target(error: BaseException) -> bool:
    """The target was asked and this is what came of it; not a refusal on this side, nor one of the prompt's making."""
    if isinstance(error, AllTargetsFailed):
        return any(_of_the_target(one) for _, one in error.attempts)
    return not isinstance(error, (Rejected, UnsupportedParameter, ContextTooLong))

"""Asks the next target when one can't serve a call.

Stands inside Retry, so that attempts add up and never multiply. Candidates are filtered by capability before they
are asked (OpenRouter's ``require_parameters``, Vercel's ``has``), and a target that stayed silent is not asked again
in the same call.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmprod.context import Context
from llmprod.errors import AllTargetsFailed, ContextTooLong, InvalidArgument, Rejected, UnsupportedParameter
from llmprod.provider import Capabilities, Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier, Verdict, classify
from llmprod.wrapper import Phase

__all__ = ["Failover"]

_BACKOFF_ROOM = 2.0
"""Seconds before the deadline under which a failure is not left to a Retry, which might have no time left for it."""


class Failover:
    """A provider over several, asked in order until one answers.

    * ``FATAL`` errors (a wrong request, a content policy) go to the caller: another target would not help.
    * A transient failure (500, a reset) of a target is left to a Retry outside once, so that the preferred target
      gets its second chance; throttling, cuts and timeouts move on at once.
    * A prompt too long for one target goes only to targets known to have a larger context window.
    * A target that asked for a wait is not asked again before it is over; the others are.
    * When all fail, :class:`AllTargetsFailed` lists what each said.

    Args:
        targets: two or more providers, best first.
        classify: what an error means (default :func:`llmprod.classify`).

    Raises:
        InvalidArgument: no target, or something that is no provider.
    """

    phase: ClassVar[Phase] = Phase.ROUTE
    label = "Failover"

    def __init__(self, *targets: Provider, classify: Classifier = classify) -> None:
        if not targets:
            raise InvalidArgument("targets", "nothing", "at least one provider")
        for target in targets:
            if not isinstance(target, Provider):
                raise InvalidArgument("targets", type(target).__name__, "providers")
        self.targets = targets
        self.classify = classify
        self._capabilities = targets[0].capabilities
        for target in targets[1:]:
            self._capabilities |= target.capabilities

    @property
    def name(self) -> str:
        """The targets' names, best first."""
        return " | ".join(target.name for target in self.targets)

    @property
    def capabilities(self) -> Capabilities:
        """What at least one target can do."""
        return self._capabilities

    async def send(self, request: Request, context: Context) -> Response:
        """Return the first target's answer."""
        call = context.call
        failed: list[tuple[str, Exception, Verdict]] = []
        last: Exception | None = None
        asked = 0
        window = 0
        for target in self.targets:
            if id(target) in call.silent:
                continue
            if (lack := _lack(target, request, window)) is not None:
                reason, refusal = lack
                context.trace.skipped(target.name, context.elapsed, reason, error=type(refusal).__name__)
                failed.append((target.name, refusal, self.classify(refusal)))
                continue
            if (hold := _hold(target, context)) is not None:
                left, asked_for_it = hold
                context.trace.skipped(
                    target.name, context.elapsed, f"asked for {left:.3g} s more", error=type(asked_for_it).__name__
                )
                failed.append((target.name, asked_for_it, replace(self.classify(asked_for_it), retry_after=left)))
                continue
            if failed:
                context.check(target.name)
            try:
                return await target.send(request, context)
            except Exception as error:
                verdict = self.classify(error)
                if verdict.action is Action.FATAL:
                    raise
                failed.append((target.name, error, verdict))
                if isinstance(error, Rejected):
                    continue
                asked += 1
                last = error
                if isinstance(error, ContextTooLong):
                    window = max(window, target.capabilities.context_window or 2**62)
                if verdict.action is not Action.RETRY_SAME:
                    call.silent.add(id(target))
                    continue
                failures = call.failures[id(target)] = call.failures.get(id(target), 0) + 1
                if verdict.retry_after:
                    call.held[id(target)] = (context.clock.now() + verdict.retry_after, error)
                elif failures == 1 and not verdict.prefer_other and _can_back_off(context):
                    raise
        unfit = all(
            isinstance(error, (UnsupportedParameter, ContextTooLong)) for _, error, _ in failed if error is not last
        )
        if last is not None and asked == 1 and unfit:
            raise last  # the only target that could have served the request says why it did not
        verdict = _summary([verdict for *_, verdict in failed])
        raise AllTargetsFailed(tuple((name, error) for name, error, _ in failed), verdict)

    async def aclose(self) -> None:
        """Close all targets."""
        failure: Exception | None = None
        for target in self.targets:
            try:
                await target.aclose()
            except Exception as error:  # noqa: BLE001 - the others are to be closed all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def __repr__(self) -> str:
        return f"Failover({', '.join(map(repr, self.targets))})"


def _can_back_off(context: Context) -> bool:
    """A Retry stands outside, and has attempts and time left."""
    remaining = context.remaining
    return context.call.retries_left > 0 and (remaining is None or remaining > _BACKOFF_ROOM)


def _lack(target: Provider, request: Request, window: int) -> tuple[str, Exception] | None:
    """Tell why ``target`` can't serve ``request``, or None if it may."""
    missing = target.capabilities.missing(request)
    if missing:
        return f"lacks {', '.join(missing)}", UnsupportedParameter(target.name, missing)
    if window and (target.capabilities.context_window or 0) <= window:
        return "context window not known to be larger", ContextTooLong(provider=target.name, detail="not asked")
    return None


def _hold(target: Provider, context: Context) -> tuple[float, Exception] | None:
    """Tell how many seconds longer ``target`` wants to be left alone, and the error that said so."""
    until, error = context.call.held.get(id(target), (0.0, None))
    left = until - context.clock.now()
    return (left, error) if error is not None and left > 1e-6 else None


def _summary(verdicts: list[Verdict]) -> Verdict:
    """What the failure of all means: another round may help if at least one target may be asked again."""
    again = [verdict for verdict in verdicts if verdict.action is Action.RETRY_SAME]
    if not again:
        return Verdict(action=Action.RETRY_OTHER)
    soonest = min(again, key=lambda verdict: verdict.retry_after or 0.0)
    return replace(soonest, throttled=all(verdict.throttled for verdict in again), health="unknown")

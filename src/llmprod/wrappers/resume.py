"""Goes on after a stream broke in the middle, in the ways that the application allows, with the seam in plain sight.

Without this wrapper a stream that breaks after content was shown raises :class:`StreamInterrupted` with the partial
answer. The plans and their sources are in :mod:`llmprod.mechanisms.resume_plan`, the stream that goes on in
:mod:`llmprod.wrappers._resuming`.

Stands outside Retry: what a plan asks is an attempt like any other, with retries, failover, limits and breakers, and it
needs leave of the call's cap, its deadline and the retry budget. Each hop's own response is settled by itself, so that
a breaker sees the hop that broke as a failure, whatever becomes of the answer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import ClassVar, get_args

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.resume_plan import Plan
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves
from llmprod.wrappers._resuming import ResumingSource

__all__ = ["Resume"]

_PLANS = get_args(Plan)


class Resume(Wrapper):
    """After a break in the middle of a stream, go on by the first of ``plans`` that fits.

    Streams of a :class:`GenerateRequest` alone; whole answers, embeddings and decorated functions pass untouched. If no
    plan fits, or what it asked failed, the stream's own break is raised, never the plan's: as
    :class:`StreamInterrupted` with everything that was shown, and notes on its cause that say why nothing helped.

    Once another target has gone on, ``provider``, ``model``, ``request_id`` and ``headers`` of the response are that
    target's; ``usage`` is the sum over all of them, ``estimated`` where the one that broke did not tell.

    Args:
        plans: ways to go on, first choice first: :class:`ContinueText`, :class:`SynthesizeToolUse`,
            :class:`TruncateBeforeTool`, :class:`Restart`.
        hold: hold back as many characters of the answer (of any kind) before it is handed out (default 0). A break
            among them is not a break: the request is sent again, and the reader sees nothing of it.
        resumes: how often a call may ask again, for ``hold`` and ``plans`` together (default 1). Ending an answer
            without asking is not counted.
        classify: what an error means (default :func:`llmprod.classify`); a ``FATAL`` break is not resumed.

    Raises:
        InvalidArgument: neither a plan nor ``hold``, or an option is out of range.
    """

    phase: ClassVar[Phase] = Phase.RESUME

    def __init__(self, *plans: Plan, hold: int = 0, resumes: int = 1, classify: Classifier = classify) -> None:
        for plan in plans:
            if not isinstance(plan, _PLANS):
                names = ", ".join(f"{kind.__name__}()" for kind in _PLANS)
                raise InvalidArgument("plans", repr(plan)[:60], names)
        _validate.whole("hold", hold, 0)
        _validate.whole("resumes", resumes, 0)
        if not plans and not hold:
            raise InvalidArgument("plans", "neither a plan nor hold", "at least one plan, or characters to hold back")
        self.plans: tuple[Plan, ...] = plans
        self.hold = hold
        self.resumes = resumes
        self.classify = classify

    def wrap(self, inner: Provider) -> Provider:
        """Resume ``inner``'s streams."""
        return ResumeProvider(inner, self)

    def __repr__(self) -> str:
        hold = (f"hold={self.hold}",) if self.hold else ()
        return f"Resume({', '.join((*(plan.label for plan in self.plans), *hold))})"


class ResumeProvider(WrappedProvider):
    wrapper: Resume

    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)
        if not request.stream or not isinstance(request, GenerateRequest) or response.closed:
            return response
        source = ResumingSource(self, request, context, response)
        if self.wrapper.hold:
            await source.hold(self.wrapper.hold)
        hop = source.hop
        answer = Response(
            provider=hop.provider, context=context, request=request, model=hop.model, source=source,
            request_id=hop.request_id, dropped=hop.dropped, headers=hop.headers,
        )  # fmt: skip
        answer.deployment = hop.deployment
        source.answer = weakref.ref(answer)  # not the response itself: its collection must not wait for a cycle's
        return answer

    def put_aside(self, hop: Response, error: Exception, request: Request, context: Context) -> set[int]:
        """Have routers pass over the target that broke, where another can serve ``request``; return whom."""
        verdict = self.wrapper.classify(error)
        if verdict.action is Action.RETRY_SAME and not verdict.prefer_other:
            return set()
        silent = context.call.silent
        aside: set[int] = set()
        for targets in _routed(self.inner):
            broke = {id(target) for target in targets if _serves(target, hop)} - silent
            able = {id(target) for target in targets if not target.capabilities.missing(request)} - silent
            if able - broke:
                aside |= broke
        silent |= aside
        return aside


def _serves(target: Provider, hop: Response) -> bool:
    return any(getattr(leaf, "identity", id(leaf)) == hop.deployment for leaf in leaves(target))


def _routed(provider: Provider) -> Iterator[Sequence[Provider]]:
    """Yield the targets of every router within."""
    targets: Sequence[Provider] = getattr(provider, "targets", ())
    if targets:
        yield targets
    inner: Provider | None = getattr(provider, "inner", None)
    for child in targets if inner is None else (inner,):
        yield from _routed(child)

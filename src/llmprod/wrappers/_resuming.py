"""The stream that :class:`Resume` hands out: the events of one response after the other, as those of one answer.

Each hop's response is read as a response, so that it settles by itself; what a plan needs to know of the answer is kept
beside it. How a continuation is joined to what was shown is in :mod:`llmprod.mechanisms.splice`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmprod.context import Context
from llmprod.decisions import ResumeRefused, StreamHeld, StreamResumed
from llmprod.errors import CallError, ProtocolError, StreamInterrupted
from llmprod.events import CONTENT, Event, Finish, PartDone, Reset, Seam, ThinkingDelta, UsageUpdate
from llmprod.mechanisms.resume_plan import Plan, Step, step
from llmprod.mechanisms.shown import Shown, characters
from llmprod.mechanisms.splice import Splice
from llmprod.request import GenerateRequest
from llmprod.response import Response
from llmprod.types import Text, Thinking
from llmprod.usage import Usage
from llmprod.verdict import Action
from llmprod.wrappers._unseen import unseen

if TYPE_CHECKING:
    from llmprod.wrappers.resume import ResumeProvider

__all__ = ["ResumingSource"]


class ResumingSource:
    """The events of one response after the other, as those of one answer."""

    __slots__ = (
        "_before", "_by", "_context", "_failure", "_finished", "_left", "_over", "_owner", "_ready", "_request",
        "_shown", "_spent", "_splice", "_told", "answer", "hop",
    )  # fmt: skip

    def __init__(self, owner: ResumeProvider, request: GenerateRequest, context: Context, hop: Response) -> None:
        self._owner = owner
        self._request = request
        self._context = context
        self.hop = hop
        self.answer: weakref.ref[Response] | None = None
        self._ready: deque[Event] = deque()
        self._shown = Shown()
        self._splice: Splice | None = None
        self._spent: Usage | None = None
        self._told = 0  # tokens that earlier hops of this answer took
        self._before = 0  # pieces that were shown before this hop
        self._by: Plan | None = None  # the plan that the current hop is by
        self._left = owner.wrapper.resumes
        self._finished = False
        self._over = False
        self._failure: Exception | None = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def poll(self) -> Event | None:
        """Return the next event if it is there already."""
        if self._ready:
            return self._ready.popleft()
        if self._spent is not None or (event := self.hop.poll()) is None:
            return None
        self._show(event)
        return event

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._over:
                raise StopAsyncIteration
            broke: StreamInterrupted | None = None
            try:
                event = await self.hop.__anext__()
            except StopAsyncIteration:
                self._over = True
                continue
            except StreamInterrupted as error:
                broke = error
            else:
                if self._spent is None:
                    self._show(event)
                    return event
                self._take(event)
                continue
            await self._go_on(_cause(broke))  # outside the except block, so that its errors have no false context
        return self._ready.popleft()

    def _show(self, event: Event) -> None:
        self._shown.add(event)
        if type(event) is Finish:
            self._finished = True

    def _hand_out(self, event: Event) -> None:
        self._show(event)
        self._ready.append(event)

    def _take(self, event: Event) -> None:
        """Take an event of a later hop."""
        assert self._spent is not None
        if isinstance(event, UsageUpdate):
            self._hand_out(UsageUpdate(self._spent + event.usage))
            return
        for joined in self._splice.feed(event) if self._splice is not None else (event,):
            if type(joined) is Finish and self.hop.usage is None:
                self._hand_out(UsageUpdate(self._spent + self._used(None)))
            self._hand_out(joined)

    # ---- before anything is shown -----------------------------------------------------------------------------------

    async def hold(self, least: int) -> None:
        """Read until ``least`` characters are there; what breaks before is asked again."""
        held: list[Event] = []
        size = 0
        while size < least:
            try:
                event = await self.hop.__anext__()
            except StopAsyncIteration:
                break
            except StreamInterrupted as interrupted:
                error = _cause(interrupted)
            else:
                held.append(event)
                size += characters(event)
                if type(event) is Finish:
                    break
                continue
            if self._owner.wrapper.classify(error).action is Action.FATAL or not self._leave():
                self._context.decided(ResumeRefused, self.hop.provider, reason="no leave to ask again")
                unseen(error, self._context)
                raise error
            self._context.decided(StreamHeld, self.hop.provider, events=len(held))
            unseen(error, self._context)
            broke, pieces = self.hop, sum(characters(event) > 0 for event in held)
            held.clear()
            size = 0
            self.hop = await self._ask(self._request, error)
            self._left -= 1
            self._spend(self._used(broke.usage or getattr(error, "usage", None), pieces))
        for event in held:
            if self._spent is None:
                self._hand_out(event)
            else:
                self._take(event)

    # ---- after a break ----------------------------------------------------------------------------------------------

    async def _go_on(self, error: Exception) -> None:
        """Queue what follows a break, or note the failure that ends the answer."""
        context, wrapper, hop = self._context, self._owner.wrapper, self.hop
        refused: list[str] = []
        if self._finished:
            refused.append("the answer was complete")
        elif wrapper.classify(error).action is Action.FATAL:
            refused.append("the break is final")
        else:
            # A plan whose hop has just broken before it added anything is the last to be tried again.
            fruitless = self._by if self._shown.pieces == self._before else None
            for plan in sorted(wrapper.plans, key=lambda plan: plan is fruitless):
                reason = await self._try(plan, error)
                if reason is None:
                    return
                refused.append(f"{plan.label}: {reason}")
        reason = "; ".join(refused) or "no plan"
        context.decided(ResumeRefused, hop.provider, reason=reason)
        error.add_note(f"not resumed: {reason}")
        if self._spent is not None and not self._finished:
            used = self._used(hop.usage or getattr(error, "usage", None))
            self._hand_out(UsageUpdate(self._spent + used))
        self._failure = error

    async def _try(self, plan: Plan, error: Exception) -> str | None:
        """Go on by ``plan``; return why not where that can't be."""
        context, hop, name = self._context, self.hop, type(error).__name__
        prefill = self._owner.inner.capabilities.prefill
        reported = self._told + (hop.usage.total_output if hop.usage is not None else 0)
        todo = step(plan, self._shown, self._request, prefill=prefill, reported=reported)
        if isinstance(todo, str):
            return todo
        if todo.request is None:
            context.decided(StreamResumed, hop.provider, plan=plan.label, error=name)
            self._account(hop, error)
            self._begin(Seam(hop.provider, name, todo.dropped), ())
            for event in todo.ending:
                self._hand_out(event)
            self._over = True
            return None
        if not self._leave():
            return "no leave to ask again"
        try:
            first = await self._open(todo, error)
        except Exception as failure:  # noqa: BLE001 - whatever a plan fails of, the reader is told of the break
            if isinstance(failure, StreamInterrupted):
                failure = _cause(failure)
            error.add_note(
                f"{plan.label} failed: {failure if isinstance(failure, CallError) else type(failure).__name__}"
            )
            return type(failure).__name__
        self._left -= 1
        self._by = plan
        context.decided(StreamResumed, self.hop.provider, plan=plan.label, error=name)
        self._account(hop, error)
        if todo.reset:
            self._told = 0
            self._splice = None
            self._begin(Reset(self.hop.provider, name), first)
        else:
            kept = self._shown.without(todo.dropped)
            self._splice = Splice(kept, todo.prefix, todo.space)
            self._begin(Seam(self.hop.provider, name, todo.dropped), first)
        return None

    def _begin(self, seam: Seam | Reset, events: Sequence[Event]) -> None:
        assert self._spent is not None
        self._hand_out(seam)
        self._hand_out(UsageUpdate(self._spent))
        for event in events:
            self._take(event)
        answer = self.answer() if self.answer is not None else None
        if answer is not None:
            hop = self.hop
            answer.provider, answer.model, answer.request_id = hop.provider, hop.model, hop.request_id
            answer.headers, answer.deployment = hop.headers, hop.deployment
            answer.dropped = (*answer.dropped, *(name for name in hop.dropped if name not in answer.dropped))

    def _leave(self) -> bool:
        return self._left > 0 and self._context.extra_attempt("resume", self._owner.name)

    async def _open(self, todo: Step, error: Exception) -> list[Event]:
        """Ask, make the answer the current hop, and return its events up to its first content."""
        assert todo.request is not None
        hop = await self._ask(todo.request, error)
        first: list[Event] = []
        async for event in hop:  # they are there: an open response has its first content
            first.append(event)
            if type(event) in CONTENT:
                break
        if todo.prefix and _thinks(first[-1]):
            # What follows may be the answer from its start, or text that the server takes for reasoning.
            self._spend(hop.usage or _estimate(self._request, 1))
            await hop.aclose()
            raise ProtocolError(provider=hop.provider, detail="it thought instead of going on", in_stream=True)
        self.hop = hop
        return first

    async def _ask(self, request: GenerateRequest, error: Exception) -> Response:
        call = self._context.call
        sent = call.sent
        aside = self._owner.put_aside(self.hop, error, request, self._context)
        try:
            return await self._owner.inner.send(request, self._context)
        except BaseException:
            call.silent -= aside  # the next plan may have nobody else to ask
            raise
        finally:
            call.give_back(sent)  # where it was refused or cancelled before a provider was asked

    def _account(self, hop: Response, error: Exception) -> None:
        """Count what a hop that broke has used."""
        used = self._used(hop.usage or getattr(error, "usage", None))
        self._told += used.total_output
        self._before = self._shown.pieces
        self._spend(used)

    def _spend(self, used: Usage) -> None:
        self._spent = used if self._spent is None else self._spent + used

    def _used(self, told: Usage | None, pieces: int | None = None) -> Usage:
        """Usage of a hop that broke or did not tell: what it told, and no less than what was seen of it."""
        seen = self._shown.pieces - self._before if pieces is None else pieces
        if told is None:
            return _estimate(self._request, seen)
        if told.total_output >= seen:
            return told
        return replace(told, output=told.output + seen - told.total_output, estimated=True)

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the current response."""
        await self.hop.aclose()

    def abandon(self) -> None:
        """Release the current response without awaiting."""
        self.hop.abandon()


def _cause(error: Exception) -> Exception:
    """What broke a stream, however many layers have told of it."""
    while isinstance(error, StreamInterrupted) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _thinks(event: Event) -> bool:
    return isinstance(event, ThinkingDelta) or (isinstance(event, PartDone) and isinstance(event.value, Thinking))


def _estimate(request: GenerateRequest, pieces: int) -> Usage:
    """A piece of the answer is a token at least; the prompt is taken as a token for four characters."""
    letters = sum(len(part.text) for message in request.messages for part in message.parts if isinstance(part, Text))
    return Usage(input=max(1, letters // 4), output=pieces, estimated=True)

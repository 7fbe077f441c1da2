"""One call upstream for all equal calls that are under way: its events in a buffer that each of them reads from.

The flight runs in a task that is nobody's child, so that whoever began it may be cancelled, or stop reading, while the
others go on; it is given up when its last reader has gone. Go's `singleflight` is the model for whole answers; what it
lacks is added: streams, and a waiter that leaves. A slow reader holds nobody up: upstream is read at the pace of the
fastest, a little ahead of it.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

import anyio

from llmprod._loops import post, running_loop, spawn
from llmprod.context import Context
from llmprod.errors import LLMProdError, ReadError, StreamInterrupted
from llmprod.events import Event, Finish, PartDone, Start, TextDelta, ToolCallDone, UsageUpdate
from llmprod.mechanisms.shown import characters
from llmprod.response import Response
from llmprod.types import Text, ToolCall
from llmprod.wrappers._cache_entry import Entry
from llmprod.wrappers._flight_reader import Reader

__all__ = ["Flight"]

_AHEAD = 64
"""Events that are read before somebody wants them."""
_EVENT = 64
"""What an event takes beside its text, in characters; an estimate."""


class Flight:
    """One call upstream and its readers.

    Args:
        context: the call's context; the flight has a copy of its own, whose deadline is its readers' latest.
        fetch: makes the call and fills the flight; what it raises is every reader's.
        landed: is told once that nobody can join any more.
        buffer: characters that are kept for readers; a longer answer is neither joined nor stored.

    Attributes:
        hop: the answer, once it is committed.
        entry: the stored answer that stands in for it.
        entry_stale: that is past its time to live.
        anew: it was begun to get a new answer, not for want of a stored one.
        superseded: such a one has begun since, so that what this one gets is not stored.
        streamed: the call asks for a stream.
        failure: what the flight ended in.
        over: it has ended.
        outgrown: the answer is longer than the buffer.
    """

    __slots__ = (
        "__weakref__", "_base", "_buffer", "_eager", "_ended", "_fetch", "_finished", "_front", "_landed", "_loop",
        "_news", "_pinned", "_readers", "_room", "_size", "_whole", "anew", "context", "entry", "entry_stale",
        "events", "failure", "hop", "outgrown", "over", "scope", "streamed", "superseded",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        fetch: Callable[[Flight], Awaitable[None]],
        landed: Callable[[Flight], None],
        *,
        buffer: int,
    ) -> None:
        self.context = context.but()
        self.hop: Response | None = None
        self.entry: Entry | None = None
        self.entry_stale = False
        self.events: list[Event] = []
        self.anew = context.cache == "refresh"
        self.superseded = self.streamed = False
        self.failure: BaseException | None = None
        self.over = False
        self.outgrown = False
        self.scope = anyio.CancelScope()
        self._fetch = fetch
        self._landed = landed
        self._buffer = buffer
        self._pinned = False
        self._eager = False
        self._loop = running_loop()
        self._readers: set[Reader] = set()
        self._base = 0  # events that were dropped from the buffer's beginning
        self._front = 0  # the place of the fastest reader
        self._size = 0
        self._whole = False
        self._finished = False
        self._news: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._ended = anyio.Event()

    @property
    def pinned(self) -> bool:
        """It goes on without any reader."""
        return self._pinned

    @property
    def loop(self) -> object:
        """The event loop that it runs on."""
        return self._loop

    def pin(self, seconds: float) -> None:
        """Let it go on without any reader, for so many seconds at most."""
        self._pinned = self._eager = True
        self.scope.deadline = anyio.current_time() + seconds

    def begin(self) -> None:
        """Start it; called on the event loop."""
        spawn(self._loop, self._run, self._end)

    async def _run(self) -> None:
        try:
            with self.scope:
                await self._fetch(self)
                self._whole = True
        except Exception as error:  # noqa: BLE001 - raised again by each reader
            self.failure = error
        except BaseException as error:
            # Out of a task that is nobody's child it would end trio's run, and tell asyncio's caller nothing.
            if isinstance(error, (BaseExceptionGroup, anyio.get_cancelled_exc_class())) or not self._readers:
                raise
            self.failure = error
        finally:
            self._end()

    def _end(self) -> None:
        """Say that it is over. Called again when its task has ended, which may have been cancelled before it began."""
        if self.over:
            return
        if not self._whole and self.failure is None:
            self.failure = ReadError(detail="the call that was shared was given up")
        self.over = True
        self._landed(self)
        self.tell()
        self._ended.set()

    def stand_in(self, entry: Entry, *, stale: bool) -> None:
        """Answer with what is stored."""
        self.entry, self.entry_stale = entry, stale

    # ---- the answer's side -------------------------------------------------------------------------------------------

    async def take(self, hop: Response) -> None:
        """Take all events of ``hop``, at the readers' pace where it is a stream."""
        self.hop = hop
        if hop.closed:
            self.events = _events_of(hop)
            return
        self.tell()
        try:
            while True:
                event = hop.poll() or await hop.__anext__()
                self._add(event)
                while len(self.events) + self._base - self._front >= _AHEAD and not self._eager:
                    self._room = self._room or anyio.Event()
                    await self._room.wait()
        except StopAsyncIteration:
            pass
        except StreamInterrupted as broke:
            cause = broke.__cause__
            while isinstance(cause, StreamInterrupted):
                cause = cause.__cause__
            raise (cause if isinstance(cause, Exception) else broke) from None
        finally:
            await hop.aclose()

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._size += _EVENT + _length(event)
        if type(event) is Finish:
            self._finished = True
        if self._size > self._buffer:
            self._outgrow()
        self.tell()

    def _outgrow(self) -> None:
        """Keep no more than the buffer holds; who is so far behind the fastest reader is cut off."""
        if not self.outgrown:
            self.outgrown = True
            self._landed(self)
            for reader in [reader for reader in self._readers if reader.whole]:
                reader.cut = True  # it would need all of it
                self._readers.discard(reader)
            self._eager = self._pinned
            if not self._readers and not self._pinned:
                self.scope.cancel()
        end = self._base + len(self.events)
        self._drop(min((reader.place for reader in self._readers), default=end) - self._base)
        if self._size > self._buffer:
            size, count = self._size, 0
            while size > self._buffer // 2 and count < self._front - self._base:
                size -= _EVENT + _length(self.events[count])
                count += 1
            self._drop(count)

    def _drop(self, count: int) -> None:
        if count > 0:
            self._size -= sum(_EVENT + _length(event) for event in self.events[:count])
            del self.events[:count]
            self._base += count

    # ---- the readers' side -------------------------------------------------------------------------------------------

    def join(self, context: Context, *, leader: bool = False) -> Reader:
        """Return a reader that begins at the beginning."""
        own = self.context
        if not leader and own.deadline is not None and (context.deadline is None or context.deadline > own.deadline):
            # Its own copy, which nobody else holds: there is time for what the latest reader has time for.
            object.__setattr__(own, "deadline", context.deadline)
        reader = Reader(self, leader)
        self._readers.add(reader)
        return reader

    def want_all(self, reader: Reader | None = None) -> None:
        """Read to the end without waiting for readers: ``reader`` wants the answer whole."""
        if reader is not None:
            reader.whole = True
        self._eager = True
        self.make_room()

    def leave(self, reader: Reader) -> bool:
        """Take a reader away; return whether the flight ends with it."""
        if reader not in self._readers:
            return False
        self._readers.discard(reader)
        if self._readers or self._pinned or self.over:
            return False
        if self._finished:
            self.want_all()  # the answer is there; what is left is to store it
        else:
            self._landed(self)
            self.scope.cancel()
        return True

    def give_up(self) -> None:
        """End it, whoever reads; from any thread."""
        post(self._loop, self.scope.cancel)

    def left_behind(self, reader: Reader) -> None:
        """Take away a reader that was garbage-collected, in whichever thread."""
        post(self._loop, self.leave, reader)

    async def ended(self) -> None:
        """Wait for the end, in spite of a cancellation, so that nothing is left when a call has ended."""
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def news(self) -> None:
        """Wait for something new."""
        self._news = self._news or anyio.Event()
        await self._news.wait()

    def tell(self) -> None:
        """Wake everybody who waits for something new."""
        if self._news is not None:
            self._news.set()
            self._news = None

    def make_room(self) -> None:
        """Wake the flight, if it waits for its readers."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def lost(self, reader: Reader) -> bool:
        """The buffer does not hold any more what the reader has not read yet."""
        return reader.cut or reader.place < self._base

    def too_long(self) -> ReadError:
        """The error of a reader that was too slow for the buffer."""
        return ReadError(detail="fell too far behind the others that read the same answer", in_stream=True)

    def error(self, *, leader: bool) -> BaseException:
        """Return the failure, for the leader as it is, for each other reader a copy to carry a trace of its own."""
        assert self.failure is not None
        if not leader and not isinstance(self.failure, Exception):
            return ReadError(detail=f"the call that was shared ended in {type(self.failure).__name__}")
        if leader or not isinstance(self.failure, LLMProdError):
            return self.failure
        told = copy.copy(self.failure)
        told.__cause__ = self.failure
        return told


def _length(event: Event) -> int:
    if isinstance(event, PartDone):
        return len(getattr(event.value, "data", None) or getattr(event.value, "text", None) or "")
    return len(event.call.arguments) if isinstance(event, ToolCallDone) else characters(event)


def _events_of(response: Response) -> list[Event]:
    """Return the events of an answer that is whole."""
    if response._replay is not None:
        return list(response._replay)  # all of them, whoever has iterated over it meanwhile
    events: list[Event] = [Start(response.model, response.response_id)]
    for place, part in enumerate(response.parts):
        if isinstance(part, Text) and not part.meta:
            events.append(TextDelta(part.text, place))
        elif isinstance(part, ToolCall):
            events.append(ToolCallDone(part, place))
        else:
            events.append(PartDone(part, place))
    if response.usage is not None:
        events.append(UsageUpdate(response.usage))
    if response.finish_reason is not None:
        events.append(Finish(response.finish_reason, response.raw_finish))
    return events

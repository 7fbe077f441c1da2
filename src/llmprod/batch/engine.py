"""Runs a batch: one background task takes items, answers a bounded number at once, and keeps results for the reader.

The background task owns the calls, so that nothing stays open across a yield. It is no child of the reader's task: it
ends when the input does, or when the reader closes, is cancelled or lets go. The one bound is a window of items that
were taken and not yet given out: it holds back the input when the reader stops, and until it is full an early slow item
holds up no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, cast

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from llmprod._loops import post, running_loop, spawn
from llmprod.batch.checkpoint import Checkpoint
from llmprod.batch.codec import digest, encoded
from llmprod.batch.inputs import END, Feed
from llmprod.batch.meter import Meter
from llmprod.batch.records import BatchItem, BatchResult, item_of
from llmprod.batch.signal import Signal
from llmprod.clock import Clock
from llmprod.errors import ClientClosed, ForkedProcess, InvalidArgument, InvalidOutput
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.trace import Trace

__all__ = ["WINDOW", "Engine", "Settings"]

WINDOW = 4
"""Items taken and not yet given out, for each call at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a batch is run.

    Attributes:
        make: an item's request and the options of its call.
        call: asks the client's stack.
        model: what the answers depend on beside the request.
        concurrency: calls at once, asked again and again, since an engine knows its size once it has started.
        ordered: give out in the input's order.
        stop_at_error: take nothing more once an item has failed.
        checkpoint: path of the file; None for none.
        clock: time.
        tick: seconds after which progress is shown anew though nothing ended; None for never.
    """

    make: Callable[[BatchItem], tuple[Request, Mapping[str, Any]]]
    call: Callable[[Request, Mapping[str, Any]], Awaitable[Response]]
    model: str
    concurrency: Callable[[], int]
    ordered: bool
    stop_at_error: bool
    checkpoint: str | None
    clock: Clock
    tick: float | None


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    key: str
    request: Request
    options: Mapping[str, Any]
    digest: str


class Engine:
    """One run.

    Attributes:
        news: set when there may be something to give out, or when the run has ended.
        done: nothing runs any more.
        failure: what ended the run early.
    """

    def __init__(self, feed: Feed, meter: Meter, settings: Settings) -> None:
        self.news: Signal = Signal()
        self.done: bool = False
        self.failure: BaseException | None = None
        self.meter: Meter = meter
        self.settings: Settings = settings
        self._feed = feed
        self._room = Signal()
        self._results: dict[int, BatchResult] = {}
        self._taken = 0
        self._given = 0
        self._stopped = False
        self._closed = False
        self._checkpoint: Checkpoint | None = None
        self._keys: set[str] = set()
        self._scope: anyio.CancelScope | None = None
        self._loop: Any = None

    # ---- the reader's side ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start, at the first call."""
        if self._scope is None and not self.done:
            self._scope = anyio.CancelScope()
            self._loop = running_loop()
            self.meter.begin()
            spawn(self._loop, self._own)

    @property
    def window(self) -> int:
        """Items that may be taken and not yet given out."""
        return WINDOW * self.settings.concurrency()

    @property
    def room(self) -> int:
        """Items that may be taken now."""
        return max(0, self.window - (self._taken - self._given))

    def take(self) -> BatchResult | None:
        """Give out what is next, if it is there."""
        if not self._results:
            return None
        place = self._given if self.settings.ordered else next(iter(self._results))
        result = self._results.pop(place, None)
        if result is not None:
            self._given += 1
            self._room.set()
        return result

    async def next(self) -> BatchResult | None:
        """Wait for what is next; None at the end.

        Raises:
            BaseException: what ended the run early.
        """
        self.begin()
        while True:
            result = self.take()
            if result is not None:
                return result
            if self.done:
                self.check()
                return None
            await self.news.wait()

    def check(self) -> None:
        """Raise what ended the run early, once."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        """Cancel what is in flight and wait until it is gone; results that were not given out are dropped."""
        self._closed = self._stopped = True
        self._results.clear()
        if self._scope is None:
            self.done = True
        while not self.done:
            cast("anyio.CancelScope", self._scope).cancel()
            with anyio.CancelScope(shield=True):
                await self.news.wait()

    def abandon(self) -> None:
        """Cancel without waiting, from any thread; for a reader that was garbage-collected."""
        scope, loop = self._scope, self._loop
        if scope is None or self.done:
            return
        self._closed = self._stopped = True
        post(loop, scope.cancel)  # a loop that has ended took its tasks with it

    # ---- the background task ----------------------------------------------------------------------------------------

    async def _own(self) -> None:
        try:
            with cast("anyio.CancelScope", self._scope):
                await self._open()
                async with anyio.create_task_group() as outer:
                    if self.settings.tick is not None:
                        outer.start_soon(self._tick, self.settings.tick)
                    async with anyio.create_task_group() as group:
                        await self._pump(group)
                    outer.cancel_scope.cancel()
        except BaseException as error:
            failure = _leaf(error)
            if failure is None:
                raise  # cancelled from outside: the event loop is ending
            self._failed(failure)
        finally:
            self._end()

    def _failed(self, error: BaseException) -> None:
        if self.failure is None and not self._closed:
            self.failure = error

    async def _open(self) -> None:
        path = self.settings.checkpoint
        if path is not None:
            await anyio.to_thread.run_sync(self._load, path)

    def _load(self, path: str) -> None:
        self._checkpoint = Checkpoint(path)
        if self.done:  # asyncio's own cancellation doesn't wait for threads
            self._checkpoint.close()

    def _end(self) -> None:
        self.done = True
        try:
            if self._checkpoint is not None:
                self._checkpoint.close()
            self.meter.show(last=True)
        except Exception as error:  # noqa: BLE001 - the reader must be told, by whatever way
            self._failed(error)
        finally:
            self.news.set()

    async def _tick(self, seconds: float) -> None:
        while True:
            await self.settings.clock.sleep(seconds)
            self.meter.show()

    async def _pump(self, group: TaskGroup) -> None:
        try:
            while True:
                while not self.room and not self._stopped:
                    await self._room.wait()
                if self._stopped:
                    return
                try:
                    value = await self._feed.next()
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # noqa: BLE001 - the reader gets it after what came before
                    self._failed(error)
                    return
                if value is END:
                    return
                job = self._job(value)
                while job is not None and self.meter.in_flight >= self.settings.concurrency() and not self._stopped:
                    await self._room.wait()
                if job is not None and not self._stopped:
                    self.meter.in_flight += 1
                    group.start_soon(self._run, job)
        finally:
            await self._feed.close()

    def _job(self, value: object) -> _Job | None:
        """What is to be sent for an item; None where it has its result already."""
        index, self._taken = self._taken, self._taken + 1
        item = item_of(value)
        key = str(index) if item.key is None else item.key
        try:
            if self._checkpoint is not None and key in self._keys:
                raise InvalidArgument("key", "one that an earlier item has", "another key for each item of a run")
            request, options = self.settings.make(item)
            if self._checkpoint is None:
                return _Job(index, key, request, options, "")
            self._keys.add(key)
            told = digest(request, self.settings.model)
            stored = self._checkpoint.find(key, told, index)
            result = None if stored is None else _parsed(stored, request)
        except Exception as error:  # noqa: BLE001 - one item's failure stops no other
            self._settle(BatchResult(index=index, key=key, error=error, cost=Decimal(0)), "")
            return None
        if result is None or not result.ok:
            return _Job(index, key, request, options, told)
        self._settle(result, told)
        return None

    async def _run(self, job: _Job) -> None:
        try:
            result = await self._answer(job)
        finally:
            self.meter.in_flight -= 1
        self._settle(result, job.digest)

    async def _answer(self, job: _Job) -> BatchResult:
        clock = self.settings.clock
        started = clock.now()
        try:
            response = await self.settings.call(job.request, job.options)
            await response.read()
        except (ClientClosed, ForkedProcess):
            raise  # of the whole run, not of an item
        except Exception as error:  # noqa: BLE001 - one item's failure stops no other
            seconds = clock.now() - started
            cost = await _cost(getattr(error, "trace", None))
            return BatchResult(index=job.index, key=job.key, error=error, cost=cost, seconds=seconds)
        seconds = clock.now() - started
        cost = await _cost(response.trace)
        result = BatchResult(
            index=job.index,
            key=job.key,
            parts=response.parts,
            finish_reason=response.finish_reason,
            usage=response.usage,
            cost=response.cost if cost is None else cost,
            model=response.model,
            embeddings=response.embeddings,
            response=response,
            seconds=seconds,
        )
        return _parsed(result, job.request)

    def _settle(self, result: BatchResult, digest: str) -> None:
        # Without an await: what has ended is in the file before anything can cancel or be told of it.
        if self._checkpoint is not None and not result.restored:
            self._checkpoint.append(encoded(result, digest))
        if not self._closed:
            self._results[result.index] = result
        if not result.ok and self.settings.stop_at_error:
            self._stopped = True
        self.meter.ended(result)
        self.news.set()
        self._room.set()


async def _cost(trace: Trace | None) -> Decimal | None:
    """Return what all attempts cost, or None; waits for prices that are still being loaded."""
    if trace is None:
        return None
    if (due := trace.costs_due) is not None:
        with anyio.CancelScope(shield=True):  # what has been answered is not lost for that
            await anyio.to_thread.run_sync(due)
    cost = trace.cost
    return cost.amount if cost is not None else None if trace.attempts else Decimal(0)


def _parsed(result: BatchResult, request: Request) -> BatchResult:
    """``result`` with its answer parsed by the request's schema, if it has one."""
    schema = request.output if isinstance(request, GenerateRequest) else None
    if schema is None or result.tool_calls:
        return result
    try:
        if result.finish_reason != "stop":
            raise InvalidOutput(detail=f"the answer ended with {result.finish_reason}")
        return replace(result, parsed=schema.parse(result.text))
    except InvalidOutput as error:
        return replace(result, error=error)


def _leaf(error: BaseException) -> BaseException | None:
    """Return the first exception that is no cancellation, in a group or not; None where there is none."""
    if isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return next((found for found in map(_leaf, several) if found is not None), None)
    return None if isinstance(error, anyio.get_cancelled_exc_class()) else error

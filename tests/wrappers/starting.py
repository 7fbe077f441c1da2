"""A scripted engine that has to be started, for the tests of those who wait for it or give way."""

import anyio

from llmprod import Context, EngineNotReady, LoopClock, QueueLimit
from llmprod.testing.scripted import Scripted


class Engine(Scripted):
    """Is ready ``start`` seconds after it was first asked (0: at once), and tells of a queue that a test sets.

    With ``refuses`` nobody waits for it, whether there are alternatives or not.
    """

    def __init__(self, *steps, start: float = 0.0, told: float | None = 1.0, refuses: bool = False, **options):
        super().__init__(*steps, **options)
        self.start = start
        self.told = told
        self.refuses = refuses
        self.prepared: list[bool] = []
        self.waiting: float = 0
        self.cache = 0.0
        self._ready_at: float | None = None

    def die(self) -> None:
        self._ready_at = None

    async def prepare(self, context: Context) -> None:
        self.prepared.append(context.alternatives)
        if self._ready_at is None:
            self._ready_at = anyio.current_time() + self.start
        left = self._ready_at - anyio.current_time()
        if left <= 0:
            return
        if context.alternatives or self.refuses:
            raise EngineNotReady(provider=self.name, detail="starting", retry_after=self.told)
        await anyio.sleep(left)

    def queue_limit(self, waiting: int = 4, *, kv_cache_at_most: float = 0.95) -> QueueLimit:
        return QueueLimit(
            lambda: self.waiting,
            target=waiting,
            cache_use=lambda: self.cache,
            cache_at_most=kv_cache_at_most,
            initial=2,
            maximum=2,
            clock=LoopClock(),
        )


class Direct(Engine):
    """The same without an AttemptTimeout around it: it prepares itself, as an engine does."""

    async def send(self, request, context):
        await self.prepare(context)
        return await super().send(request, context)

"""vLLM inside this process: no server, no socket, and behind every wrapper like any hosted API."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import fields, replace
from decimal import Decimal
from typing import ClassVar, Literal, Unpack
from uuid import uuid4

from pydantic_core import to_json

from llmprod import _validate
from llmprod.context import Context
from llmprod.cost import CostSource
from llmprod.errors import (
    CallError,
    EngineDied,
    EngineNotReady,
    EngineStartFailed,
    InvalidArgument,
    ServerError,
    TransportError,
    UnsupportedParameter,
)
from llmprod.mechanisms.concurrency_limit import QueueLimit
from llmprod.mechanisms.engine_meter import EngineMeter, EngineStats, hourly_price
from llmprod.mechanisms.engine_share import CallBill
from llmprod.mechanisms.restart import RestartPolicy
from llmprod.provider import Capabilities
from llmprod.providers._codec import Wire
from llmprod.providers._http_provider import HTTPProvider
from llmprod.providers._openai_profile import PROFILES
from llmprod.providers._vllm.asgi import InMemory
from llmprod.providers._vllm.checks import check_keywords
from llmprod.providers._vllm.engine import Engine, EngineState
from llmprod.providers._vllm.incarnation import Incarnation, StartTimes
from llmprod.providers._vllm.options import EngineKeywords, EngineOptions
from llmprod.providers._vllm.score_methods import ScoreMethods
from llmprod.providers._vllm.token_methods import TokenMethods
from llmprod.providers.openai_chat import ChatCodec
from llmprod.request import GenerateRequest, Request
from llmprod.response import Outcome, Response
from llmprod.usage import Usage

__all__ = ["VLLM"]

_PROFILE = replace(PROFILES["vllm"], kind="vllm", base_url=None, key_env=())
_ADDRESS = "http://vllm/v1"
_SHOWN = 0.001


class VLLM(HTTPProvider, TokenMethods, ScoreMethods):
    """A model in an engine of this process: ``VLLM("Qwen/Qwen3-8B", max_model_len=8192)``.

    The engine is started at the first call, or by :meth:`start`, and shared: providers and clients of the same options
    have one engine together. It is stopped when the last client that uses it is closed (one that was started by hand
    waits for :meth:`stop`), and at the interpreter's exit.
    Calls may come from any thread and event loop, asyncio's or trio's.

    Besides what every provider does, it takes and gives tokens: :meth:`complete`, :meth:`tokenize`, :meth:`score` …

    Args:
        model: a model's name on Hugging Face, or a folder.
        price_per_hour: US dollars that the engine's machine or GPUs cost an hour, for ``response.cost`` by measured
            throughput; None: cost unknown.
        while_starting: what a call does that comes before the engine is ready: ``wait``, ``refuse`` with
            :class:`EngineNotReady`, or ``auto``: refuse where a router has another target to ask, else wait.
        restart: how often a dead engine is started again (default ``RestartPolicy()``).
        drain: seconds that calls under way may take to end when the engine is stopped (default 30).
        isolate_prefixes_by: a tag, such as ``tenant``: calls of different values of it share no prefix cache.
        progress: show on stderr that the engine is being started.
        **options: the engine's, see :class:`EngineOptions`.

    Raises:
        InvalidArgument: naming the option, before anything is started.
    """

    cost_source: ClassVar[CostSource] = "gpu-hour"

    def __init__(
        self,
        model: str,
        *,
        price_per_hour: float | str | Decimal | None = None,
        while_starting: Literal["auto", "wait", "refuse"] = "auto",
        restart: RestartPolicy | None = None,
        drain: float = 30.0,
        isolate_prefixes_by: str | None = None,
        progress: bool = True,
        **options: Unpack[EngineKeywords],
    ) -> None:
        check_keywords(options, EngineKeywords.__annotations__)
        self.options: EngineOptions = EngineOptions(model=model, **options)
        if while_starting not in ("auto", "wait", "refuse"):
            raise InvalidArgument("while_starting", repr(while_starting)[:40], "auto, wait, refuse")
        if restart is not None and not isinstance(restart, RestartPolicy):
            raise InvalidArgument("restart", type(restart).__name__, "a RestartPolicy, or None")
        _validate.seconds("drain", drain, zero=True)
        _validate.flag("progress", progress)
        if isolate_prefixes_by is not None and (not isinstance(isolate_prefixes_by, str) or not isolate_prefixes_by):
            raise InvalidArgument("isolate_prefixes_by", repr(isolate_prefixes_by)[:40], "the name of a tag, or None")
        self.price_per_hour: Decimal | None = hourly_price("price_per_hour", price_per_hour)
        self.while_starting: Literal["auto", "wait", "refuse"] = while_starting
        self.drain: float = drain
        self.isolate_prefixes_by: str | None = isolate_prefixes_by
        self._engine = Engine.shared(self.options, restart or RestartPolicy(), progress=progress)
        self._engine.used_by(self, drain)
        super().__init__(
            kind="vllm",
            model=model,
            codec=ChatCodec(model, _PROFILE),
            base_url=_ADDRESS,
            capabilities=self._known_capabilities(None),
            prompt_cache="automatic",
        )

    # ---- what it is -------------------------------------------------------------------------------------------------

    def adapter(self, name: str) -> VLLM:
        """Return the provider of one of the engine's LoRA adapters, on the same engine.

        Raises:
            InvalidArgument: the engine has no adapter of this name.
        """
        known = [known for known, _ in self.options.loras]
        if name not in known:
            raise InvalidArgument("adapter", repr(name)[:60], ", ".join(known) or "none: pass them as loras={name: …}")
        made = copy.copy(self)
        made.model = name
        made._name = f"vllm:{name}"
        made._codec = ChatCodec(name, _PROFILE)
        self._engine.used_by(made, self.drain)
        return made

    @property
    def identity(self) -> Hashable:
        """The engine and the adapter."""
        return ("vllm", id(self._engine), self.model)

    @property
    def cache_identity(self) -> object:
        """What a cached answer depends on beside the model: how the engine was started, its environment left out."""
        options = self.options
        return [
            [item.name, getattr(options, item.name)]
            for item in fields(options)
            if item.name not in ("_adapters", "env")
        ]

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do; what only vLLM can tell, such as the context window, once it has been started."""
        current = self._engine.current
        if current is not None and current.config is not None:
            if current.capabilities is None:
                current.capabilities = self._known_capabilities(current)
            return current.capabilities
        return self._capabilities

    def _known_capabilities(self, current: Incarnation | None) -> Capabilities:
        generates = self.options.runner != "pooling"
        window, media = self.options.max_model_len, frozenset(("image", "audio"))  # whatever it may turn out to take
        if current is not None:
            window = int(current.config.model_config.max_model_len)
            media = current.media
            generates = "generate" in current.tasks
        return replace(
            _PROFILE.capabilities,
            generate=generates,
            embeddings=not generates,
            images="image" in media,
            audio="audio" in media,
            context_window=window,
        )

    # ---- its life ---------------------------------------------------------------------------------------------------

    async def start(self) -> VLLM:
        """Start the engine, unless it runs, and wait until it is ready; returns this provider.

        It is then kept until :meth:`stop`, or the end of ``async with``; closing a client alone does not stop it.

        Raises:
            InvalidArgument: an option that vLLM doesn't have or take.
            EngineStartFailed: it can't be started.
        """
        self._engine.holders.add(self)
        await self._engine.start()
        return self

    async def prepare(self, context: Context) -> None:
        """Wait until the engine is ready, so that its start-up is not taken for a slow answer.

        Raises:
            EngineNotReady: it isn't, and the call doesn't wait.
            EngineStartFailed: it can't be started.
        """
        began = context.clock.now()
        try:
            await self._ready(context)
        except (EngineNotReady, EngineStartFailed) as error:
            reason = error.detail or error.what
            context.trace.skipped(self.name, context.elapsed, reason, error=type(error).__name__)
            raise
        if (waited := context.clock.now() - began) > _SHOWN:
            context.trace.waited(waited)

    async def stop(self, *, grace: float | None = None) -> None:
        """Stop the engine, whoever uses it: calls under way get ``grace`` seconds (default ``drain``) to end.

        The next call starts it again.
        """
        _validate.seconds("grace", grace, optional=True, zero=True)
        self._engine.holders.discard(self)
        await self._engine.stop(self.drain if grace is None else grace)

    def held_by(self, holder: object) -> None:
        """Keep the engine running until ``holder``, a client, releases it or is gone."""
        self._engine.holders.add(holder)

    def released_by(self, holder: object) -> None:
        """Take back :meth:`held_by`."""
        self._engine.holders.discard(holder)

    async def aclose(self) -> None:
        """Stop the engine, unless a client uses it or :meth:`start` has asked for it to be kept."""
        if not self._engine.held:
            await self._engine.stop(self.drain, unless_used=True)

    async def __aenter__(self) -> VLLM:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        self._engine.holders.discard(self)
        await self.aclose()

    @property
    def state(self) -> EngineState:
        """``cold``, ``starting``, ``ready``, ``dead`` (to be started again), ``failed``, ``stopping``, ``stopped``."""
        engine = self._engine
        return "dead" if engine.state == "ready" and engine.running is None else engine.state

    @property
    def start_times(self) -> StartTimes | None:
        """How long each step of the last start took; None before one."""
        current = self._engine.current
        return None if current is None else current.times

    @property
    def restarts(self) -> int:
        """How often the engine died and was started again."""
        return self._engine.restarts.total

    def stats(self) -> EngineStats:
        """Return the engine's numbers."""
        return self._engine.meter.stats()

    def queue_limit(self, waiting: int = 4, *, kv_cache_at_most: float = 0.95, initial: int = 64) -> QueueLimit:
        """Return a limit for :class:`Bulkhead` that follows the engine's queue and cache rather than latency.

        Args:
            waiting: requests that may wait in the engine (default 4).
            kv_cache_at_most: share of its KV cache that may be taken (default 0.95).
            initial: calls at once at first (default 64), or as many as the batch holds and may wait, if that is known
                to be fewer.

        Raises:
            InvalidArgument: naming the option that is out of range.
        """
        _validate.whole("waiting", waiting, 0)
        _validate.between("kv_cache_at_most", kv_cache_at_most, 0.01, 1)
        _validate.whole("initial", initial, 1)
        meter = self._engine.meter
        places = self._places
        most = max(initial, self.batch_concurrency) if places is None else places + waiting
        return QueueLimit(
            waiting=meter.waiting,
            target=waiting,
            cache_use=meter.kv_cache_use,
            cache_at_most=kv_cache_at_most,
            initial=min(initial, most),
            maximum=most,
        )

    @property
    def batch_concurrency(self) -> int:
        """Calls at once that keep the engine's batch full, for ``client.map``."""
        return (self._places or 256) * 5 // 4  # a few wait, so that a place that falls free is taken in the next step

    @property
    def _places(self) -> int | None:
        """Places in the batch; None where only the engine can tell, and it has not been started."""
        current = self._engine.current
        size = None if current is None else getattr(current.config.scheduler_config, "max_num_seqs", None)
        return self.options.max_num_seqs if size is None else int(size)

    # ---- a call -----------------------------------------------------------------------------------------------------

    async def send(self, request: Request, context: Context) -> Response:
        """Answer ``request``, once the engine is ready; a call that it refuses before that is no attempt."""
        if self.state != "ready" and not self.capabilities.missing(request):
            await self.prepare(context)
        return await super().send(request, context)

    async def _ready(self, context: Context) -> Incarnation:
        if self.while_starting == "wait":
            context = context.but(alternatives=False) if context.alternatives else context
        elif self.while_starting == "refuse" and not context.alternatives:
            context = context.but(alternatives=True)
        return await self._engine.ready(context)

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        incarnation = await self._ready(context)
        request_id = uuid4().hex
        wire = self._wire(request, context)
        if wire.body.get("prompt_logprobs") is not None:
            incarnation.check_prompt_logprobs()
        headers = [*self._headers, ("x-request-id", request_id)]
        timing = incarnation.meter.watch(request_id)
        bill = None if self.price_per_hour is None else incarnation.meter.bill(request_id)
        try:
            reply = await InMemory(incarnation).post(_ADDRESS + wire.path, headers, to_json(wire.body), None)
            reply.headers["x-request-id"] = request_id
            response = await self._answer(reply, request, context, dropped)
        except CallError as error:
            if incarnation.dead and isinstance(error, (ServerError, TransportError)):
                error = _death(error)
            self._sign(error, request_id)
            raise error
        response.engine_timing = timing
        if bill is not None:
            self._price(response, incarnation.meter, bill)
        return response

    def _wire(self, request: Request, context: Context) -> Wire:
        if (
            isinstance(request, GenerateRequest)
            and request.tools
            and request.tool_choice in (None, "auto")
            and self.options.tool_call_parser is None
        ):
            raise UnsupportedParameter(self.name, ("tools without tool_call_parser",))
        wire = self._codec.encode(request)
        if context.priority and self.options.scheduling_policy == "priority":
            wire.body.setdefault("priority", -context.priority)  # vLLM runs the lowest first
        if self.isolate_prefixes_by is not None:
            wire.body.setdefault("cache_salt", self._salt(context.tags))
        return wire

    def cost_of(self, usage: Usage | None) -> Decimal | None:
        """What a usage costs at the engine's mean pace since it was made; None without ``price_per_hour``."""
        seconds = self._engine.meter.seconds_per_token()
        if usage is None or seconds is None:
            return None
        return self._cost(seconds * (usage.total - usage.cached))

    def _price(self, response: Response, meter: EngineMeter, bill: CallBill) -> None:
        if not response.closed:
            bill.first_token(meter.share_mark())

        def settle(outcome: Outcome) -> None:
            usage = outcome.usage
            if usage is not None:
                computed = usage.total_input - usage.cached
                response.cost = self._cost(bill.seconds(computed, usage.total_output, meter.share_mark()))

        response.on_close(settle)

    def __repr__(self) -> str:
        return f"<VLLM {self.model} {self.state}>"


def _death(error: CallError) -> EngineDied:
    if isinstance(error, EngineDied):
        return error
    died = EngineDied(in_stream=error.in_stream, silent=error.silent)
    died.__cause__ = error
    return died

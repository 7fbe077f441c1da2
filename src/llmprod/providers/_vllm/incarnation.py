"""One running engine: vLLM's ``AsyncLLM`` and its OpenAI-compatible application, from their start to their end.

Everything here runs on the engine's own loop. An engine that has died is not mended: a new incarnation takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
import weakref
from collections.abc import Callable, Generator
from typing import Any, Protocol

from llmprod.errors import EngineStartFailed, LLMProdError, UnsupportedParameter
from llmprod.mechanisms.engine_meter import EngineMeter
from llmprod.provider import Capabilities
from llmprod.providers._vllm.compat import VLLMModules, call_with, load
from llmprod.providers._vllm.crossing import Crossing
from llmprod.providers._vllm.intake import Intake
from llmprod.providers._vllm.lean import fresh_environment, lean
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.output import Output
from llmprod.providers._vllm.processes import Processes, kill_starting
from llmprod.providers._vllm.signals import step_logger
from llmprod.providers._vllm.surroundings import Surroundings, booting, surroundings

__all__ = ["Incarnation", "StartTimes", "first_line"]


class StartTimes:
    """Seconds that each step of a start took.

    Attributes:
        import_vllm: importing it; 0 once it is imported.
        configure: reading the checkpoint's configuration and checking the options.
        engine: starting the engine's processes, loading weights, sizing the cache, compiling.
        application: building the OpenAI-compatible application, adapters loaded.
        warm: the first request.
    """

    def __init__(self) -> None:
        self.import_vllm: float = 0.0
        self.configure: float = 0.0
        self.engine: float = 0.0
        self.application: float = 0.0
        self.warm: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.import_vllm + self.configure + self.engine + self.application + self.warm

    def __repr__(self) -> str:
        steps = (f"{name} {seconds:.1f} s" for name, seconds in vars(self).items() if seconds >= 0.05)
        return f"<StartTimes {self.total:.1f} s: {', '.join(steps)}>"


class Underway(Protocol):
    """A request that is under way."""

    def died(self) -> None:
        """Tell its reader that the engine died."""
        ...


class Incarnation:
    """An engine that has been started.

    Attributes:
        modules: vLLM's parts.
        engine: the ``AsyncLLM``.
        app: the application.
        config: vLLM's configuration.
        tasks: what the model is for, by vLLM's words, such as ``generate`` or ``embed``.
        media: what it takes besides text, by vLLM's words.
        capabilities: what the provider made of that.
        times: how long the start took.
    """

    def __init__(self, crossing: Crossing, meter: EngineMeter) -> None:
        self.crossing: Crossing = crossing
        self.soon = crossing.soon
        self.meter: EngineMeter = meter
        self.modules: Any = None
        self.engine: Any = None
        self.app: Any = None
        self.config: Any = None
        self.tasks: tuple[str, ...] = ()
        self.media: frozenset[str] = frozenset()
        self.times: StartTimes = StartTimes()
        self.closed: bool = False
        self.capabilities: Capabilities | None = None
        self.intake: Intake = Intake()
        self._exchanges: set[Underway] = set()
        self._processes: Processes = Processes(None)
        self._output: Output | None = None
        self._abandoned: bool = False

    # ---- start ----------------------------------------------------------------------------------------------------

    async def start(self, options: EngineOptions, tell: Callable[[str], None]) -> None:
        """Start the engine. Blocks its loop while vLLM loads the model.

        Raises:
            InvalidArgument: an option that this release doesn't have, or that vLLM refuses.
            EngineStartFailed: anything else.
        """
        with booting(), surroundings(dict(options.env)) as around, fresh_environment():
            self._output = around.output
            try:
                await self._start(options, tell, around)
            except BaseException:
                await self.stop()
                raise
            finally:
                if around.output is not None:
                    around.output.started()

    async def _start(self, options: EngineOptions, tell: Callable[[str], None], around: Surroundings) -> None:
        step, times = _Stopwatch(), self.times
        tell("importing vLLM")
        self.modules = modules = load()
        if modules.on_cpu:
            around.set(options.cpu_environment())
        times.import_vllm = step()
        tell("reading the model's configuration")
        with self._failing("configuration"):
            args = self._arguments(options, modules)
            engine_args = modules.AsyncEngineArgs.from_cli_args(args)
            self.config = engine_args.create_engine_config()
        times.configure = step()
        if options.start_method != "auto":  # after the configuration: the CPU platform sets it there
            around.set({"VLLM_WORKER_MULTIPROC_METHOD": options.start_method})
        tell("loading the model")
        with self._failing("engine"):
            if self._abandoned:
                raise RuntimeError("this process is ending")
            self.engine = modules.AsyncLLM.from_vllm_config(
                self.config, stat_loggers=[step_logger(modules, self.meter)], disable_log_stats=True
            )
        self._processes = Processes(self.engine)
        self.intake.watch(self.engine)
        times.engine = step()
        tell("building its application")
        with self._failing("application"):
            await self._build_app(args, modules)
        await self._load_adapters(options, modules)
        times.application = step()
        if options.warm:
            tell("warming up")
            with self._failing("first request"):
                await self._warm()
            times.warm = step()

    @contextlib.contextmanager
    def _failing(self, step: str) -> Generator[None]:
        """Make whatever vLLM raises an error that names the step, and the reason that its processes gave."""
        try:
            yield
        except LLMProdError:
            raise
        except Exception as error:
            told = self._output.exception() if self._output is not None else None
            reason = first_line(error) if told is None else f"{told[0]}: {told[1][:300]}"
            raise EngineStartFailed(provider="vllm", detail=f"{step}: {reason}") from error

    def _arguments(self, options: EngineOptions, modules: VLLMModules) -> Any:
        args = modules.parsed_arguments()
        options.check_against(
            lambda name: hasattr(args, name), modules.version, modules.parsers("tool"), modules.parsers("reasoning")
        )
        args.model, args.model_tag, args.served_model_name = options.model, None, [options.model]
        for name, value in options.arguments().items():
            if hasattr(args, name) and not (name == "kv_cache_memory_bytes" and modules.on_cpu):
                setattr(args, name, value)
        outputs: Any = args.structured_outputs_config
        for name, value in options.structured_outputs.config().items():
            setattr(outputs, name, value)
        if options.reasoning_parser and hasattr(outputs, "reasoning_parser"):
            outputs.reasoning_parser = options.reasoning_parser
        args.disable_log_stats = True  # the meter takes the place of the default loggers
        return args

    async def _build_app(self, args: Any, modules: VLLMModules) -> None:
        engine = self.engine
        tasks: Any = ("generate",)
        if hasattr(engine, "get_supported_tasks"):
            tasks = await engine.get_supported_tasks()
        self.tasks = tuple(tasks)
        self.media = modules.media(self.config.model_config)
        model_config = getattr(engine, "model_config", None)
        self.app = call_with(modules.build_app, args=args, supported_tasks=tasks, model_config=model_config)
        lean(self.app)
        await call_with(
            modules.init_app_state,
            engine_client=engine,
            vllm_config=self.config,
            state=self.app.state,
            args=args,
            supported_tasks=tasks,
        )
        # Its error handlers end the server when the engine is dead; there is none here.
        self.app.state.server = types.SimpleNamespace(should_exit=False)

    async def _load_adapters(self, options: EngineOptions, modules: VLLMModules) -> None:
        """Load each adapter before any request names it: a bad one in a request would end the engine."""
        for number, (name, adapter) in enumerate(options.loras, start=1):
            request = modules.LoRARequest(lora_name=name, lora_int_id=number, lora_path=adapter.path)
            try:
                await self.engine.add_lora(request)
            except Exception as error:
                raise EngineStartFailed(
                    provider="vllm", detail=f"the adapter {name!r} can't be loaded: {first_line(error)}"
                ) from error
            self.app.state.openai_serving_models.lora_requests[name] = request

    async def _warm(self) -> None:
        modules = self.modules
        if "generate" in self.tasks:
            sampling = modules.SamplingParams(max_tokens=2, temperature=0.0)
            async with contextlib.aclosing(
                self.engine.generate({"prompt_token_ids": [0, 0, 0]}, sampling, "llmprod-warm")
            ) as outputs:
                async for _ in outputs:
                    pass

    # ---- while it runs --------------------------------------------------------------------------------------------

    @property
    def dead(self) -> bool:
        """The engine has failed, or was stopped."""
        engine = self.engine
        return self.closed or engine is None or bool(engine.errored)

    def entered(self, exchange: Underway) -> None:
        """Note a request inside the engine or its application."""
        self._exchanges.add(exchange)
        self.meter.call_began()

    def left(self, exchange: Underway) -> None:
        """Note its end; more than once is once."""
        if exchange in self._exchanges:
            self._exchanges.discard(exchange)
            self.meter.call_ended()

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of its processes."""
        return self._processes.pids

    def trim(self) -> None:
        """Drop what its processes have printed, once it is much."""
        if self._output is not None:
            self._output.trim()

    @property
    def adapters(self) -> dict[str, Any]:
        """The LoRA requests by name."""
        found: dict[str, Any] = self.app.state.openai_serving_models.lora_requests
        return found

    def check_prompt_logprobs(self) -> None:
        """Refuse log probabilities of a prompt where computing them would end the engine.

        With adapters, the CPU build takes the prompt's rows for as many requests as are in the batch, and fails.

        Raises:
            UnsupportedParameter: they can't be had here.
        """
        if self.config.lora_config is not None and self.modules.on_cpu:
            raise UnsupportedParameter("vllm", ("prompt_logprobs with adapters on vLLM's CPU build",))

    # ---- end ------------------------------------------------------------------------------------------------------

    def fail_all(self) -> None:
        """Tell every open request that the engine died."""
        for exchange in list(self._exchanges):
            exchange.died()

    def epitaph(self) -> str:
        """Say in a few words how it ended; no message of vLLM's, which could quote a request."""
        told = self._output.exception() if self._output is not None else None
        return self._processes.end() or (told[0] if told is not None else "it says that it can't go on")

    async def stop(self) -> None:
        """End the engine's processes; what is still running in it is given up."""
        if self.closed:
            return
        self.closed = True
        for exchange in list(self._exchanges):
            exchange.died()
            self.left(exchange)
        engine, self.engine = self.engine, None
        if engine is not None:
            # On this loop and nowhere else: vLLM's output handler belongs to it.
            with contextlib.suppress(Exception):
                engine.shutdown()
        del engine
        self.meter.engine_ended()
        await asyncio.sleep(0)
        await self._processes.gone()
        if self._output is not None:
            self._output.close()

    def abandon(self) -> None:
        """Give up a start, from another thread: this process is ending."""
        self._abandoned = True
        kill_starting()

    def disown(self) -> None:
        """Leave it to the process that this one was forked from: nothing that vLLM does at an end is done here."""
        self._processes.disown()
        engine, self.engine = self.engine, None
        core = getattr(engine, "engine_core", None)
        manager = getattr(getattr(core, "resources", None), "engine_manager", None)
        for owner in (core, manager):
            finalizer = getattr(owner, "_finalizer", None)
            if isinstance(finalizer, weakref.finalize):
                finalizer.detach()
        if engine is not None:
            _disowned.append(engine.__dict__)
            engine.__dict__ = {}  # its __del__ finds nothing to shut down


_disowned: list[object] = []


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> float:
        last, self._last = self._last, time.monotonic()
        return self._last - last


def first_line(error: BaseException) -> str:
    """Say what went wrong at the root, in one line."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:  # pydantic's: which field, then what is wrong with it
        lines = [" ".join(lines[1:3]).partition(" [type=")[0]]
    return f"{type(root).__name__}: {lines[0][:300] if lines else 'no message'}"

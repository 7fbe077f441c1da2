"""One running engine: vLLM's ``AsyncLLM`` and its OpenAI-compatible application, from their start to their end.

Everything here runs on the engine's own loop. An engine that has died is not mended: a new incarnation takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

from llmprod.errors import EngineStartFailed, LLMProdError
from llmprod.mechanisms.engine_meter import EngineMeter
from llmprod.provider import Capabilities
from llmprod.providers._vllm import child
from llmprod.providers._vllm.asgi import _Exchange
from llmprod.providers._vllm.compat import VLLMModules, call_with, load
from llmprod.providers._vllm.crossing import Crossing
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.signals import step_logger

__all__ = ["Incarnation", "StartTimes", "first_line"]

_booting = threading.Lock()
"""vLLM writes into ``os.environ`` while it starts, so engines start one at a time."""
_starter: int | None = None


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


class Incarnation:
    """An engine that has been started.

    Attributes:
        modules: vLLM's parts.
        engine: the ``AsyncLLM``.
        app: the application.
        config: vLLM's configuration.
        tasks: what the model is for, by vLLM's words, such as ``generate`` or ``embed``.
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
        self.times: StartTimes = StartTimes()
        self.closed: bool = False
        self.capabilities: Capabilities | None = None
        self._exchanges: set[_Exchange] = set()
        self._pids: list[int] = []

    # ---- start ----------------------------------------------------------------------------------------------------

    async def start(self, options: EngineOptions, tell: Callable[[str], None]) -> None:
        """Start the engine. Blocks its loop while vLLM loads the model.

        Raises:
            InvalidArgument: an option that this release doesn't have, or that vLLM refuses.
            EngineStartFailed: anything else.
        """
        global _starter  # noqa: PLW0603
        with _booting:
            _starter = threading.get_ident()
            environment = _Environment()
            environment.set({"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}, unless_set=True)
            environment.set({**dict(options.env), "LLMPROD_ENGINE_PARENT": str(os.getpid())})
            try:
                # vLLM and torch warn of their own affairs, which would end a start where warnings are errors.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    await self._start(options, tell, environment)
            finally:
                environment.restore()
                _starter = None

    async def _start(self, options: EngineOptions, tell: Callable[[str], None], environment: _Environment) -> None:
        step, times = _Stopwatch(), self.times
        tell("importing vLLM")
        self.modules = modules = load()
        if modules.on_cpu:
            environment.set(options.cpu_environment())
        times.import_vllm = step()
        tell("reading the model's configuration")
        with _failing("configuration"):
            args = self._arguments(options, modules)
            engine_args = modules.AsyncEngineArgs.from_cli_args(args)
            self.config = engine_args.create_engine_config()
        times.configure = step()
        if options.start_method != "auto":  # after the configuration: the CPU platform sets it there
            environment.set({"VLLM_WORKER_MULTIPROC_METHOD": options.start_method})
        tell("loading the model")
        with _failing("engine"), _own_main():
            self.engine = modules.AsyncLLM.from_vllm_config(
                self.config, stat_loggers=[step_logger(modules, self.meter)], disable_log_stats=True
            )
        self._pids = _engine_pids(self.engine)
        times.engine = step()
        tell("building its application")
        try:
            with _failing("application"):
                await self._build_app(args, modules)
            await self._load_adapters(options, modules)
            times.application = step()
            if options.warm:
                tell("warming up")
                with _failing("first request"):
                    await self._warm()
                times.warm = step()
        except BaseException:
            await self.stop()
            raise

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
        model_config = getattr(engine, "model_config", None)
        self.app = call_with(modules.build_app, args=args, supported_tasks=tasks, model_config=model_config)
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

    def entered(self, exchange: _Exchange) -> None:
        """Note a request inside the application."""
        self._exchanges.add(exchange)
        self.meter.call_began()

    def left(self, exchange: _Exchange) -> None:
        """Note its end."""
        self._exchanges.discard(exchange)
        self.meter.call_ended()

    # ---- end ------------------------------------------------------------------------------------------------------

    def fail_all(self) -> None:
        """Tell every open request that the engine died."""
        for exchange in list(self._exchanges):
            exchange.died()

    async def stop(self) -> None:
        """End the engine's processes; what is still running in it is given up."""
        if self.closed:
            return
        self.closed = True
        self.fail_all()
        engine, self.engine = self.engine, None
        if engine is not None:
            # On this loop and nowhere else: vLLM's output handler belongs to it.
            with contextlib.suppress(Exception):
                engine.shutdown()
        del engine
        await asyncio.sleep(0)
        await _gone(self._pids)


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> float:
        last, self._last = self._last, time.monotonic()
        return self._last - last


def _engine_pids(engine: Any) -> list[int]:
    """Return the ids of the processes that the engine started, as far as it tells."""
    manager = getattr(getattr(getattr(engine, "engine_core", None), "resources", None), "engine_manager", None)
    return [process.pid for process in getattr(manager, "processes", ()) if process.pid]


async def _gone(pids: list[int], patience: float = 5.0) -> None:
    """Wait until the processes have ended, and end those that don't."""
    end = time.monotonic() + patience
    while any(_runs(pid) for pid in pids) and time.monotonic() < end:  # noqa: ASYNC110 - another process's state
        await asyncio.sleep(0.02)
    for pid in pids:
        if _runs(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[:1] != [b"Z"]
    except OSError:
        return False


@contextlib.contextmanager
def _failing(step: str) -> Generator[None]:
    """Make whatever vLLM raises an error that names the step."""
    try:
        yield
    except LLMProdError:
        raise
    except Exception as error:
        raise EngineStartFailed(provider="vllm", detail=f"{step}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Say what went wrong at the root, in one line."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:  # pydantic's: which field, then what is wrong with it
        lines = [" ".join(lines[1:3])]
    return f"{type(root).__name__}: {lines[0][:300] if lines else 'no message'}"


class _Environment:
    """Sets what vLLM reads from the environment while it starts, and takes it back; what vLLM sets there stays."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}

    def set(self, values: Mapping[str, str], *, unless_set: bool = False) -> None:
        for name, value in values.items():
            if not (unless_set and name in os.environ):
                self._before.setdefault(name, os.environ.get(name))
                os.environ[name] = value

    def restore(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_main() -> Generator[None]:
    """Give spawned processes a main module of ours instead of the application's, which they would run again."""
    import multiprocessing.spawn as spawn

    original = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() == _starter:
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = child.__name__
        return data

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = original


def _after_fork() -> None:
    global _booting  # noqa: PLW0603
    if threading.get_ident() == _starter:
        child.end_with_parent(None)
    _booting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

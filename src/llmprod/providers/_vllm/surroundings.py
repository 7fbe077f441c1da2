"""What a start changes in this process, and takes back: environment, root logger, warnings, how processes are made.

vLLM, torch and their companions set a dozen environment variables as they are imported and configured, among them
``LD_PRELOAD``, which every program that the application runs later would inherit; one raises the root logger's level,
one (Ray) replaces ``sys.excepthook``. The variables are remembered for the next start; between starts the application
has its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Generator, Mapping

from llmprod.providers._vllm import child
from llmprod.providers._vllm.output import PATH, Output

__all__ = ["Surroundings", "booting", "surroundings"]

_LEVEL = "VLLM_LOGGING_LEVEL"
_THEIRS = (
    "AITER_", "CUDA_", "KMP_", "LD_", "LOCAL_WORLD_SIZE", "NCCL_", "NUMEXPR_", "OMP_", "RAY_", "TILELANG_",
    "TOKENIZERS_", "TORCH", "TRITON_", "VLLM_",
)  # fmt: skip
"""Names that are taken back; others may be another thread's work. (PyTorch's check for CUDA by NVML may stay.)"""
_remembered: dict[str, str] = {}
_starter: int | None = None
_lock = threading.Lock()


@contextlib.contextmanager
def booting() -> Generator[None]:
    """Let engines start one at a time: what they change is the process's."""
    global _starter  # noqa: PLW0603
    with _lock:
        _starter = threading.get_ident()
        try:
            yield
        finally:
            _starter = None


class Surroundings:
    """The process as an engine's start needs it.

    Attributes:
        output: what the engine's processes print; None if that is shown.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._before = dict(os.environ)
        self._set: set[str] = set()
        self.quiet: bool = _LEVEL not in os.environ and _LEVEL not in env
        self.output: Output | None = Output() if self.quiet else None
        for name, value in _remembered.items():
            os.environ.setdefault(name, value)
        if self.quiet:
            self.set({_LEVEL: "ERROR"})
            _hush(logging.ERROR)
        if "VLLM_LOGGING_STREAM" not in os.environ:  # vLLM's is stdout, which is the application's
            self.set({"VLLM_LOGGING_STREAM": "ext://sys.stderr"})
        if "VLLM_NO_USAGE_STATS" not in os.environ:
            self.set({"VLLM_NO_USAGE_STATS": "1"})
        self.set({**env, child.PARENT: str(os.getpid())})
        if self.output is not None:
            self.set({PATH: self.output.path})

    def set(self, values: Mapping[str, str]) -> None:
        """Set environment variables until the start is over."""
        os.environ.update(values)
        self._set.update(values)

    def restore(self) -> None:
        """Take back what was set, by us and by vLLM."""
        for name, value in list(os.environ.items()):
            if self._before.get(name) == value or not (name in self._set or name.startswith(_THEIRS)):
                continue
            if name not in self._set:
                _remembered[name] = value
            if name in self._before:
                os.environ[name] = self._before[name]
            else:
                del os.environ[name]
        if self.quiet:  # what it would tell from now on comes to callers as errors, without tracebacks that may quote
            _hush(logging.CRITICAL)


@contextlib.contextmanager
def surroundings(env: Mapping[str, str]) -> Generator[Surroundings]:
    """Prepare this process for a start, and put it back after."""
    root = logging.getLogger()
    level, handlers, hook = root.level, list(root.handlers), sys.excepthook
    around = Surroundings(env)
    try:
        # vLLM and torch warn of their own affairs, which would end a start where warnings are errors.
        with warnings.catch_warnings(), _own_main():
            warnings.simplefilter("ignore")
            yield around
    finally:
        around.restore()
        root.setLevel(level)
        root.handlers[:] = handlers
        sys.excepthook = hook


def _hush(level: int) -> None:
    """Keep vLLM from stderr, before it has configured its logger and after."""
    logger = logging.getLogger("vllm")
    logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


@contextlib.contextmanager
def _own_main() -> Generator[None]:
    """Give spawned processes a main module of ours instead of the application's, which they would run again."""
    import multiprocessing.spawn as spawn

    original = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, object]:
        data: dict[str, object] = original(name)
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
    global _lock  # noqa: PLW0603
    if threading.get_ident() == _starter:
        child.settle(None, forked=True)
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

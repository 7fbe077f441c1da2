"""The one place that knows where vLLM keeps things. Nothing is imported before :func:`load` is called.

Of vLLM's parts those are used whose paths and names have lasted (``AsyncLLM``, ``AsyncEngineArgs``, ``SamplingParams``,
``PoolingParams``, ``LoRARequest``, ``StatLoggerBase``), and the three functions that make its own OpenAI-compatible
application. Those have moved and changed signatures: every known path is tried, and a function is called with those of
the values at hand that it names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llmprod.errors import EngineStartFailed, InvalidArgument

__all__ = ["VLLMModules", "call_with", "load"]

_PATHS: dict[str, tuple[str, ...]] = {
    "make_arg_parser": (
        "vllm.entrypoints.common.cli_args",  # from 0.33
        "vllm.entrypoints.launchers.cli_args",  # from 0.30
        "vllm.entrypoints.openai.cli_args",
    ),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils", "vllm.utils"),
    "build_app": ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server"),
    "init_app_state": (
        "vllm.entrypoints.launchers.api_server.app_state",
        "vllm.entrypoints.openai.api_server",
    ),
    "AsyncLLM": ("vllm.v1.engine.async_llm",),
    "AsyncEngineArgs": ("vllm.engine.arg_utils",),
    "StatLoggerBase": ("vllm.v1.metrics.loggers",),
    "SamplingParams": ("vllm.sampling_params",),
    "RequestOutputKind": ("vllm.sampling_params",),
    "StructuredOutputsParams": ("vllm.sampling_params",),
    "PoolingParams": ("vllm.pooling_params",),
    "LoRARequest": ("vllm.lora.request",),
    "parse_model_prompt": ("vllm.renderers.inputs.preprocess", "vllm.inputs"),
}
_PARSERS = {
    "tool": (("vllm.tool_parsers", "ToolParserManager"), ("vllm.entrypoints.openai.tool_parsers", "ToolParserManager")),
    "reasoning": (("vllm.reasoning", "ReasoningParserManager"),),
}


class VLLMModules:
    """vLLM's parts, looked up by name: ``modules.AsyncLLM``.

    Attributes:
        version: the installed release.
    """

    def __init__(self) -> None:
        vllm: Any = importlib.import_module("vllm")
        self.version: str = str(vllm.__version__)  # the package's metadata has another name for the CPU build

    def __getattr__(self, name: str) -> Any:
        if name not in _PATHS:
            raise AttributeError(name)
        tried: list[str] = []
        for path in _PATHS[name]:
            try:
                found = getattr(importlib.import_module(path), name)
            except (ImportError, AttributeError) as error:
                tried.append(f"{path}: {error}")
                continue
            setattr(self, name, found)
            return found
        raise EngineStartFailed(
            provider="vllm", detail=f"vLLM {self.version} has no {name} where it is known to be ({'; '.join(tried)})"
        )

    @property
    def on_cpu(self) -> bool:
        """The build runs models on the CPU."""
        platforms: Any = importlib.import_module("vllm.platforms")
        return bool(platforms.current_platform.is_cpu())

    def parsed_arguments(self) -> Any:
        """Return the arguments of ``vllm serve``, all at their defaults."""
        return self.make_arg_parser(self.FlexibleArgumentParser()).parse_args([])

    def parsers(self, kind: str) -> list[str]:
        """Return the names of the ``tool`` or ``reasoning`` parsers; empty if the release doesn't tell."""
        for path, manager in _PARSERS[kind]:
            try:
                return sorted(getattr(importlib.import_module(path), manager).list_registered())
            except (ImportError, AttributeError):
                continue
        return []

    def media(self, model_config: Any) -> frozenset[str]:
        """Return what the model takes besides text: ``image``, ``audio``, ``video``; ask it on the engine's loop.

        Image and audio both where the release doesn't tell.
        """
        if not getattr(model_config, "is_multimodal_model", True):
            return frozenset()
        try:
            registry: Any = importlib.import_module("vllm.multimodal").MULTIMODAL_REGISTRY
            return frozenset(registry.get_processing_info(model_config).get_supported_mm_limits())
        except Exception:  # noqa: BLE001 - what it can't tell is found out when it is asked
            return frozenset(("image", "audio"))


def load() -> VLLMModules:
    """Import vLLM: 4 to 8 seconds of CPU and 420 MB.

    Raises:
        InvalidArgument: it is not installed.
    """
    try:
        return VLLMModules()
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise EngineStartFailed(provider="vllm", detail=f"importing vLLM needs the module {error.name}") from error
        how = "the extra: pip install 'llmprod[vllm]' (CUDA, Linux); for the CPU build see the page on installation"
        raise InvalidArgument("vllm", "a package that is not installed", how) from error


def call_with(function: Callable[..., Any], **have: Any) -> Any:
    """Call ``function`` with those of ``have`` that it takes: vLLM adds parameters and drops them."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in have.items() if name in names})


def sampling_fields(modules: VLLMModules) -> Sequence[str]:
    """Return the names that the release's SamplingParams takes."""
    return list(inspect.signature(modules.SamplingParams).parameters)

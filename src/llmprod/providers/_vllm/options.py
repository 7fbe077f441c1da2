"""An engine's options: typed, and checked as far as that is possible before vLLM is imported and minutes are spent."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, cast

from llmprod._validate import labels, whole
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.adapters import enough_rank, named_adapters
from llmprod.providers._vllm.checkpoint import check_checkpoint
from llmprod.providers._vllm.checks import check_alone, check_names, check_parser, check_release, check_together
from llmprod.providers._vllm.records import LoRA, Parallel, Speculative, StructuredOutputs

__all__ = ["EngineKeywords", "EngineOptions"]

StartMethod: TypeAlias = Literal["spawn", "fork", "auto"]
_SAME = (
    "revision", "tokenizer", "quantization", "load_format", "kv_cache_dtype", "seed", "gpu_memory_utilization",
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill",
    "enforce_eager", "convert", "chat_template", "tool_call_parser", "reasoning_parser",
)  # fmt: skip
_ALWAYS = {
    "enable_prompt_tokens_details": True,  # cached tokens in the usage
    "use_tqdm_on_load": False,
}
_LONG = 60


class EngineKeywords(TypedDict, total=False):
    """The options of :class:`EngineOptions`, for signatures."""

    revision: str | None
    tokenizer: str | None
    dtype: str
    quantization: str | None
    load_format: str | None
    kv_cache_dtype: str | None
    trust_remote_code: bool
    seed: int | None
    gpu_memory_utilization: float | None
    kv_cache_gib: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enable_prefix_caching: bool | None
    enable_chunked_prefill: bool | None
    enforce_eager: bool | None
    scheduling_policy: Literal["fcfs", "priority"]
    max_waiting: int | None
    speculative: Speculative | None
    parallel: Parallel
    runner: Literal["generate", "pooling"]
    convert: str | None
    chat_template: str | None
    tool_call_parser: str | None
    reasoning_parser: str | None
    structured_outputs: StructuredOutputs
    loras: Mapping[str, str | LoRA]
    max_loras: int | None
    max_lora_rank: int | None
    max_cpu_loras: int | None
    limit_mm_per_prompt: Mapping[str, int] | None
    warm: bool
    start_method: StartMethod
    one_process: bool
    env: Mapping[str, str]
    engine_args: Mapping[str, Any]


@dataclass(frozen=True, init=False)
class EngineOptions:
    """What an engine is started with. Names are vLLM's own where it has one; None leaves its default.

    Providers of equal options share one engine.

    Attributes:
        model: a name on Hugging Face, or a folder.
        revision: branch, tag or commit of the model.
        tokenizer: of another model.
        dtype: of weights and activations: ``auto`` (the checkpoint's), ``bfloat16``, ``float16``, ``float32``.
        quantization: of the weights, such as ``fp8``; usually None, since quantized checkpoints (GPTQ, AWQ,
            compressed-tensors …) say it themselves.
        load_format: how weights are read; ``dummy`` makes random ones.
        kv_cache_dtype: of the KV cache, such as ``fp8``.
        trust_remote_code: run code that comes with the model.
        seed: of sampling without a seed of its own.
        gpu_memory_utilization: share of the GPU's memory that the engine may take (vLLM: 0.92), of the machine's memory
            with the CPU build; lower it where the application needs some too.
        kv_cache_gib: size of the KV cache in GiB instead; with the CPU build rounded up to whole ones.
        max_model_len: prompt and answer together, in tokens (default: what the model was made for).
        max_num_seqs: requests computed together at most.
        max_num_batched_tokens: tokens computed together at most.
        enable_prefix_caching: keep the KV cache of prompts for those that begin alike (vLLM: yes).
        enable_chunked_prefill: compute long prompts in pieces, between the others' tokens (vLLM: yes).
        enforce_eager: no compilation and no CUDA graphs: starts sooner, runs slower.
        scheduling_policy: ``fcfs``, or ``priority`` to honour the calls' ``priority``.
        max_waiting: requests that may wait in the engine before it refuses more; vLLM 0.30 and later.
        speculative: propose tokens and check several at once: :class:`NGram`, :class:`Eagle`, :class:`Medusa`,
            :class:`DraftModel`, :class:`MTP`.
        parallel: several GPUs or machines.
        runner: ``generate``, or ``pooling`` for embeddings, scores and classes.
        convert: make a pooling model of a generating one: ``embed``, ``classify``; None: as the checkpoint says.
        chat_template: a Jinja template, or its file, instead of the model's.
        tool_call_parser: vLLM's name of the format in which the model calls tools, such as ``hermes``.
        reasoning_parser: vLLM's name of the format in which it thinks, such as ``qwen3``.
        structured_outputs: how schemas are enforced.
        loras: adapters by name, loaded before the engine counts as ready.
        max_loras: adapters in one batch (default: as many as there are).
        max_lora_rank: largest rank, one of vLLM's sizes (default: what the local adapters need, 16 for others).
        max_cpu_loras: adapters kept in memory.
        limit_mm_per_prompt: images, videos or recordings a prompt may hold, such as ``{"image": 4}``.
        warm: send one request before the engine counts as ready.
        start_method: how its processes are started: ``spawn`` (safe everywhere), ``fork`` (starts sooner; only before
            CUDA is used and at the application's own risk with threads), ``auto`` (vLLM's choice).
        one_process: on the CPU, run the model in the engine's process rather than in one more.
        env: environment variables while it starts, such as ``{"VLLM_CPU_OMP_THREADS_BIND": "0-3"}`` to keep the CPU
            build to some cores. Values aren't shown.
        engine_args: any other argument of vLLM, by its name, with a value that JSON has; what has an option here is
            refused.

    Raises:
        InvalidArgument: naming the option.
    """

    model: str
    revision: str | None
    tokenizer: str | None
    dtype: str
    quantization: str | None
    load_format: str | None
    kv_cache_dtype: str | None
    trust_remote_code: bool
    seed: int | None
    gpu_memory_utilization: float | None
    kv_cache_gib: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enable_prefix_caching: bool | None
    enable_chunked_prefill: bool | None
    enforce_eager: bool | None
    scheduling_policy: Literal["fcfs", "priority"]
    max_waiting: int | None
    speculative: Speculative | None
    parallel: Parallel
    runner: Literal["generate", "pooling"]
    convert: str | None
    chat_template: str | None
    tool_call_parser: str | None
    reasoning_parser: str | None
    structured_outputs: StructuredOutputs
    loras: tuple[tuple[str, LoRA], ...] = field(compare=False)
    _adapters: frozenset[tuple[str, LoRA]]  # compared in its place, so that their order makes no other engine
    max_loras: int | None
    max_lora_rank: int | None
    max_cpu_loras: int | None
    limit_mm_per_prompt: tuple[tuple[str, int], ...]
    warm: bool
    start_method: StartMethod
    one_process: bool
    env: tuple[tuple[str, str], ...]
    engine_args: str
    """As JSON with sorted keys, so that equal ones are equal."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        load_format: str | None = None,
        kv_cache_dtype: str | None = None,
        trust_remote_code: bool = False,
        seed: int | None = None,
        gpu_memory_utilization: float | None = None,
        kv_cache_gib: float | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool | None = None,
        enable_chunked_prefill: bool | None = None,
        enforce_eager: bool | None = None,
        scheduling_policy: Literal["fcfs", "priority"] = "fcfs",
        max_waiting: int | None = None,
        speculative: Speculative | None = None,
        parallel: Parallel | None = None,
        runner: Literal["generate", "pooling"] = "generate",
        convert: str | None = None,
        chat_template: str | None = None,
        tool_call_parser: str | None = None,
        reasoning_parser: str | None = None,
        structured_outputs: StructuredOutputs | None = None,
        loras: Mapping[str, str | LoRA] | None = None,
        max_loras: int | None = None,
        max_lora_rank: int | None = None,
        max_cpu_loras: int | None = None,
        limit_mm_per_prompt: Mapping[str, int] | None = None,
        warm: bool = True,
        start_method: StartMethod = "spawn",
        one_process: bool = True,
        env: Mapping[str, str] | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        given["parallel"] = Parallel() if parallel is None else parallel
        given["structured_outputs"] = StructuredOutputs() if structured_outputs is None else structured_outputs
        given["loras"] = adapters = named_adapters(loras or {}, model)
        given["_adapters"] = frozenset(adapters)
        given["limit_mm_per_prompt"] = _counts("limit_mm_per_prompt", limit_mm_per_prompt or {})
        labels("env", env or {})
        given["env"] = tuple(sorted((env or {}).items()))
        given["engine_args"] = _as_json(engine_args or {})
        for name, value in given.items():
            object.__setattr__(self, name, value)
        check_alone(self)
        check_together(self)
        check_names(self, self._typed(), tuple(EngineKeywords.__annotations__))
        check_checkpoint(self)

    # ---- for the engine ---------------------------------------------------------------------------------------------

    @property
    def passed_through(self) -> dict[str, Any]:
        """What ``engine_args`` held."""
        found: dict[str, Any] = json.loads(self.engine_args)
        return found

    def arguments(self) -> dict[str, Any]:
        """Return vLLM's arguments by name, those alone that are not to be left at its default."""
        return _ALWAYS | self._typed() | self.passed_through

    def _typed(self) -> dict[str, Any]:
        return {argument: value for argument, (_, value) in self._made().items()}

    def _made(self) -> dict[str, tuple[str, Any]]:
        """Return each argument with the option that it comes from."""
        made: dict[str, tuple[str, Any]] = {
            name: (name, value) for name in _SAME if (value := getattr(self, name)) is not None
        }
        for name, usual in (
            ("dtype", "auto"), ("trust_remote_code", False), ("scheduling_policy", "fcfs"), ("runner", "generate"),
        ):  # fmt: skip
            if getattr(self, name) != usual:
                made[name] = (name, getattr(self, name))
        if self.max_waiting is not None:
            made["max_num_queued_reqs"] = ("max_waiting", self.max_waiting)
        if self.tool_call_parser is not None:
            made["enable_auto_tool_choice"] = ("tool_call_parser", True)
        if self.speculative is not None:
            made["speculative_config"] = ("speculative", self.speculative.config())
        if self.limit_mm_per_prompt:
            made["limit_mm_per_prompt"] = ("limit_mm_per_prompt", dict(self.limit_mm_per_prompt))
        if self.kv_cache_gib is not None:
            made["kv_cache_memory_bytes"] = ("kv_cache_gib", int(self.kv_cache_gib * 2**30))
        made |= {argument: ("parallel", value) for argument, value in self._parallel().items()}
        return made | {argument: ("loras", value) for argument, value in self._lora().items()}

    def _parallel(self) -> dict[str, Any]:
        parallel = self.parallel
        values: dict[str, Any] = {}
        for name, size in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline), ("data", parallel.data)):
            if size > 1:
                values[f"{name}_parallel_size"] = size
        if parallel.expert:
            values["enable_expert_parallel"] = True
        if parallel.executor is not None:
            values["distributed_executor_backend"] = parallel.executor
        return values

    def _lora(self) -> dict[str, Any]:
        if not self.loras:
            return {}
        values = {
            "enable_lora": True,
            "max_loras": self.max_loras or len(self.loras),
            "max_lora_rank": self.max_lora_rank or enough_rank(self.loras),
            "max_cpu_loras": self.max_cpu_loras,
        }
        return {name: value for name, value in values.items() if value is not None}

    def cpu_environment(self) -> dict[str, str]:
        """Return what the CPU build reads from environment variables."""
        values: dict[str, str] = {}
        if self.kv_cache_gib is not None:
            values["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(self.kv_cache_gib))  # whole ones alone
        if self.one_process and self.parallel.gpus == 1:
            values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return values | dict(self.env)

    def check_against(
        self,
        known: Callable[[str], bool] | Set[str],
        version: str,
        tool_parsers: Sequence[str],
        reasoning_parsers: Sequence[str],
    ) -> None:
        """Compare with the installed vLLM, before it loads the model.

        Args:
            known: the names of its arguments, or what tells whether it has one of a name; names alone allow an error
                to say which was meant.
            version: its release.
            tool_parsers: the parsers that it has; empty if it doesn't tell.
            reasoning_parsers: likewise.

        Raises:
            InvalidArgument: it lacks an option or a parser.
        """
        check_release(self, known, version, {argument: option for argument, (option, _) in self._made().items()})
        check_parser("tool_call_parser", self.tool_call_parser, tool_parsers, version)
        check_parser("reasoning_parser", self.reasoning_parser, reasoning_parsers, version)

    def __repr__(self) -> str:
        shown = [repr(self.model)]
        usual: dict[str, Any] = {
            name: parameter.default for name, parameter in inspect.signature(EngineOptions).parameters.items()
        }
        usual |= {"parallel": Parallel(), "structured_outputs": StructuredOutputs(), "engine_args": "{}"}
        usual |= dict.fromkeys(("loras", "limit_mm_per_prompt", "env"), ())
        for name in EngineKeywords.__annotations__:
            value = getattr(self, name)
            if value == usual[name]:
                continue
            if name in ("env", "engine_args"):  # they may hold keys
                shown.append(f"{name}={sorted(dict(self.env) if name == 'env' else self.passed_through)}")
            else:
                text = repr(value)
                shown.append(f"{name}={text if name != 'chat_template' and len(text) <= _LONG else '…'}")
        return f"EngineOptions({', '.join(shown)})"


def _counts(field: str, value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(field, type(value).__name__, "a dict of numbers by kind, such as {'image': 2}")
    counts = cast("Mapping[str, int]", value)
    for kind, count in counts.items():
        whole(f"{field}[{kind!r}]", count, 0)
    return tuple(sorted(counts.items()))


def _as_json(value: object) -> str:
    if not isinstance(value, Mapping):
        raise InvalidArgument("engine_args", type(value).__name__, "a dict of vLLM's arguments by name")
    values = dict(cast("Mapping[object, Any]", value))
    for name in values:
        if not isinstance(name, str):
            raise InvalidArgument("engine_args", f"a name of type {type(name).__name__}", "vLLM's arguments by name")
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise InvalidArgument("engine_args", "values that are no JSON", "strings, numbers, lists and dicts") from None

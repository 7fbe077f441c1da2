"""An engine's options: typed, and checked as far as that is possible before vLLM is imported and minutes are spent."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, cast

from llmprod._validate import between, flag, labels, whole
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.checkpoint import adapter_rank, check_checkpoint
from llmprod.providers._vllm.records import LoRA, Parallel, Speculative, StructuredOutputs

__all__ = ["EngineKeywords", "EngineOptions"]

StartMethod: TypeAlias = Literal["spawn", "fork", "auto"]
_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
_RUNNERS = ("generate", "pooling")
_GONE = {
    "bitsandbytes": "vLLM removed it by 0.28; use fp8, AWQ, GPTQ or compressed-tensors",
    "gguf": "vLLM removed it by 0.24; install vllm-gguf-plugin and pass it in engine_args",
}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


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
        gpu_memory_utilization: share of the GPU's memory that the engine may take (vLLM: 0.92); lower it where the
            application needs some too.
        kv_cache_gib: size of the KV cache in GiB instead; the CPU build has no other way to say it.
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
        convert: make a pooling model of a generating one: ``embed``, ``classify``.
        chat_template: a Jinja template, or its file, instead of the model's.
        tool_call_parser: vLLM's name of the format in which the model calls tools, such as ``hermes``.
        reasoning_parser: vLLM's name of the format in which it thinks, such as ``qwen3``.
        structured_outputs: how schemas are enforced.
        loras: adapters by name.
        max_loras: adapters in one batch (default: as many as there are).
        max_lora_rank: largest rank (default: the largest of the local adapters', else vLLM's 16).
        max_cpu_loras: adapters kept in memory.
        limit_mm_per_prompt: images, videos or recordings a prompt may hold, such as ``{"image": 4}``.
        warm: send one request before the engine counts as ready.
        start_method: how its processes are started: ``spawn`` (safe everywhere), ``fork`` (starts sooner; only before
            CUDA is used and at the application's own risk with threads), ``auto`` (vLLM's choice).
        one_process: on the CPU, run the model in the engine's process rather than in one more.
        env: environment variables while it starts. Not shown.
        engine_args: any other argument of vLLM, by its name; what vLLM adds tomorrow.

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
    loras: tuple[tuple[str, LoRA], ...]
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
        given["loras"] = _adapters(loras or {})
        given["limit_mm_per_prompt"] = _counts("limit_mm_per_prompt", limit_mm_per_prompt or {})
        labels("env", env or {})
        given["env"] = tuple(sorted((env or {}).items()))
        given["engine_args"] = _as_json(engine_args or {})
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise InvalidArgument("model", repr(self.model)[:60], "a name on Hugging Face, or a folder")
        for name in (
            "revision", "tokenizer", "quantization", "load_format", "kv_cache_dtype", "convert", "chat_template",
            "tool_call_parser", "reasoning_parser",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InvalidArgument(name, repr(value)[:40], "a non-empty string, or None")
        _one_of("dtype", self.dtype, _DTYPES)
        _one_of("runner", self.runner, _RUNNERS)
        _one_of("scheduling_policy", self.scheduling_policy, ("fcfs", "priority"))
        _one_of("start_method", self.start_method, ("spawn", "fork", "auto"))
        for name in ("trust_remote_code", "warm", "one_process"):
            flag(name, getattr(self, name))
        for name in ("enable_prefix_caching", "enable_chunked_prefill", "enforce_eager"):
            flag(name, getattr(self, name), optional=True)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_loras", "max_lora_rank"):
            whole(name, getattr(self, name), 1, optional=True)
        whole("max_cpu_loras", self.max_cpu_loras, 1, optional=True)
        whole("max_waiting", self.max_waiting, 1, optional=True)
        whole("seed", self.seed, 0, optional=True)
        between("gpu_memory_utilization", self.gpu_memory_utilization, 0.01, 1, optional=True)
        between("kv_cache_gib", self.kv_cache_gib, 0.01, 1e6, optional=True)
        for name, kind in (("parallel", Parallel), ("structured_outputs", StructuredOutputs)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidArgument(name, type(getattr(self, name)).__name__, f"a {kind.__name__}")
        if self.speculative is not None and not isinstance(self.speculative, Speculative):
            allowed = "NGram, Eagle, Medusa, DraftModel, MTP, or None"
            raise InvalidArgument("speculative", type(self.speculative).__name__, allowed)
        if self.quantization in _GONE:
            raise InvalidArgument("quantization", repr(self.quantization), _GONE[self.quantization])
        self._check_together()
        check_checkpoint(self)

    def _check_together(self) -> None:
        """Refuse options that contradict each other."""
        if self.runner == "pooling":
            for name in ("speculative", "tool_call_parser", "reasoning_parser"):
                if getattr(self, name) is not None:
                    raise InvalidArgument(name, "given with runner='pooling'", "a generating model for it")
        elif self.convert not in (None, "auto", "none"):
            raise InvalidArgument("convert", repr(self.convert)[:40], "runner='pooling' beside it")
        if self.gpu_memory_utilization is not None and self.kv_cache_gib is not None:
            allowed = "one of gpu_memory_utilization and kv_cache_gib"
            raise InvalidArgument("kv_cache_gib", "given with gpu_memory_utilization", allowed)
        if (
            self.enable_chunked_prefill is False
            and self.max_num_batched_tokens is not None
            and self.max_num_batched_tokens < (self.max_model_len or 0)
        ):
            raise InvalidArgument(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens}, fewer than max_model_len {self.max_model_len}",
                "at least max_model_len where enable_chunked_prefill is False",
            )
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < (self.max_num_seqs or 0):
            allowed = f"at least max_num_seqs ({self.max_num_seqs})"
            raise InvalidArgument("max_num_batched_tokens", str(self.max_num_batched_tokens), allowed)
        if not self.loras:
            for name in ("max_loras", "max_lora_rank", "max_cpu_loras"):
                if getattr(self, name) is not None:
                    raise InvalidArgument(name, "given without adapters", "loras={name: folder} beside it")
        slots = self.max_loras or len(self.loras)
        if self.max_cpu_loras is not None and self.max_cpu_loras < slots:
            raise InvalidArgument("max_cpu_loras", str(self.max_cpu_loras), f"at least max_loras ({slots})")
        for name, adapter in self.loras:
            rank = adapter_rank(name, adapter.path)
            if rank is not None and self.max_lora_rank is not None and rank > self.max_lora_rank:
                raise InvalidArgument(
                    "max_lora_rank", str(self.max_lora_rank), f"at least {rank}, the rank of {name!r}"
                )
        typed = self._typed()
        for name in self.passed_through:
            if name in typed or name in EngineKeywords.__annotations__ or name in ("served_model_name", "lora_modules"):
                raise InvalidArgument(f"engine_args[{name!r}]", "an option with a name of its own", f"{name}=…")

    # ---- for the engine ---------------------------------------------------------------------------------------------

    @property
    def passed_through(self) -> dict[str, Any]:
        """What ``engine_args`` held."""
        found: dict[str, Any] = json.loads(self.engine_args)
        return found

    def arguments(self) -> dict[str, Any]:
        """Return vLLM's arguments by name, those alone that are not to be left at its default."""
        return self._typed() | self.passed_through

    def _typed(self) -> dict[str, Any]:
        same = (
            "revision", "tokenizer", "quantization", "load_format", "kv_cache_dtype", "seed", "gpu_memory_utilization",
            "max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching",
            "enable_chunked_prefill", "enforce_eager", "convert", "chat_template", "tool_call_parser",
            "reasoning_parser",
        )  # fmt: skip
        values = {name: value for name in same if (value := getattr(self, name)) is not None}
        values["enable_prompt_tokens_details"] = True  # cached tokens in the usage
        values["use_tqdm_on_load"] = False
        if self.dtype != "auto":
            values["dtype"] = self.dtype
        if self.trust_remote_code:
            values["trust_remote_code"] = True
        if self.scheduling_policy != "fcfs":
            values["scheduling_policy"] = self.scheduling_policy
        if self.runner != "generate":
            values["runner"] = self.runner
        if self.max_waiting is not None:
            values["max_num_queued_reqs"] = self.max_waiting
        if self.tool_call_parser is not None:
            values["enable_auto_tool_choice"] = True
        if self.speculative is not None:
            values["speculative_config"] = self.speculative.config()
        if self.limit_mm_per_prompt:
            values["limit_mm_per_prompt"] = dict(self.limit_mm_per_prompt)
        if self.kv_cache_gib is not None:
            values["kv_cache_memory_bytes"] = int(self.kv_cache_gib * 2**30)
        return values | self._parallel() | self._lora()

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
        rank = self.max_lora_rank
        if rank is None:
            known = [adapter_rank(name, adapter.path) or 16 for name, adapter in self.loras]
            rank = next((size for size in _RANKS if size >= max(known)), max(known))
        values = {
            "enable_lora": True,
            "max_loras": self.max_loras or len(self.loras),
            "max_lora_rank": rank,
            "max_cpu_loras": self.max_cpu_loras,
        }
        return {name: value for name, value in values.items() if value is not None}

    def cpu_environment(self) -> dict[str, str]:
        """Return what the CPU build reads from environment variables."""
        values: dict[str, str] = {}
        if self.kv_cache_gib is not None:
            values["VLLM_CPU_KVCACHE_SPACE"] = f"{max(1, round(self.kv_cache_gib))}"
        if self.one_process and self.parallel.gpus == 1:
            values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return values | dict(self.env)

    def check_against(
        self, known: Callable[[str], bool], version: str, tool_parsers: Sequence[str], reasoning_parsers: Sequence[str]
    ) -> None:
        """Compare with the installed vLLM, before it loads the model.

        Args:
            known: tells whether it has an argument of this name.
            version: its release.
            tool_parsers: the parsers that it has; empty if it doesn't tell.
            reasoning_parsers: likewise.

        Raises:
            InvalidArgument: it lacks an option or a parser.
        """
        for argument in self.passed_through:
            if not known(argument):
                raise InvalidArgument(f"engine_args[{argument!r}]", "unknown", f"an argument of vLLM {version}")
        if self.max_waiting is not None and not known("max_num_queued_reqs"):
            raise InvalidArgument("max_waiting", f"given with vLLM {version}", "vLLM 0.30 or later")
        for option, parsers in (("tool_call_parser", tool_parsers), ("reasoning_parser", reasoning_parsers)):
            name: str | None = getattr(self, option)
            if name is not None and parsers and name not in parsers:
                near = difflib.get_close_matches(name, parsers, n=4, cutoff=0.4) or sorted(parsers)[:8]
                allowed = f"a parser of vLLM {version}, such as {', '.join(near)}"
                raise InvalidArgument(option, repr(name)[:40], allowed)

    def __repr__(self) -> str:
        return f"EngineOptions({self.model!r}, {', '.join(sorted(self._typed()))})"


def _one_of(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument(field, repr(value)[:40], ", ".join(allowed))


def _counts(field: str, value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(field, type(value).__name__, "a dict of numbers by kind, such as {'image': 2}")
    counts = cast("Mapping[str, int]", value)
    for kind, count in counts.items():
        whole(f"{field}[{kind!r}]", count, 0)
    return tuple(sorted(counts.items()))


def _adapters(value: object) -> tuple[tuple[str, LoRA], ...]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            "loras", type(value).__name__, "a dict of folders by name, such as {'sql': '/adapters/sql'}"
        )
    adapters: list[tuple[str, LoRA]] = []
    for name, adapter in cast("Mapping[object, object]", value).items():
        if not isinstance(name, str) or not name.strip() or name == "model":
            raise InvalidArgument("loras", repr(name)[:40], "a name, other than 'model', for each adapter")
        if isinstance(adapter, str):
            adapter = LoRA(path=adapter)
        if not isinstance(adapter, LoRA):
            raise InvalidArgument(
                f"loras[{name!r}]", type(adapter).__name__, "a folder, a name on Hugging Face, or a LoRA"
            )
        adapters.append((name, adapter))
    return tuple(adapters)


def _as_json(value: object) -> str:
    if not isinstance(value, Mapping):
        raise InvalidArgument("engine_args", type(value).__name__, "a dict of vLLM's arguments by name")
    try:
        return json.dumps(dict(cast("Mapping[str, Any]", value)), sort_keys=True)
    except (TypeError, ValueError):
        raise InvalidArgument("engine_args", "values that are no JSON", "strings, numbers, lists and dicts") from None

"""Checks of an engine's options: each by itself, together, and against the installed vLLM."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llmprod._validate import between, flag, known, whole
from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.adapters import RANKS, adapter_rank
from llmprod.providers._vllm.files import is_path
from llmprod.providers._vllm.records import DraftModel, Eagle, Parallel, Speculative, StructuredOutputs

if TYPE_CHECKING:
    from llmprod.providers._vllm.options import EngineOptions

__all__ = ["check_alone", "check_keywords", "check_names", "check_parser", "check_release", "check_together"]

_STRINGS = (
    "revision", "tokenizer", "quantization", "load_format", "kv_cache_dtype", "convert", "chat_template",
    "tool_call_parser", "reasoning_parser",
)  # fmt: skip
_CHOICES = {
    "dtype": ("auto", "half", "float16", "bfloat16", "float", "float32"),
    "runner": ("generate", "pooling"),
    "scheduling_policy": ("fcfs", "priority"),
    "start_method": ("spawn", "fork", "auto"),
}
_CONVERT = ("auto", "none", "embed", "classify")
_NUMBERS = (
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_loras", "max_lora_rank", "max_cpu_loras",
    "max_waiting",
)  # fmt: skip
_GONE = {
    "bitsandbytes": ((0, 28), "fp8, AWQ, GPTQ or compressed-tensors: vLLM has no bitsandbytes from 0.28 on"),
    "gguf": ((0, 24), "the package vllm-gguf-plugin beside it: vLLM itself has no GGUF from 0.24 on"),
}
_SAID_OTHERWISE = {
    "tensor_parallel_size": "parallel=Parallel(tensor=…)",
    "pipeline_parallel_size": "parallel=Parallel(pipeline=…)",
    "data_parallel_size": "parallel=Parallel(data=…)",
    "enable_expert_parallel": "parallel=Parallel(expert=True)",
    "kv_cache_memory_bytes": "kv_cache_gib=…",
    "max_num_queued_reqs": "max_waiting=…",
    "structured_outputs_config": "structured_outputs=StructuredOutputs(…)",
    "enable_auto_tool_choice": "tool_call_parser=…",
    "enable_lora": "loras={name: folder}",
    "lora_modules": "loras={name: folder}",
    "model": "the model as the first argument",
    "model_tag": "the model as the first argument",
    "served_model_name": "the model's own name, or an adapter's",
    "disable_log_stats": "the provider's own statistics",
}
_OF_A_CALL = (
    "temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "logprobs", "tools", "tool_choice", "output",
)  # fmt: skip
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "kv_cache_gib=…",
    "VLLM_WORKER_MULTIPROC_METHOD": "start_method=…",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "one_process=…",
}


def check_keywords(given: Collection[str], keywords: Collection[str]) -> None:
    """Refuse what is no option of an engine; tell what it is called here."""
    calls = {name: f"an option of a call: generate(…, {name}=…)" for name in _OF_A_CALL if name not in keywords}
    known(given, keywords, {**calls, **_SAID_OTHERWISE}, "; other arguments of vLLM in engine_args={…}")


def check_alone(options: EngineOptions) -> None:
    """Check the type and range of each option."""
    if not isinstance(options.model, str) or not options.model.strip():
        raise InvalidArgument("model", repr(options.model)[:60], "a name on Hugging Face, or a folder")
    for name in _STRINGS:
        value = getattr(options, name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise InvalidArgument(name, repr(value)[:40], "a non-empty string, or None")
    for name, allowed in _CHOICES.items():
        if (value := getattr(options, name)) not in allowed:
            raise InvalidArgument(name, repr(value)[:40], ", ".join(allowed))
    if options.convert is not None and options.convert not in _CONVERT:
        raise InvalidArgument("convert", repr(options.convert)[:40], f"{', '.join(_CONVERT)}, or None")
    for name in ("trust_remote_code", "warm", "one_process"):
        flag(name, getattr(options, name))
    for name in ("enable_prefix_caching", "enable_chunked_prefill", "enforce_eager"):
        flag(name, getattr(options, name), optional=True)
    for name in _NUMBERS:
        whole(name, getattr(options, name), 1, optional=True)
    whole("seed", options.seed, 0, optional=True)
    between("gpu_memory_utilization", options.gpu_memory_utilization, 0.01, 1, optional=True)
    between("kv_cache_gib", options.kv_cache_gib, 0.01, 1e6, optional=True)
    if options.max_lora_rank is not None and options.max_lora_rank not in RANKS:
        raise InvalidArgument("max_lora_rank", str(options.max_lora_rank), f"{', '.join(map(str, RANKS))}, or None")
    for name, kind in (("parallel", Parallel), ("structured_outputs", StructuredOutputs)):
        if not isinstance(getattr(options, name), kind):
            raise InvalidArgument(name, type(getattr(options, name)).__name__, f"a {kind.__name__}")
    if options.speculative is not None and not isinstance(options.speculative, get_args(Speculative)):
        allowed_kinds = "NGram, Eagle, Medusa, DraftModel, MTP, or None"
        raise InvalidArgument("speculative", type(options.speculative).__name__, allowed_kinds)
    _check_files(options)


def _check_files(options: EngineOptions) -> None:
    template = options.chat_template
    if template is not None and not set("{}\n") & set(template) and not Path(template).is_file():
        raise InvalidArgument("chat_template", "the path of no file", "a Jinja template, or its file")
    tokenizer = options.tokenizer
    if tokenizer is not None and is_path(tokenizer) and not Path(tokenizer).exists():
        raise InvalidArgument("tokenizer", "a path where nothing is", "a folder, or a name on Hugging Face")


def check_together(options: EngineOptions) -> None:
    """Refuse options that contradict each other."""
    if options.runner == "pooling":
        for name in ("speculative", "tool_call_parser", "reasoning_parser"):
            if getattr(options, name) is not None:
                raise InvalidArgument(name, "a value beside runner='pooling'", "None, or runner='generate'")
    elif options.convert not in (None, "auto", "none"):
        raise InvalidArgument("convert", repr(options.convert)[:40], "runner='pooling' beside it")
    if options.gpu_memory_utilization is not None and options.kv_cache_gib is not None:
        allowed = "one of gpu_memory_utilization and kv_cache_gib"
        raise InvalidArgument("kv_cache_gib", "a value beside gpu_memory_utilization", allowed)
    _check_batch(options)
    _check_adapters(options)
    draft, parallel = options.speculative, options.parallel
    if isinstance(draft, (Eagle, DraftModel)) and draft.tensor_parallel not in (None, 1, parallel.tensor):
        allowed = f"1, or parallel.tensor ({parallel.tensor})" if parallel.tensor > 1 else "1, as parallel.tensor"
        raise InvalidArgument("speculative.tensor_parallel", str(draft.tensor_parallel), allowed)
    if isinstance(draft, DraftModel) and (draft.max_model_len or 0) > (options.max_model_len or float("inf")):
        allowed = f"at most max_model_len ({options.max_model_len})"
        raise InvalidArgument("speculative.max_model_len", str(draft.max_model_len), allowed)


def _check_batch(options: EngineOptions) -> None:
    batch, length, seqs = options.max_num_batched_tokens, options.max_model_len, options.max_num_seqs
    if batch is None:
        return
    if options.enable_chunked_prefill is False and batch < (length or 0):
        given = f"{batch}, fewer than max_model_len {length}"
        allowed = "at least max_model_len where enable_chunked_prefill is False"
        raise InvalidArgument("max_num_batched_tokens", given, allowed)
    if batch < (seqs or 0):
        raise InvalidArgument("max_num_batched_tokens", str(batch), f"at least max_num_seqs ({seqs})")
    draft = options.speculative
    if options.loras and draft is not None and batch < (seqs or 0) * (draft.tokens + 1):
        needed = (seqs or 0) * (draft.tokens + 1)
        allowed = f"at least {needed}: with adapters, each of max_num_seqs has its proposed tokens and one more"
        raise InvalidArgument("max_num_batched_tokens", str(batch), allowed)


def _check_adapters(options: EngineOptions) -> None:
    if not options.loras:
        for name in ("max_loras", "max_lora_rank", "max_cpu_loras"):
            if getattr(options, name) is not None:
                raise InvalidArgument(name, "a value without adapters", "None, or loras={name: folder} beside it")
    slots = options.max_loras or len(options.loras)
    if options.max_cpu_loras is not None and options.max_cpu_loras < slots:
        raise InvalidArgument("max_cpu_loras", str(options.max_cpu_loras), f"at least max_loras ({slots})")
    for name, adapter in options.loras:
        rank = adapter_rank(name, adapter.path)
        if rank is not None and options.max_lora_rank is not None and rank > options.max_lora_rank:
            allowed = f"at least {rank}, the rank of {name!r}"
            raise InvalidArgument("max_lora_rank", str(options.max_lora_rank), allowed)


def check_names(options: EngineOptions, typed: Mapping[str, Any], keywords: Sequence[str]) -> None:
    """Refuse what is said in ``engine_args`` or ``env`` although it has an option of its own.

    Args:
        options: what is asked for.
        typed: vLLM's arguments that the options made, by name.
        keywords: the options' names.
    """
    for name in options.passed_through:
        field, given = f"engine_args[{name!r}]", "an option with a name of its own"
        if name in keywords:
            raise InvalidArgument(field, given, f"{name}=…")
        if name in _SAID_OTHERWISE:
            raise InvalidArgument(field, given, _SAID_OTHERWISE[name])
        if options.speculative is not None and name in (
            "speculative_config",
            "spec_method",
            "spec_model",
            "spec_tokens",
        ):
            raise InvalidArgument(field, "given with speculative", f"one of speculative and {name}")
        if name in typed:
            raise InvalidArgument(field, "given with parallel.executor", f"one of parallel.executor and {name}")
    for name, _ in options.env:
        if not name or "=" in name or "\0" in name:
            raise InvalidArgument("env", repr(name)[:40], "names of environment variables")
        if name in _ENVIRONMENT:
            raise InvalidArgument(f"env[{name!r}]", "a variable with an option of its own", _ENVIRONMENT[name])


# ---- against the installed vLLM -------------------------------------------------------------------------------------


def check_release(
    options: EngineOptions, known: Callable[[str], bool] | Set[str], version: str, made: Mapping[str, str]
) -> None:
    """Compare with the arguments that the installed release has.

    Args:
        options: what is asked for.
        known: the names of its arguments, or what tells whether it has one of a name.
        version: its name.
        made: the option that each argument comes from.
    """
    names: Set[str] = frozenset[str]() if callable(known) else known
    has = known if callable(known) else known.__contains__
    for argument in options.passed_through:
        if not has(argument):
            near = difflib.get_close_matches(argument, sorted(names), n=3)
            meant = f", such as {', '.join(near)}" if near else ""
            raise InvalidArgument(f"engine_args[{argument!r}]", "unknown", f"an argument of vLLM {version}{meant}")
    for argument, option in made.items():
        if not has(argument):
            since = "vLLM 0.30 or later" if option == "max_waiting" else f"a release that has {argument}"
            raise InvalidArgument(option, f"given with vLLM {version}", since)
    found = re.match(r"(\d+)\.(\d+)", version)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    gone, instead = _GONE.get(options.quantization or "", ((10**9, 0), ""))
    if release >= gone and not _has_plugin(str(options.quantization)):
        given = f"{options.quantization!r} with vLLM {version}"
        raise InvalidArgument("quantization", given, instead)


def _has_plugin(quantization: str) -> bool:
    """Tell whether a plugin of vLLM by this name is installed, which may bring what vLLM dropped."""
    return any(
        quantization in f"{point.name} {point.value}".lower() for point in entry_points(group="vllm.general_plugins")
    )


def check_parser(option: str, name: str | None, parsers: Sequence[str], version: str) -> None:
    """Refuse a parser that the installed release doesn't have; ``parsers`` is empty if it doesn't tell."""
    if name is None or not parsers or name in parsers:
        return
    near = difflib.get_close_matches(name, parsers, n=4, cutoff=0.4) or sorted(parsers)[:8]
    raise InvalidArgument(option, repr(name)[:40], f"a parser of vLLM {version}, such as {', '.join(near)}")

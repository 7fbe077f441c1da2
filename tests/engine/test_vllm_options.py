"""The options against the installed vLLM: its argument table, its closed lists, and the configuration it makes.

No engine is started.
"""

from __future__ import annotations

import importlib
import os
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmprod import MTP, DraftModel, Eagle, EngineOptions, InvalidArgument, Medusa, NGram, Parallel, StructuredOutputs
from llmprod.providers._vllm import compat
from llmprod.providers._vllm.adapters import RANKS
from llmprod.providers._vllm.incarnation import Incarnation
from llmprod.providers._vllm.options import EngineKeywords

pytestmark = pytest.mark.vllm

# Every option with a value for it, as far as they go together; what only the provider reads is in OURS.
EVERY: dict[str, Any] = {
    "revision": "main", "tokenizer": "a/b", "dtype": "bfloat16", "quantization": "fp8", "load_format": "dummy",
    "kv_cache_dtype": "fp8", "trust_remote_code": True, "seed": 1, "kv_cache_gib": 1, "max_model_len": 256,
    "max_num_seqs": 4, "max_num_batched_tokens": 512, "enable_prefix_caching": True, "enable_chunked_prefill": True,
    "enforce_eager": True, "scheduling_policy": "priority", "speculative": NGram(),
    "parallel": Parallel(tensor=2, pipeline=2, data=2, expert=True, executor="mp"), "convert": "none",
    "chat_template": "{{ messages }}", "tool_call_parser": "hermes", "reasoning_parser": "qwen3",
    "loras": {"a": "x/a"}, "max_loras": 2, "max_lora_rank": 32, "max_cpu_loras": 3, "limit_mm_per_prompt": {"image": 1},
    "engine_args": {"block_size": 128},
}  # fmt: skip
ALONE: list[dict[str, Any]] = [{"runner": "pooling"}, {"gpu_memory_utilization": 0.5}, {"max_waiting": 3}]
OURS = {"warm", "start_method", "one_process", "env", "structured_outputs"}


@pytest.fixture(scope="module")
def modules() -> Iterator[compat.VLLMModules]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's own
        yield compat.load()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Give back the environment, into which vLLM writes; its own warnings are no failures."""
    before = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    os.environ.clear()
    os.environ.update(before)


def configured(modules: compat.VLLMModules, model: Path, **options: Any) -> Any:
    """Return what vLLM makes of the options, by the way an engine's start goes."""
    wanted = EngineOptions(str(model), **{"max_model_len": 256, "enforce_eager": True, **options})
    os.environ.update(wanted.cpu_environment())
    args = Incarnation._arguments(typing.cast("Any", None), wanted, modules)
    return modules.AsyncEngineArgs.from_cli_args(args).create_engine_config()


def test_vllm_has_an_argument_for_every_option(modules: compat.VLLMModules) -> None:
    said = EVERY.keys() | {name for options in ALONE for name in options}
    assert said | OURS == EngineKeywords.__annotations__.keys()  # none is forgotten here
    args = modules.parsed_arguments()
    for options in (EVERY, *ALONE):
        made = EngineOptions("some/model", **options)
        for name in made.arguments():
            assert name == "max_num_queued_reqs" or hasattr(args, name), f"vLLM {modules.version} has no {name}"
    for name in StructuredOutputs().config():
        assert hasattr(args.structured_outputs_config, name)


def test_all_at_once_is_accepted(modules: compat.VLLMModules) -> None:
    args = modules.parsed_arguments()
    tool, reasoning = modules.parsers("tool"), modules.parsers("reasoning")
    assert "hermes" in tool
    assert "qwen3" in reasoning
    EngineOptions("some/model", **EVERY).check_against(vars(args).keys(), modules.version, tool, reasoning)


@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("vllm.config.model", "ModelDType", {"dtype"}),
        ("vllm.config.model", "ConvertOption", {"convert"}),
        ("vllm.config.scheduler", "SchedulerPolicy", {"scheduling_policy"}),
    ],
    ids=["dtype", "convert", "policy"],
)
def test_every_word_of_closed_lists_is_allowed(
    modules: compat.VLLMModules, module: str, name: str, ours: set[str]
) -> None:
    words = _words(getattr(importlib.import_module(module), name))
    assert len(words) > 1
    for word in words:
        for option in ours:
            runner = {"runner": "pooling"} if option == "convert" else {}
            made = EngineOptions("some/model", **{option: word}, **runner)  # type: ignore[arg-type]
            assert getattr(made, option) == word


def _words(literal: Any) -> set[str]:
    return {word for part in typing.get_args(literal) for word in (_words(part) or {part})}


def test_ranks_and_backends_are_vllms(modules: compat.VLLMModules) -> None:
    lora: Any = importlib.import_module("vllm.config.lora")
    outputs: Any = importlib.import_module("vllm.config.structured_outputs")
    assert set(RANKS) == set(typing.get_args(lora.MaxLoRARanks))
    for backend in typing.get_args(outputs.StructuredOutputsBackend):
        StructuredOutputs(backend=backend, disable_any_whitespace=False)


def test_an_engine_that_generates(modules: compat.VLLMModules, tiny_model: Path, adapters: dict[str, str]) -> None:
    config = configured(
        modules, tiny_model, dtype="bfloat16", seed=5, kv_cache_gib=1, max_num_seqs=4, max_num_batched_tokens=512,
        enable_prefix_caching=False, enable_chunked_prefill=True, scheduling_policy="priority", loras=adapters,
        max_cpu_loras=3, reasoning_parser="qwen3", structured_outputs=StructuredOutputs(enable_in_reasoning=True),
        engine_args={"stream_interval": 4},
    )  # fmt: skip
    assert str(config.model_config.dtype) == "torch.bfloat16"
    assert config.model_config.seed == 5
    assert config.model_config.max_model_len == 256
    assert config.model_config.enforce_eager
    scheduler = config.scheduler_config
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (4, 512)
    assert (scheduler.policy, scheduler.enable_chunked_prefill, scheduler.stream_interval) == ("priority", True, 4)
    assert not config.cache_config.enable_prefix_caching
    lora = config.lora_config
    assert (lora.max_loras, lora.max_lora_rank, lora.max_cpu_loras) == (2, 8, 3)
    outputs = config.structured_outputs_config
    assert (outputs.backend, outputs.disable_any_whitespace) == ("xgrammar", True)
    assert (outputs.enable_in_reasoning, outputs.reasoning_parser) == (True, "qwen3")


@pytest.mark.parametrize("asked", [1, 1.5])
def test_the_cache_has_the_size_asked_for(modules: compat.VLLMModules, tiny_model: Path, asked: float) -> None:
    config = configured(modules, tiny_model, kv_cache_gib=asked)
    given = config.cache_config.kv_cache_memory_bytes
    assert asked * 2**30 <= given < (asked + 1) * 2**30


def test_the_share_of_memory(modules: compat.VLLMModules, tiny_model: Path) -> None:
    config = configured(modules, tiny_model, gpu_memory_utilization=0.25)
    assert config.cache_config.gpu_memory_utilization == 0.25


def test_an_engine_that_embeds(modules: compat.VLLMModules, tiny_model: Path) -> None:
    config = configured(modules, tiny_model, runner="pooling", convert="embed")
    assert (config.model_config.runner_type, config.model_config.convert_type) == ("pooling", "embed")


def test_how_many_may_wait(modules: compat.VLLMModules, tiny_model: Path) -> None:
    if not hasattr(modules.parsed_arguments(), "max_num_queued_reqs"):
        with pytest.raises(InvalidArgument, match=r"max_waiting.*0\.30"):
            configured(modules, tiny_model, max_waiting=3)
    else:
        assert configured(modules, tiny_model, max_waiting=3).scheduler_config.max_num_queued_reqs == 3


def test_speculation_by_what_was_said(modules: compat.VLLMModules, tiny_model: Path) -> None:
    spec = configured(modules, tiny_model, speculative=NGram(tokens=2, lookup_min=2, lookup_max=5)).speculative_config
    assert (spec.method, spec.num_speculative_tokens) == ("ngram", 2)
    assert (spec.prompt_lookup_min, spec.prompt_lookup_max) == (2, 5)


def test_speculation_by_a_smaller_model(modules: compat.VLLMModules, tiny_model: Path) -> None:
    draft = DraftModel(model=str(tiny_model), tokens=2, max_model_len=128, tensor_parallel=1)
    spec = configured(modules, tiny_model, speculative=draft).speculative_config
    assert (spec.method, spec.num_speculative_tokens, spec.draft_tensor_parallel_size) == ("draft_model", 2, 1)
    assert spec.draft_model_config.max_model_len == 128


@pytest.mark.parametrize(
    "speculative", [NGram(), Eagle(model="a/b", version=1), Eagle(model="a/b"), Medusa(model="a/b"), MTP()], ids=repr
)
def test_vllm_knows_every_way_of_speculation(modules: compat.VLLMModules, speculative: Any) -> None:
    known: Any = importlib.import_module("vllm.config.speculative")
    config = speculative.config()
    assert config["method"] in _words(known.SpeculativeMethod)
    assert config.keys() <= known.SpeculativeConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7, "max_num_seqs": 8},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 128, "max_model_len": 256},
        {"enable_lora": True, "max_lora_rank": 48},
        {"enable_lora": True, "max_loras": 3, "max_cpu_loras": 2},
        {"max_model_len": 10**6},
        {"tensor_parallel_size": 7},
        {"enable_expert_parallel": True, "tensor_parallel_size": 2},
        {"quantization": "gguf"},
        {"convert": "reward"},
    ],
    ids=str,
)
def test_vllm_refuses_what_is_refused_before_it_is_asked(
    modules: compat.VLLMModules, tiny_model: Path, options: dict[str, Any]
) -> None:
    """The checks forbid nothing that vLLM would do."""
    args = modules.parsed_arguments()
    args.model, args.max_model_len = str(tiny_model), 256
    for name, value in options.items():
        setattr(args, name, value)
    with pytest.raises(Exception) as caught:  # pydantic's, or one of its own
        modules.AsyncEngineArgs.from_cli_args(args).create_engine_config()
    assert not isinstance(caught.value, (TypeError, AttributeError, ImportError)), repr(caught.value)


def test_an_argument_that_vllm_lacks(modules: compat.VLLMModules, tiny_model: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        configured(modules, tiny_model, engine_args={"blocksize": 128})
    assert caught.value.field == "engine_args['blocksize']"
    assert modules.version in caught.value.allowed
    names = vars(modules.parsed_arguments()).keys()
    with pytest.raises(InvalidArgument, match="block_size"):
        EngineOptions(str(tiny_model), engine_args={"blocksize": 128}).check_against(names, modules.version, [], [])


def test_a_parser_that_vllm_lacks(modules: compat.VLLMModules, tiny_model: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"tool_call_parser.*hermes"):
        configured(modules, tiny_model, tool_call_parser="hermess")
    with pytest.raises(InvalidArgument, match=r"reasoning_parser.*qwen3"):
        configured(modules, tiny_model, reasoning_parser="qwen33")

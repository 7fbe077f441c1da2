"""The embedded engine's options: what is said before vLLM is imported, and what vLLM is given."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from llmprod import (
    MTP,
    DraftModel,
    Eagle,
    EngineOptions,
    InvalidArgument,
    LoRA,
    Medusa,
    NGram,
    Parallel,
    StructuredOutputs,
)

NAME = "some/model"
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 12,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 1000,
}


def checkpoint(folder: Path, **config: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | config), "utf-8")
    return str(folder)


def adapter(folder: Path, weights: str = "adapter_model.safetensors", **config: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config), "utf-8")
    (folder / weights).write_bytes(b"")
    return str(folder)


def refused(model: str = NAME, **options: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        EngineOptions(model, **options)
    return caught.value


def arguments(**options: Any) -> dict[str, Any]:
    """What the options make, without what is always set."""
    made = EngineOptions(NAME, **options).arguments()
    for name in ("enable_prompt_tokens_details", "use_tqdm_on_load"):
        del made[name]
    return made


# ---- what vLLM is given ---------------------------------------------------------------------------------------------


def test_what_is_left_alone_is_left_to_vllm() -> None:
    assert arguments() == {}
    assert EngineOptions(NAME).arguments() == {"enable_prompt_tokens_details": True, "use_tqdm_on_load": False}


def test_vllms_own_names_are_passed_as_they_are() -> None:
    same: dict[str, Any] = {
        "revision": "main", "tokenizer": "some/tokenizer", "dtype": "bfloat16", "quantization": "fp8",
        "load_format": "dummy", "kv_cache_dtype": "fp8", "trust_remote_code": True, "seed": 0,
        "gpu_memory_utilization": 0.5, "max_model_len": 4096, "max_num_seqs": 8, "max_num_batched_tokens": 8192,
        "enable_prefix_caching": False, "enable_chunked_prefill": True, "enforce_eager": True,
        "scheduling_policy": "priority", "chat_template": "{{ messages }}", "reasoning_parser": "qwen3",
        "limit_mm_per_prompt": {"image": 2},
    }  # fmt: skip
    assert arguments(**same) == same
    assert arguments(runner="pooling", convert="embed") == {"runner": "pooling", "convert": "embed"}


@pytest.mark.parametrize(
    ("options", "made"),
    [
        pytest.param({"kv_cache_gib": 1.5}, {"kv_cache_memory_bytes": 3 * 2**29}, id="cache"),
        pytest.param({"max_waiting": 7}, {"max_num_queued_reqs": 7}, id="waiting"),
        pytest.param(
            {"tool_call_parser": "hermes"}, {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}, id="tools"
        ),
        pytest.param(
            {"parallel": Parallel(tensor=2, pipeline=3, data=4, expert=True, executor="ray")},
            {
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 3,
                "data_parallel_size": 4,
                "enable_expert_parallel": True,
                "distributed_executor_backend": "ray",
            },
            id="parallel",
        ),
        pytest.param(
            {"speculative": NGram(tokens=2, lookup_min=1, lookup_max=3)},
            {
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 2,
                    "prompt_lookup_min": 1,
                    "prompt_lookup_max": 3,
                }
            },
            id="ngram",
        ),
        pytest.param(
            {"loras": {"sql": "some/sql", "law": LoRA(path="some/law")}},
            {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16},
            id="adapters elsewhere",
        ),
        pytest.param(
            {"loras": {"sql": "some/sql"}, "max_loras": 3, "max_lora_rank": 64, "max_cpu_loras": 5},
            {"enable_lora": True, "max_loras": 3, "max_lora_rank": 64, "max_cpu_loras": 5},
            id="adapters by hand",
        ),
        pytest.param(
            {"engine_args": {"block_size": 32, "use_tqdm_on_load": True}},
            {"block_size": 32},
            id="passed through",
        ),
    ],
)
def test_others_become_vllms(options: dict[str, Any], made: dict[str, Any]) -> None:
    assert arguments(**options) == made


def test_what_is_passed_through_wins_over_what_is_always_set() -> None:
    assert EngineOptions(NAME, engine_args={"use_tqdm_on_load": True}).arguments()["use_tqdm_on_load"] is True


@pytest.mark.parametrize(
    ("speculative", "config"),
    [
        (Eagle(model="a/b"), {"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3}),
        (
            Eagle(model="a/b", tokens=5, version=1, tensor_parallel=1),
            {"method": "eagle", "model": "a/b", "num_speculative_tokens": 5, "draft_tensor_parallel_size": 1},
        ),
        (Medusa(model="a/b", tokens=2), {"method": "medusa", "model": "a/b", "num_speculative_tokens": 2}),
        (DraftModel(model="a/b"), {"method": "draft_model", "model": "a/b", "num_speculative_tokens": 4}),
        (
            DraftModel(model="a/b", tokens=1, quantization="fp8", max_model_len=512, tensor_parallel=1),
            {
                "method": "draft_model",
                "model": "a/b",
                "num_speculative_tokens": 1,
                "quantization": "fp8",
                "max_model_len": 512,
                "draft_tensor_parallel_size": 1,
            },
        ),
        (MTP(tokens=2), {"method": "mtp", "num_speculative_tokens": 2}),
    ],
    ids=["eagle3", "eagle", "medusa", "draft", "draft in full", "mtp"],
)
def test_speculation(speculative: Any, config: dict[str, Any]) -> None:
    assert arguments(speculative=speculative) == {"speculative_config": config}


@pytest.mark.parametrize(
    ("ranks", "needed"), [((1,), 1), ((8, 4), 8), ((9,), 16), ((257,), 320), ((512,), 512)], ids=str
)
def test_the_rank_is_read_from_local_adapters(tmp_path: Path, ranks: tuple[int, ...], needed: int) -> None:
    loras = {f"n{rank}": adapter(tmp_path / str(rank), r=rank) for rank in ranks}
    assert arguments(loras=loras)["max_lora_rank"] == needed


def test_the_rank_of_single_modules_counts(tmp_path: Path) -> None:
    loras = {"sql": adapter(tmp_path / "sql", "adapter_model.bin", rank_pattern={"q_proj": 30})}
    assert arguments(loras=loras)["max_lora_rank"] == 32


@pytest.mark.parametrize(("asked", "said"), [(0.25, "1"), (1, "1"), (1.5, "2"), (2, "2"), (2.5, "3")])
def test_the_cpu_build_is_given_whole_gib(asked: float, said: str) -> None:
    assert EngineOptions(NAME, kv_cache_gib=asked).cpu_environment()["VLLM_CPU_KVCACHE_SPACE"] == said


def test_the_cpu_build_runs_one_process_where_that_is_possible() -> None:
    one = "VLLM_ENABLE_V1_MULTIPROCESSING"
    assert EngineOptions(NAME).cpu_environment() == {one: "0"}
    assert EngineOptions(NAME, one_process=False).cpu_environment() == {}
    assert EngineOptions(NAME, parallel=Parallel(tensor=2)).cpu_environment() == {}
    assert EngineOptions(NAME, env={"A": "b"}).cpu_environment() == {one: "0", "A": "b"}


def test_structured_outputs() -> None:
    assert EngineOptions(NAME).structured_outputs.config() == {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
        "enable_in_reasoning": False,
    }


# ---- equality, repr -------------------------------------------------------------------------------------------------


def test_equal_options_are_equal_whatever_their_order() -> None:
    def made(turn: int) -> EngineOptions:
        def turned(values: dict[str, Any]) -> dict[str, Any]:
            return dict(list(values.items())[::turn])

        return EngineOptions(
            NAME,
            loras=turned({"a": "x/a", "b": LoRA(path="x/b")}),
            env=turned({"C": "1", "D": "2"}),
            engine_args=turned({"block_size": 32, "hf_overrides": {"p": [1], "q": None}}),
            speculative=NGram(),
        )

    one, other = made(1), made(-1)
    assert one == other
    assert hash(one) == hash(other)
    assert [name for name, _ in other.loras] == ["b", "a"]  # as given
    assert other.passed_through == {"block_size": 32, "hf_overrides": {"p": [1], "q": None}}


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"loras": {"a": "x/a"}},
        {"env": {"A": "2"}},
        {"engine_args": {"block_size": 16}},
        {"speculative": NGram()},
        {"warm": False},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_options_are_another_engine(other: dict[str, Any]) -> None:
    assert EngineOptions(NAME, **other) != EngineOptions(NAME)


def test_later_changes_of_what_was_passed_change_nothing() -> None:
    env, nested = {"A": "1"}, {"block_size": [1]}
    options = EngineOptions(NAME, env=env, engine_args=nested)
    before = hash(options)
    env["A"] = "2"
    nested["block_size"].append(2)
    options.passed_through["block_size"].append(3)
    assert hash(options) == before
    assert options.passed_through == {"block_size": [1]}
    with pytest.raises(AttributeError):
        options.seed = 3  # type: ignore[misc]


def test_repr_tells_what_was_asked_for_and_no_secrets() -> None:
    options = EngineOptions(
        NAME,
        max_model_len=64,
        parallel=Parallel(tensor=2),
        chat_template="{{ 'You work for Acme' }}",
        env={"HF_TOKEN": "hf_secret"},
        engine_args={"hf_token": "hf_secret", "block_size": 32},
    )
    assert repr(options) == (
        "EngineOptions('some/model', max_model_len=64, parallel=…, chat_template=…, env=['HF_TOKEN'], "
        "engine_args=['block_size', 'hf_token'])"
    )
    assert repr(EngineOptions(NAME)) == "EngineOptions('some/model')"


def test_errors_show_no_secrets() -> None:
    for options in (
        {"env": {"HF_TOKEN": 5}},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "hf_secret"}},
        {"engine_args": {"hf_token": {"hf_secret"}}},
        {"engine_args": {"seed": "hf_secret"}},
    ):
        assert "hf_secret" not in str(refused(**options))


# ---- each by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("revision", ""), ("tokenizer", 3), ("dtype", "float8"), ("dtype", None), ("quantization", " "),
        ("load_format", True), ("kv_cache_dtype", 8), ("trust_remote_code", None), ("trust_remote_code", 1),
        ("seed", -1), ("seed", 1.0), ("gpu_memory_utilization", 0), ("gpu_memory_utilization", 1.2),
        ("gpu_memory_utilization", float("nan")), ("kv_cache_gib", 0), ("kv_cache_gib", "4"), ("max_model_len", 0),
        ("max_model_len", True), ("max_num_seqs", -1), ("max_num_batched_tokens", 1.5), ("enable_prefix_caching", "no"),
        ("enable_chunked_prefill", 0), ("enforce_eager", "yes"), ("scheduling_policy", "lifo"), ("max_waiting", 0),
        ("speculative", {"method": "ngram"}), ("parallel", 2), ("runner", "auto"), ("convert", "reward"),
        ("chat_template", ""), ("tool_call_parser", 1), ("reasoning_parser", ""), ("structured_outputs", "xgrammar"),
        ("loras", ["a"]), ("loras", {"": "x/a"}), ("loras", {3: "x/a"}), ("loras", {NAME: "x/a"}),
        ("limit_mm_per_prompt", [1]), ("warm", 1), ("start_method", "forkserver"), ("one_process", None),
        ("env", ["A=1"]), ("env", {"A": 1}), ("env", {"": "1"}), ("env", {"A=B": "1"}), ("env", {"A\0": "1"}),
        ("engine_args", "--x"), ("engine_args", {"x": object()}), ("engine_args", {"x": float("inf")}),
        ("engine_args", {1: 2}), ("max_lora_rank", 0),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_wrong_values_are_refused_by_the_options_name(option: str, value: Any) -> None:
    assert refused(**{option: value}).field == option


@pytest.mark.parametrize("model", ["", " ", None, 3], ids=repr)
def test_a_model_is_needed(model: Any) -> None:
    assert refused(model).field == "model"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit_mm_per_prompt": {"image": -1}}, "limit_mm_per_prompt['image']"),
        ({"loras": {"sql": 3}}, "loras['sql']"),
        ({"loras": {"sql": "x/sql"}, "max_lora_rank": 48}, "max_lora_rank"),
    ],
    ids=str,
)
def test_wrong_values_inside(options: dict[str, Any], field: str) -> None:
    assert refused(**options).field == field


@pytest.mark.parametrize(
    ("record", "values", "field"),
    [
        (NGram, {"tokens": 0}, "speculative.tokens"),
        (NGram, {"lookup_min": 0}, "speculative.lookup_min"),
        (NGram, {"lookup_min": 3, "lookup_max": 2}, "speculative.lookup_max"),
        (Eagle, {"model": ""}, "speculative.model"),
        (Eagle, {"model": "a/b", "version": 2}, "speculative.version"),
        (Eagle, {"model": "a/b", "version": True}, "speculative.version"),
        (Eagle, {"model": "a/b", "tensor_parallel": 0}, "speculative.tensor_parallel"),
        (Medusa, {"model": None}, "speculative.model"),
        (Medusa, {"model": "a/b", "tokens": 1.5}, "speculative.tokens"),
        (DraftModel, {"model": "a/b", "quantization": ""}, "speculative.quantization"),
        (DraftModel, {"model": "a/b", "max_model_len": 0}, "speculative.max_model_len"),
        (MTP, {"tokens": True}, "speculative.tokens"),
        (Parallel, {"tensor": 0}, "parallel.tensor"),
        (Parallel, {"pipeline": "2"}, "parallel.pipeline"),
        (Parallel, {"data": -1}, "parallel.data"),
        (Parallel, {"expert": 1}, "parallel.expert"),
        (Parallel, {"executor": "slurm"}, "parallel.executor"),
        (Parallel, {"executor": "uni", "tensor": 2}, "parallel.executor"),
        (LoRA, {"path": " "}, "loras"),
        (StructuredOutputs, {"backend": "lark"}, "structured_outputs.backend"),
        (StructuredOutputs, {"enable_in_reasoning": None}, "structured_outputs.enable_in_reasoning"),
        (StructuredOutputs, {"backend": "auto"}, "structured_outputs.disable_any_whitespace"),
        (StructuredOutputs, {"backend": "outlines"}, "structured_outputs.disable_any_whitespace"),
    ],
    ids=str,
)
def test_wrong_records(record: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        record(**values)
    assert caught.value.field == field


def test_whitespace_may_be_free_with_every_backend() -> None:
    assert StructuredOutputs(backend="auto", disable_any_whitespace=False).config()["backend"] == "auto"


# ---- together -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"runner": "pooling", "speculative": NGram()}, "speculative"),
        ({"runner": "pooling", "tool_call_parser": "hermes"}, "tool_call_parser"),
        ({"runner": "pooling", "reasoning_parser": "qwen3"}, "reasoning_parser"),
        ({"convert": "embed"}, "convert"),
        ({"gpu_memory_utilization": 0.5, "kv_cache_gib": 1}, "kv_cache_gib"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 100, "max_model_len": 101},
            "max_num_batched_tokens",
        ),
        ({"max_num_batched_tokens": 7, "max_num_seqs": 8}, "max_num_batched_tokens"),
        (
            {"loras": {"a": "x/a"}, "speculative": NGram(tokens=3), "max_num_batched_tokens": 31, "max_num_seqs": 8},
            "max_num_batched_tokens",
        ),
        ({"max_loras": 2}, "max_loras"),
        ({"max_lora_rank": 8}, "max_lora_rank"),
        ({"max_cpu_loras": 2}, "max_cpu_loras"),
        ({"loras": {"a": "x/a", "b": "x/b"}, "max_cpu_loras": 1}, "max_cpu_loras"),
        ({"loras": {"a": "x/a"}, "max_loras": 4, "max_cpu_loras": 3}, "max_cpu_loras"),
        ({"speculative": Eagle(model="a/b", tensor_parallel=2)}, "speculative.tensor_parallel"),
        (
            {"speculative": DraftModel(model="a/b", tensor_parallel=2), "parallel": Parallel(tensor=4)},
            "speculative.tensor_parallel",
        ),
        ({"speculative": DraftModel(model="a/b", max_model_len=65), "max_model_len": 64}, "speculative.max_model_len"),
    ],
    ids=str,
)
def test_contradictions(options: dict[str, Any], field: str) -> None:
    assert refused(**options).field == field


@pytest.mark.parametrize(
    "options",
    [
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 100, "max_model_len": 100},
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 100, "max_model_len": 101},
        {"max_num_batched_tokens": 8, "max_num_seqs": 8},
        {"loras": {"a": "x/a"}, "speculative": NGram(tokens=3), "max_num_batched_tokens": 32, "max_num_seqs": 8},
        {"loras": {"a": "x/a"}, "max_loras": 4, "max_cpu_loras": 4},
        {"speculative": Eagle(model="a/b", tensor_parallel=2), "parallel": Parallel(tensor=2)},
        {"speculative": DraftModel(model="a/b", tensor_parallel=1), "parallel": Parallel(tensor=2)},
        {"speculative": DraftModel(model="a/b", max_model_len=64), "max_model_len": 64},
        {"speculative": DraftModel(model="a/b", max_model_len=64)},
        {"convert": "none"},
    ],
    ids=str,
)
def test_what_goes_together(options: dict[str, Any]) -> None:
    EngineOptions(NAME, **options)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("max_model_len", "max_model_len"), ("seed", "seed"), ("warm", "warm"), ("model", "first argument"),
        ("tensor_parallel_size", "parallel"), ("kv_cache_memory_bytes", "kv_cache_gib"),
        ("max_num_queued_reqs", "max_waiting"), ("structured_outputs_config", "structured_outputs"),
        ("lora_modules", "loras"), ("enable_auto_tool_choice", "tool_call_parser"), ("served_model_name", "name"),
    ],
)  # fmt: skip
def test_an_option_is_said_in_one_way(name: str, instead: str) -> None:
    error = refused(engine_args={name: 1})
    assert error.field == f"engine_args['{name}']"
    assert instead in error.allowed


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ({"speculative": NGram()}, "speculative_config"),
        ({"speculative": NGram()}, "spec_tokens"),
        ({"parallel": Parallel(executor="mp")}, "distributed_executor_backend"),
    ],
    ids=["speculative", "spec_tokens", "executor"],
)
def test_what_options_say_in_part_is_passed_through_unless_both_say_it(typed: dict[str, Any], name: str) -> None:
    error = refused(**typed, engine_args={name: 1})
    assert name in error.field
    assert next(iter(typed)) in str(error)
    assert arguments(engine_args={name: 1}) == {name: 1}


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", "kv_cache_gib"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "start_method"),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "one_process"),
    ],
)
def test_variables_with_options_of_their_own(name: str, instead: str) -> None:
    error = refused(env={name: "1"})
    assert error.field == f"env['{name}']"
    assert instead in error.allowed


def test_a_chat_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    assert refused(chat_template=str(file)).field == "chat_template"
    file.write_text("{{ messages }}", "utf-8")
    assert arguments(chat_template=str(file)) == {"chat_template": str(file)}


def test_a_local_tokenizer_is_there(tmp_path: Path) -> None:
    assert refused(tokenizer=str(tmp_path / "none")).field == "tokenizer"
    EngineOptions(NAME, tokenizer=str(tmp_path))


# ---- with a local checkpoint ----------------------------------------------------------------------------------------


def test_a_path_leads_to_a_checkpoint(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "none")).field == "model"
    assert "config.json" in str(refused(str(tmp_path)))
    (tmp_path / "params.json").write_text("{}", "utf-8")  # Mistral's own format
    EngineOptions(str(tmp_path))


def test_a_gguf_file_may_be_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    EngineOptions(str(tmp_path / "m.gguf"))
    EngineOptions(str(tmp_path))
    assert refused(str(tmp_path / "other.gguf")).field == "model"


def test_no_longer_than_the_model_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    model = checkpoint(tmp_path)
    EngineOptions(model, max_model_len=2048)
    error = refused(model, max_model_len=2049)
    assert error.field == "max_model_len"
    assert "2048" in error.allowed
    EngineOptions(model, max_model_len=2049, env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    EngineOptions(model, max_model_len=2049, engine_args={"hf_overrides": {"max_position_embeddings": 4096}})
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "true")
    EngineOptions(model, max_model_len=2049)


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({"rope_scaling": None}, False),
        ({"rope_scaling": {"type": "mrope"}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, False),
        ({"rope_parameters": {"full": {"rope_type": "default"}, "sliding": {"rope_type": "default"}}}, False),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, True),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, True),
        ({"rope_parameters": {"full": {"rope_type": "yarn"}, "sliding": {"rope_type": "default"}}}, True),
        ({"model_max_length": 4096}, True),
        ({"model_max_length": 2000}, False),
        ({"max_position_embeddings": None}, True),
        ({"text_config": {"max_position_embeddings": 8192}}, True),
        ({"max_position_embeddings": 8192, "text_config": {"max_position_embeddings": 1024}}, False),
    ],
    ids=str,
)
def test_what_stretches_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], fits: bool
) -> None:
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    model = checkpoint(tmp_path, **config)
    if fits:
        EngineOptions(model, max_model_len=4096)
    else:
        assert refused(model, max_model_len=4096).field == "max_model_len"


@pytest.mark.parametrize(
    ("parallel", "field"),
    [
        (Parallel(tensor=5), "parallel.tensor"),
        (Parallel(pipeline=5), "parallel.pipeline"),
        (Parallel(expert=True), "parallel.expert"),
    ],
    ids=["heads", "layers", "experts"],
)
def test_a_model_is_divided_as_it_can_be(tmp_path: Path, parallel: Parallel, field: str) -> None:
    model = checkpoint(tmp_path)
    assert refused(model, parallel=parallel).field == field
    EngineOptions(NAME, parallel=parallel)  # what isn't local, vLLM must say


@pytest.mark.parametrize("name", ["num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"])
def test_experts_by_any_name(tmp_path: Path, name: str) -> None:
    EngineOptions(checkpoint(tmp_path, **{name: 8}), parallel=Parallel(tensor=4, pipeline=4, expert=True))


@pytest.mark.parametrize(
    ("own", "asked", "fits"),
    [
        ("gptq", "gptq_marlin", True), ("gptq", "auto_gptq", True), ("awq", "awq_marlin", True), ("awq", "awq", True),
        ("compressed-tensors", "compressed-tensors", True), ("gptq", "humming", True), ("gptq", "moe_wna16", True),
        ("mxfp4", "gpt_oss_mxfp4", True), ("gptq", "awq", False), ("awq", "fp8", False),
        ("compressed-tensors", "fp8", False), ("fp8", None, True),
    ],
)  # fmt: skip
def test_a_quantized_checkpoint_says_how(tmp_path: Path, own: str, asked: str | None, fits: bool) -> None:
    model = checkpoint(tmp_path, quantization_config={"quant_method": own})
    if fits:
        EngineOptions(model, quantization=asked)
    else:
        error = refused(model, quantization=asked)
        assert error.field == "quantization"
        assert own in error.allowed


def test_a_draft_model_of_another_vocabulary(tmp_path: Path) -> None:
    model, other = checkpoint(tmp_path / "model"), checkpoint(tmp_path / "other", vocab_size=999)
    same = checkpoint(tmp_path / "same", num_hidden_layers=1)
    error = refused(model, speculative=DraftModel(model=other))
    assert error.field == "speculative.model"
    assert "999" in str(error)
    assert "1000" in str(error)
    EngineOptions(model, speculative=DraftModel(model=same))
    EngineOptions(model, speculative=Eagle(model=other))  # heads may have a vocabulary of their own


@pytest.mark.parametrize("kind", [Eagle, Medusa, DraftModel])
def test_a_draft_that_is_not_there(tmp_path: Path, kind: Any) -> None:
    assert refused(speculative=kind(model=str(tmp_path / "none"))).field == "speculative.model"
    assert refused(speculative=kind(model=str(tmp_path))).field == "speculative.model"


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"], ids=["empty", "list", "broken", "not UTF-8"])
def test_an_unreadable_configuration_is_left_to_vllm(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "latin-1")
    EngineOptions(str(tmp_path), max_model_len=10**6, parallel=Parallel(tensor=7, expert=True))


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_an_adapters_folder_holds_one(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        error = refused(loras={"sql": str(path)})
        assert error.field == "loras['sql']"
        return str(error)

    assert "no folder" in said(tmp_path / "none")
    assert "adapter_config.json" in said(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 8}', "utf-8")
    assert "adapter_model.safetensors" in said(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    EngineOptions(NAME, loras={"sql": str(tmp_path)})


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"), ({"use_dora": True}, "DoRA"), ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"), ({"modules_to_save": ["lm_head", "score"]}, "lm_head"), ({"r": None}, "rank"),
        ({"r": 0}, "rank"), ({"r": 513}, "513"), ({"rank_pattern": {"q_proj": 1024}}, "1024"),
    ],
    ids=str,
)  # fmt: skip
def test_adapters_that_vllm_cannot_load(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    error = refused(loras={"sql": adapter(tmp_path / "sql", **config)})
    assert error.field == "loras['sql']"
    assert word in str(error)


def test_a_classifiers_head_may_be_saved(tmp_path: Path) -> None:
    EngineOptions(NAME, loras={"sql": adapter(tmp_path / "sql", modules_to_save=["score"], bias="none")})


def test_a_rank_above_the_largest(tmp_path: Path) -> None:
    loras = {"sql": adapter(tmp_path / "sql", r=32)}
    error = refused(loras=loras, max_lora_rank=16)
    assert error.field == "max_lora_rank"
    assert "32" in error.allowed
    assert "sql" in error.allowed
    EngineOptions(NAME, loras=loras, max_lora_rank=32)


# ---- against the installed vLLM -------------------------------------------------------------------------------------

ARGUMENTS = frozenset({"block_size", "seed", "max_num_queued_reqs", "tensor_parallel_size", "quantization"})


def unfit(
    options: EngineOptions, version: str = "0.32.0", known: Any = ARGUMENTS, parsers: tuple[str, ...] = ()
) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        options.check_against(known, version, parsers, parsers)
    return caught.value


def test_an_unknown_argument_names_the_release_and_what_may_be_meant() -> None:
    options = EngineOptions(NAME, engine_args={"blocksize": 32})
    error = unfit(options)
    assert error.field == "engine_args['blocksize']"
    assert "0.32.0" in error.allowed
    assert "block_size" in error.allowed
    assert "0.32.0" in unfit(options, known=ARGUMENTS.__contains__).allowed


@pytest.mark.parametrize(
    "known", [ARGUMENTS, dict.fromkeys(ARGUMENTS).keys(), ARGUMENTS.__contains__], ids=["set", "keys", "function"]
)
def test_a_release_that_has_everything(known: Any) -> None:
    options = EngineOptions(NAME, seed=1, max_waiting=3, parallel=Parallel(tensor=2), engine_args={"block_size": 32})
    options.check_against(known, "0.32.0", (), ())
    EngineOptions(NAME).check_against(frozenset(), "0.1.dev7+g0", (), ())


def test_a_release_that_lacks_an_option() -> None:
    error = unfit(EngineOptions(NAME, max_waiting=3), "0.26.0", ARGUMENTS - {"max_num_queued_reqs"})
    assert error.field == "max_waiting"
    assert "0.26.0" in error.given
    assert "0.30" in error.allowed
    error = unfit(EngineOptions(NAME, parallel=Parallel(pipeline=2)))
    assert error.field == "parallel"
    assert "pipeline_parallel_size" in error.allowed


@pytest.mark.parametrize(
    ("quantization", "version", "fits"),
    [
        ("bitsandbytes", "0.26.0", True), ("bitsandbytes", "0.28.0", False), ("bitsandbytes", "1.0", False),
        ("gguf", "0.23.1", True), ("gguf", "0.24.0", False), ("gguf", "0.32.0", False), ("fp8", "0.32.0", True),
        ("gguf", "unknown", True),
    ],
)  # fmt: skip
def test_quantizations_that_vllm_dropped(quantization: str, version: str, fits: bool) -> None:
    options = EngineOptions(NAME, quantization=quantization)
    if fits:
        options.check_against(ARGUMENTS, version, (), ())
    else:
        error = unfit(options, version)
        assert error.field == "quantization"
        assert version in error.given
        assert "from 0.2" in error.allowed


def test_a_plugin_may_bring_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("register_gguf", "vllm_gguf_plugin:register", "vllm.general_plugins")
    monkeypatch.setattr("llmprod.providers._vllm.checks.entry_points", lambda *, group: [point])
    EngineOptions(NAME, quantization="gguf").check_against(ARGUMENTS, "0.32.0", (), ())
    assert unfit(EngineOptions(NAME, quantization="bitsandbytes")).field == "quantization"


@pytest.mark.parametrize("option", ["tool_call_parser", "reasoning_parser"])
def test_parsers(option: str) -> None:
    given: dict[str, Any] = {option: "herms"}
    options = EngineOptions(NAME, **given)
    known = ARGUMENTS | {option, "enable_auto_tool_choice"}
    error = unfit(options, known=known, parsers=("hermes", "mistral"))
    assert error.field == option
    assert "hermes" in error.allowed
    assert "0.32.0" in error.allowed
    assert "mistral" in unfit(options, known=known, parsers=("mistral",)).allowed  # nothing alike: the first ones
    options.check_against(known, "0.32.0", ["herms"], ["herms"])
    options.check_against(known, "0.32.0", [], [])  # a release that doesn't tell


def test_each_kind_of_parser_is_sought_among_its_own() -> None:
    options = EngineOptions(NAME, tool_call_parser="hermes", reasoning_parser="qwen3")
    known = ARGUMENTS | {"tool_call_parser", "reasoning_parser", "enable_auto_tool_choice"}
    options.check_against(known, "0.32.0", ["hermes"], ["qwen3"])
    with pytest.raises(InvalidArgument, match="tool_call_parser"):
        options.check_against(known, "0.32.0", ["qwen3"], ["hermes"])


def test_nothing_here_imports_vllm(tmp_path: Path) -> None:
    """In a process of its own, where a ``vllm`` that can't be imported stands in the way."""
    (tmp_path / "vllm.py").write_text("raise SystemExit('imported')", "utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import llmprod\n"
        "llmprod.EngineOptions('a/b', quantization='fp8', loras={'x': 'y/z'}, speculative=llmprod.NGram())"
        ".check_against(lambda name: True, '0.32.0', ['hermes'], [])\n"
        "assert not {'vllm', 'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

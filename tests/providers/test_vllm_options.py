"""What can be said against an engine's options before vLLM is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmprod import (
    MTP,
    VLLM,
    Client,
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

TWO = Parallel(tensor=2)
CONFIG = {"num_attention_heads": 8, "num_hidden_layers": 4, "max_position_embeddings": 4096}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def adapter(folder: Path, rank: int = 8) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("dtype", {"dtype": "float128"}),
        ("runner", {"runner": "train"}),
        ("scheduling_policy", {"scheduling_policy": "random"}),
        ("start_method", {"start_method": "thread"}),
        ("max_model_len", {"max_model_len": 0}),
        ("max_num_seqs", {"max_num_seqs": "many"}),
        ("gpu_memory_utilization", {"gpu_memory_utilization": 1.5}),
        ("kv_cache_gib", {"kv_cache_gib": 4, "gpu_memory_utilization": 0.5}),
        ("quantization", {"quantization": "bitsandbytes"}),
        ("quantization", {"quantization": ""}),
        ("enforce_eager", {"enforce_eager": "yes"}),
        ("speculative", {"speculative": {"method": "ngram"}}),
        ("speculative", {"speculative": NGram(), "runner": "pooling"}),
        ("tool_call_parser", {"tool_call_parser": "hermes", "runner": "pooling"}),
        ("convert", {"convert": "embed"}),
        ("max_num_batched_tokens", {"max_num_batched_tokens": 8, "max_num_seqs": 16}),
        (
            "max_num_batched_tokens",
            {"max_num_batched_tokens": 512, "max_model_len": 1024, "enable_chunked_prefill": False},
        ),
        ("max_loras", {"max_loras": 2}),
        ("loras", {"loras": ["sql"]}),
        ("loras['sql']", {"loras": {"sql": 3}}),
        ("loras['sql']", {"loras": {"sql": "/no/such/folder"}}),
        ("limit_mm_per_prompt['image']", {"limit_mm_per_prompt": {"image": -1}}),
        ("env", {"env": {"A": 1}}),
        ("engine_args", {"engine_args": {"a": object()}}),
        ("engine_args['max_model_len']", {"engine_args": {"max_model_len": 8}}),
        ("engine_args['tensor_parallel_size']", {"parallel": TWO, "engine_args": {"tensor_parallel_size": 2}}),
        ("parallel", {"parallel": 2}),
        ("while_starting", {"while_starting": "hope"}),
        ("restart", {"restart": 3}),
        ("price_per_hour", {"price_per_hour": -1}),
        ("price_per_hour", {"price_per_hour": "cheap"}),
        ("isolate_prefixes_by", {"isolate_prefixes_by": ""}),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_named(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        VLLM("org/model", **options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "make",
    [
        lambda: NGram(tokens=0),
        lambda: NGram(lookup_min=5, lookup_max=2),
        lambda: Eagle(model=""),
        lambda: Eagle(model="m", version=2),  # type: ignore[arg-type]
        lambda: Medusa(model=" "),
        lambda: DraftModel(model="m", tokens=-1),
        lambda: MTP(tokens=0),
        lambda: Parallel(tensor=0),
        lambda: Parallel(executor="uni", tensor=2),
        lambda: LoRA(path=""),
        lambda: StructuredOutputs(backend="magic"),  # type: ignore[arg-type]
        lambda: StructuredOutputs(backend="outlines"),
    ],
)
def test_wrong_groups_are_refused(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


@pytest.mark.parametrize(
    ("field", "config", "options"),
    [
        ("max_model_len", {}, {"max_model_len": 8192}),
        ("parallel.tensor", {}, {"parallel": Parallel(tensor=3)}),
        ("parallel.pipeline", {}, {"parallel": Parallel(pipeline=5)}),
        ("parallel.expert", {}, {"parallel": Parallel(expert=True)}),
        ("quantization", {"quantization_config": {"quant_method": "gptq"}}, {"quantization": "awq"}),
    ],
)
def test_a_local_checkpoint_speaks_against_them(
    checkpoint: Path, field: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, **config}))
    with pytest.raises(InvalidArgument) as caught:
        EngineOptions(str(checkpoint), **options)
    assert caught.value.field == field


def test_what_a_checkpoint_allows(checkpoint: Path) -> None:
    scaled = {**CONFIG, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    (checkpoint / "config.json").write_text(json.dumps({**scaled, "quantization_config": {"quant_method": "gptq"}}))
    EngineOptions(str(checkpoint), max_model_len=8192, quantization="gptq_marlin", parallel=Parallel(tensor=4))
    with pytest.raises(InvalidArgument, match="a path that is no folder"):
        EngineOptions("/no/such/folder")
    (checkpoint / "config.json").unlink()
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        EngineOptions(str(checkpoint))


def test_adapters_are_looked_at(tmp_path: Path) -> None:
    good = adapter(tmp_path / "good", rank=24)
    options = EngineOptions("org/model", loras={"sql": good, "far": "org/adapter"})
    wanted = options.arguments()
    assert (wanted["enable_lora"], wanted["max_loras"], wanted["max_lora_rank"]) == (True, 2, 32)
    with pytest.raises(InvalidArgument, match="at least 24"):
        EngineOptions("org/model", loras={"sql": good}, max_lora_rank=16)
    (tmp_path / "good" / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidArgument, match=r"adapter_model\.safetensors"):
        EngineOptions("org/model", loras={"sql": good})
    (tmp_path / "good" / "adapter_config.json").unlink()
    with pytest.raises(InvalidArgument, match=r"adapter_config\.json"):
        EngineOptions("org/model", loras={"sql": good})


def test_what_vllm_is_told() -> None:
    options = EngineOptions(
        "org/model",
        dtype="bfloat16",
        max_model_len=1024,
        parallel=Parallel(tensor=2, data=2, executor="ray"),
        speculative=NGram(tokens=5),
        tool_call_parser="hermes",
        scheduling_policy="priority",
        max_waiting=8,
        kv_cache_gib=0.5,
        engine_args={"block_size": 32},
    )
    wanted = options.arguments()
    assert wanted == {
        "dtype": "bfloat16", "max_model_len": 1024, "tensor_parallel_size": 2, "data_parallel_size": 2,
        "distributed_executor_backend": "ray", "tool_call_parser": "hermes", "enable_auto_tool_choice": True,
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2,
        },
        "scheduling_policy": "priority", "max_num_queued_reqs": 8, "kv_cache_memory_bytes": 2**29, "block_size": 32,
        "enable_prompt_tokens_details": True, "use_tqdm_on_load": False,
    }  # fmt: skip
    assert set(EngineOptions("org/model").arguments()) == {"enable_prompt_tokens_details", "use_tqdm_on_load"}


@pytest.mark.parametrize("speculative", [NGram(), Eagle(model="m"), Medusa(model="m"), DraftModel(model="m"), MTP()])
def test_speculation_names_its_method(speculative: Any) -> None:
    config = speculative.config()
    assert config["num_speculative_tokens"] == speculative.tokens
    assert config["method"] in ("ngram", "eagle3", "medusa", "draft_model", "mtp")


def test_against_the_installed_release() -> None:
    options = EngineOptions("org/model", tool_call_parser="hermez", engine_args={"nonsense": 1})
    with pytest.raises(InvalidArgument, match=r"nonsense.*vLLM 0\.99"):
        options.check_against(lambda name: False, "0.99", ["hermes"], [])
    with pytest.raises(InvalidArgument, match="hermes"):
        options.check_against(lambda name: True, "0.99", ["hermes", "mistral"], [])
    with pytest.raises(InvalidArgument, match=r"0\.30"):
        EngineOptions("org/model", max_waiting=3).check_against(lambda name: False, "0.26", [], [])


def test_equal_options_share_an_engine_and_secrets_are_not_shown() -> None:
    one, two = (VLLM("org/model", env={"HF_TOKEN": "hf_secret"}, max_model_len=512) for _ in range(2))
    other = VLLM("org/model", max_model_len=1024)
    assert one._engine is two._engine is not other._engine
    assert one.identity == two.identity != other.identity
    assert "secret" not in repr(one) + repr(one.options) + repr(one._engine.options)
    assert (one.state, one.restarts, one.start_times) == ("cold", 0, None)
    assert one.stats().in_flight == 0
    assert Client("vllm:org/model").provider.name == "vllm:org/model"
    with pytest.raises(InvalidArgument, match="none: pass them"):
        one.adapter("sql")


def test_without_vllm_the_error_says_what_to_install() -> None:
    pytest.importorskip("llmprod")
    import importlib.util

    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    with Client(VLLM("org/model", progress=False)) as client, pytest.raises(InvalidArgument) as caught:
        client.generate("Hello.")
    assert "llmprod[vllm]" in str(caught.value)

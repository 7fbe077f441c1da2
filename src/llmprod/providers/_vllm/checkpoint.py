"""What a local checkpoint's own files say against the options, before minutes are spent on loading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.files import is_path, read_json
from llmprod.providers._vllm.records import DraftModel, Eagle, Medusa

if TYPE_CHECKING:
    from llmprod.providers._vllm.options import EngineOptions

__all__ = ["check_checkpoint"]

_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


def check_checkpoint(options: EngineOptions) -> None:
    """Compare the options with a local folder's ``config.json``; a name on Hugging Face is left to vLLM.

    Raises:
        InvalidArgument: they contradict each other.
    """
    config: dict[str, Any] = {}
    if not {"hf_overrides", "hf_config_path"} & options.passed_through.keys():  # they change what the file says
        config = _text_config("model", options.model)
    _check_length(options, config)
    _check_parallel(options, config)
    _check_quantization(options, config)
    draft = options.speculative
    if isinstance(draft, (Eagle, Medusa, DraftModel)):
        found = _text_config("speculative.model", draft.model)
        if isinstance(draft, DraftModel):
            _check_vocabulary(config, found)


def _text_config(field: str, model: str) -> dict[str, Any]:
    """Return a local model's configuration, of its language part; empty if it is not local or keeps it elsewhere."""
    folder = Path(model)
    if not folder.is_dir():
        if is_path(model) and not (folder.is_file() and folder.suffix == ".gguf"):
            raise InvalidArgument(field, "a path that is no folder", "a folder with config.json, or a name")
        return {}
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")) or (folder / "params.json").is_file():  # llama.cpp's, and Mistral's own
            return {}
        raise InvalidArgument(field, "a folder without config.json", "a folder that holds a checkpoint")
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    return {**config, **cast("dict[str, Any]", text)} if isinstance(text, dict) else config


def _check_length(options: EngineOptions, config: Mapping[str, Any]) -> None:
    asked, longest = options.max_model_len, config.get("max_position_embeddings")
    if asked is None or not isinstance(longest, int) or asked <= longest or _scaled(config):
        return
    other = config.get("model_max_length")
    if isinstance(other, int) and asked <= other:
        return
    if ({**os.environ, **dict(options.env)}).get(_LONGER, "0").strip().lower() in ("1", "true"):
        return
    allowed = f"at most {longest}, which the model was made for (max_position_embeddings)"
    raise InvalidArgument("max_model_len", str(asked), allowed)


def _scaled(config: Mapping[str, Any]) -> bool:
    """Tell whether positions are scaled, so that vLLM must say how long a prompt may be."""
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if not isinstance(value, dict):
            continue
        scaling = cast("dict[str, Any]", value)
        each = [scaling]
        each += [cast("dict[str, Any]", part) for part in scaling.values() if isinstance(part, dict)]  # kinds of layers
        if any(part.get("rope_type", part.get("type", "default")) not in ("default", "mrope", None) for part in each):
            return True
    return False


def _check_parallel(options: EngineOptions, config: Mapping[str, Any]) -> None:
    parallel = options.parallel
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if isinstance(heads, int) and heads % parallel.tensor:
        raise InvalidArgument("parallel.tensor", str(parallel.tensor), f"a divisor of the model's {heads} heads")
    if isinstance(layers, int) and parallel.pipeline > layers:
        raise InvalidArgument("parallel.pipeline", str(parallel.pipeline), f"at most the model's {layers} layers")
    if parallel.expert and config and not any(config.get(name) for name in (*_EXPERTS, "ffn_config", "block_configs")):
        raise InvalidArgument("parallel.expert", "True", "a model that is a mixture of experts, which this is not")


def _check_quantization(options: EngineOptions, config: Mapping[str, Any]) -> None:
    own = config.get("quantization_config")
    method = cast("dict[str, Any]", own).get("quant_method") if isinstance(own, dict) else None
    asked = options.quantization
    if not isinstance(method, str) or asked is None:
        return
    # vLLM has faster kernels under other names for the first two, and some that load several formats.
    if _family(asked) != _family(method) and not _family(asked).startswith(("modelopt", "moe_wna16", "humming", "inc")):
        allowed = f"{method!r}, which the checkpoint is in, or None"
        raise InvalidArgument("quantization", repr(asked)[:40], allowed)


def _family(name: str) -> str:
    name = name.lower().replace("-", "_").removeprefix("auto_").removesuffix("_marlin")
    return "mxfp4" if name == "gpt_oss_mxfp4" else "fp8" if name == "deepseek_v4_fp8" else name


def _check_vocabulary(model: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
    words, proposed = model.get("vocab_size"), draft.get("vocab_size")
    if isinstance(words, int) and isinstance(proposed, int) and words != proposed:
        given = f"a model of {proposed} tokens beside one of {words}"
        raise InvalidArgument("speculative.model", given, "a smaller model of the same vocabulary")

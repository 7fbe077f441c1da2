"""What a local checkpoint's own files say against the options, before minutes are spent on loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmprod.errors import InvalidArgument

if TYPE_CHECKING:
    from llmprod.providers._vllm.options import EngineOptions

__all__ = ["adapter_rank", "check_checkpoint"]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def check_checkpoint(options: EngineOptions) -> None:
    """Compare the options with a local folder's ``config.json``; a name on Hugging Face is left to vLLM.

    Raises:
        InvalidArgument: they contradict each other.
    """
    folder = Path(options.model)
    if not folder.is_dir():
        looks_local = options.model.startswith(("/", "./", "../", "~"))
        if looks_local:
            raise InvalidArgument("model", "a path that is no folder", "a folder with config.json, or a name")
        return
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")) or (folder / "params.json").is_file():
            return
        raise InvalidArgument("model", "a folder without config.json", "a folder that holds a checkpoint")
    config = _read(folder / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **cast("dict[str, Any]", text)}
    _check_length(options, config)
    _check_parallel(options, config)
    _check_quantization(options, config)


def _check_length(options: EngineOptions, config: Mapping[str, Any]) -> None:
    longest = config.get("max_position_embeddings")
    scaled: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaled.get("rope_type", scaled.get("type", "default"))
    asked = options.max_model_len
    # vLLM itself decides where positions are scaled, or where the option overrides its check.
    if isinstance(longest, int) and asked is not None and asked > longest and kind in ("default", None):
        raise InvalidArgument(
            "max_model_len", str(asked), f"at most {longest}, which the model was made for (max_position_embeddings)"
        )


def _check_parallel(options: EngineOptions, config: Mapping[str, Any]) -> None:
    parallel = options.parallel
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if isinstance(heads, int) and heads % parallel.tensor:
        raise InvalidArgument("parallel.tensor", str(parallel.tensor), f"a divisor of the model's {heads} heads")
    if isinstance(layers, int) and parallel.pipeline > layers:
        raise InvalidArgument("parallel.pipeline", str(parallel.pipeline), f"at most the model's {layers} layers")
    experts = [name for name in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(name)]
    if parallel.expert and not experts:
        raise InvalidArgument("parallel.expert", "True", "a model that is a mixture of experts, which this is not")


def _check_quantization(options: EngineOptions, config: Mapping[str, Any]) -> None:
    own: dict[str, Any] = config.get("quantization_config") or {}
    method = own.get("quant_method")
    asked = options.quantization
    if not isinstance(method, str) or asked is None:
        return

    def family(name: str) -> str:
        return name.replace("auto_", "").replace("_marlin", "").replace("-", "_").lower()

    if family(asked) != family(method) and not family(asked).startswith(("modelopt", "moe_wna16", "humming")):
        raise InvalidArgument("quantization", repr(asked)[:40], f"{method!r}, which the checkpoint is in, or None")


def adapter_rank(name: str, path: str) -> int | None:
    """Return the rank of an adapter in a local folder; None for a name on Hugging Face.

    Raises:
        InvalidArgument: the folder holds no adapter.
    """
    folder = Path(path)
    field = f"loras[{name!r}]"
    if not folder.is_dir():
        if path.startswith(("/", "./", "../", "~")):
            raise InvalidArgument(field, "a path that is no folder", "a folder with adapter_config.json, or a name")
        return None
    config = _read(folder / "adapter_config.json")
    if not config:
        raise InvalidArgument(field, "a folder without adapter_config.json", "a folder that holds an adapter")
    if not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin", "pt")):
        raise InvalidArgument(field, "a folder without adapter_model.safetensors", "a folder with the weights")
    rank = config.get("r")
    return rank if isinstance(rank, int) else None

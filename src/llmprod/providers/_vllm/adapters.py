"""LoRA adapters: named, and read from their folders before an engine is started for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from llmprod.errors import InvalidArgument
from llmprod.providers._vllm.files import is_path, read_json
from llmprod.providers._vllm.records import LoRA

__all__ = ["RANKS", "adapter_rank", "enough_rank", "named_adapters"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``max_lora_rank``."""
_USUAL_RANK = 16
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


def named_adapters(value: object, model: str) -> tuple[tuple[str, LoRA], ...]:
    """Return adapters by name.

    Raises:
        InvalidArgument: a name or a record is none, or a name is the model's own.
    """
    if not isinstance(value, Mapping):
        allowed = "a dict of folders by name, such as {'sql': '/adapters/sql'}"
        raise InvalidArgument("loras", type(value).__name__, allowed)
    adapters: dict[str, LoRA] = {}
    for name, adapter in cast("Mapping[object, object]", value).items():
        if not isinstance(name, str) or not name.strip():
            raise InvalidArgument("loras", repr(name)[:40], "a name for each adapter")
        if name == model:
            raise InvalidArgument("loras", f"{name!r}, the model's own name", "another name for the adapter")
        if isinstance(adapter, str):
            adapter = LoRA(path=adapter)
        if not isinstance(adapter, LoRA):
            allowed = "a folder, a name on Hugging Face, or a LoRA"
            raise InvalidArgument(f"loras[{name!r}]", type(adapter).__name__, allowed)
        adapters[name] = adapter
    return tuple(adapters.items())


def adapter_rank(name: str, path: str) -> int | None:
    """Return the largest rank of an adapter in a local folder; None for a name on Hugging Face.

    Raises:
        InvalidArgument: the folder holds no adapter, or one of a kind that vLLM can't load.
    """
    folder = Path(path)
    field = f"loras[{name!r}]"
    if not folder.is_dir():
        if is_path(path):
            raise InvalidArgument(field, "a path that is no folder", "a folder with adapter_config.json, or a name")
        return None
    config = read_json(folder / "adapter_config.json")
    if not config:
        raise InvalidArgument(field, "a folder without adapter_config.json", "a folder that holds an adapter")
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise InvalidArgument(field, "a folder without adapter_model.safetensors", "a folder with the weights")
    _check_kind(field, config)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(cast("dict[str, Any]", pattern).values() if isinstance(pattern, dict) else ())]
    known = [rank for rank in ranks if isinstance(rank, int) and rank > 0]
    if not known:
        raise InvalidArgument(field, "an adapter_config.json without a rank r", "a LoRA adapter in peft's format")
    if max(known) > RANKS[-1]:
        raise InvalidArgument(field, f"an adapter of rank {max(known)}", f"a rank of at most {RANKS[-1]}")
    return max(known)


def _check_kind(field: str, config: Mapping[str, Any]) -> None:
    """Refuse what vLLM would refuse when the engine is up."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InvalidArgument(field, f"an adapter of type {str(kind)[:40]}", "a LoRA adapter")
    if config.get("use_dora"):
        raise InvalidArgument(field, "an adapter trained with DoRA", "a plain LoRA, which vLLM can load")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InvalidArgument(field, "an adapter with biases", "an adapter trained with bias='none'")
    saved: list[Any] = config.get("modules_to_save") or []
    if set(map(str, saved)) - {"classifier", "score"}:
        given = f"an adapter that replaces modules ({', '.join(sorted(map(str, saved)))[:80]})"
        raise InvalidArgument(field, given, "an adapter without modules_to_save")


def enough_rank(adapters: tuple[tuple[str, LoRA], ...]) -> int:
    """Return the least ``max_lora_rank`` that holds all; adapters that aren't local count as 16, vLLM's default."""
    largest = max(adapter_rank(name, adapter.path) or _USUAL_RANK for name, adapter in adapters)
    return next(rank for rank in RANKS if rank >= largest)

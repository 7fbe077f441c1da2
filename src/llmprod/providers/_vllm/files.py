"""Small readers of local checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

__all__ = ["is_path", "read_json"]


def is_path(name: str) -> bool:
    """Tell whether ``name`` can only mean a place on disk, not a name on Hugging Face."""
    return name.startswith(("/", "./", "../", "~"))


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, empty if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

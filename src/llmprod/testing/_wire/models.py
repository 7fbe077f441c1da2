"""Answers that are not a model's: the list of models, and the error for an unknown path."""

from __future__ import annotations

from collections.abc import Sequence

from .call import CREATED, JsonObject
from .routes import Family


def list_models(family: Family, models: Sequence[str]) -> JsonObject:
    """The list of models in an API's own form."""
    if family == "google":
        return {"models": [{"name": f"models/{model}", "displayName": model} for model in models]}
    if family == "anthropic":
        data: list[JsonObject] = [
            {"type": "model", "id": model, "display_name": model, "created_at": "2025-06-15T00:00:00Z"}
            for model in models
        ]
        ends = {"first_id": models[0] if models else None, "last_id": models[-1] if models else None}
        return {"data": data, "has_more": False, **ends}
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": CREATED, "owned_by": "fault"} for model in models],
    }


def unknown_path(method: str, path: str) -> JsonObject:
    """The body of a 404."""
    message = f"No endpoint for {method} {path}."
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_url"}}

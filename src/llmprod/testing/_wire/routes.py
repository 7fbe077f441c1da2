"""Which API a path belongs to. Suffixes decide, so that a base URL may have any prefix."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

Family: TypeAlias = Literal["openai", "anthropic", "google"]


class Api(Enum):
    """An API call that the server knows."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GEMINI = "gemini"
    EMBEDDINGS = "embeddings"
    GEMINI_EMBED = "gemini_embed"
    GEMINI_BATCH_EMBED = "gemini_batch_embed"
    MODELS = "models"

    @property
    def is_model_call(self) -> bool:
        """Whether a behaviour decides the answer (listing models is always healthy)."""
        return self is not Api.MODELS


class Route(NamedTuple):
    """A path, understood. `model` and `stream` are None where the body says them."""

    api: Api
    family: Family
    model: str | None = None
    stream: bool | None = None


_POST: Mapping[str, Route] = {
    "/chat/completions": Route(Api.CHAT, "openai"),
    "/responses": Route(Api.RESPONSES, "openai"),
    "/embeddings": Route(Api.EMBEDDINGS, "openai", stream=False),
    "/messages": Route(Api.MESSAGES, "anthropic"),
}

_GEMINI: Mapping[str, tuple[Api, bool]] = {
    "generateContent": (Api.GEMINI, False),
    "streamGenerateContent": (Api.GEMINI, True),
    "embedContent": (Api.GEMINI_EMBED, False),
    "batchEmbedContents": (Api.GEMINI_BATCH_EMBED, False),
}


def find_route(method: str, path: str, headers: Mapping[str, str]) -> Route | None:
    """The route of a request, None if the server has no such endpoint. `path` is without its query."""
    if method == "GET":
        return _models_route(path, headers)
    if method != "POST":
        return None
    for suffix, route in _POST.items():
        if path.endswith(suffix):
            return route
    resource, _, verb = path.rpartition(":")
    if verb in _GEMINI:
        api, stream = _GEMINI[verb]
        return Route(api, "google", unquote(resource.rpartition("/models/")[2]), stream)
    return None


def _models_route(path: str, headers: Mapping[str, str]) -> Route | None:
    if not path.endswith("/models"):
        return None
    if "/v1beta" in path:
        return Route(Api.MODELS, "google", stream=False)
    family: Family = "anthropic" if "anthropic-version" in headers else "openai"
    return Route(Api.MODELS, family, stream=False)

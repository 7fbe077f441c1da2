"""Servers that speak OpenAI's Chat Completions, each in its own way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote

from llmprod.errors import InvalidArgument
from llmprod.provider import Capabilities
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import HTTPProvider, Key, find_key
from llmprod.providers._openai_profile import PROFILES, Profile
from llmprod.providers.openai_chat import ChatCodec

__all__ = ["PROFILES", "OpenAICompatible", "Profile"]

_API_VERSION = "2024-10-21"


class OpenAICompatible(HTTPProvider):
    """A model behind a server that speaks Chat Completions.

    Args:
        model: the model's id, as the server knows it; on Azure the deployment's name.
        base_url: the server's address, with ``/v1`` where it has that (default: the profile's usual one).
        profile: ``generic``, ``vllm``, ``tgi``, ``trtllm``, ``ollama``, ``llamacpp``, ``openrouter``, ``azure``, or a
            :class:`Profile` of your own.
        api_key: the key, or a function that returns it (default: the profile's environment variable). Local servers
            need none. OPENAI_API_KEY is never sent to them.
        api_version: Azure's ``api-version`` (default: OPENAI_API_VERSION, else 2024-10-21).
        headers: added to every request.
        capabilities: what the model can do, instead of what the profile says.
        http: how to reach the server.

    Raises:
        InvalidArgument: an argument is wrong, or the profile has no usual address and none was passed.
        MissingKey: the profile needs a key and there is none.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        profile: str | Profile = "generic",
        api_key: Key | None = None,
        api_version: str | None = None,
        headers: Mapping[str, str] | None = None,
        capabilities: Capabilities | None = None,
        http: HTTPOptions | None = None,
    ) -> None:
        known = profile if isinstance(profile, Profile) else PROFILES.get(profile)
        if known is None:
            raise InvalidArgument("profile", repr(profile)[:40], ", ".join(PROFILES) + ", or a Profile")
        url = base_url or (os.environ.get(known.base_url_env) if known.base_url_env else None) or known.base_url
        if url is None:
            where = f", passed or in {known.base_url_env}" if known.base_url_env else ""
            raise InvalidArgument("base_url", "None", f"the address of the {known.kind} server{where}")
        path = "/{}"
        if known.deployments:
            url, path = _azure(url, model, api_version or os.environ.get("OPENAI_API_VERSION") or _API_VERSION)
        signed = any(name.lower() in ("authorization", "api-key") for name in headers or {})
        super().__init__(
            kind=known.kind,
            model=model,
            codec=ChatCodec(model, known, path=path),
            base_url=url,
            capabilities=capabilities or known.capabilities,
            headers=headers,
            key=None if signed else find_key(api_key, *known.key_env, needed=known.key_needed),
            authorize=(lambda key: ("api-key", key)) if known.key_header == "api-key" else None,
            http=http,
            prompt_cache=known.prompt_cache,
        )


def _azure(url: str, model: object, version: str) -> tuple[str, str]:
    """Return base address and path of a deployment. Azure's newer ``/openai/v1`` address has neither in its path."""
    url = str(url).rstrip("/")
    if url.endswith("/openai/v1"):
        return url, "/{}"
    path = f"/openai/deployments/{quote(str(model), safe='')}/{{}}?api-version={quote(version, safe='')}"
    return url.removesuffix("/openai"), path

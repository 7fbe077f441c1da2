"""OpenAI: a model over Chat Completions or the Responses API, and embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from llmprod.errors import InvalidArgument
from llmprod.provider import Capabilities
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import HTTPProvider, Key, find_key
from llmprod.providers._openai_profile import OPENAI
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_responses import UNSUPPORTED, ResponsesCodec

__all__ = ["OpenAI"]

RESPONSES_KIND = "openai-responses"
"""What traces, errors and ``extra`` call the Responses API, which takes other parameters than Chat Completions."""


class OpenAI(HTTPProvider):
    """A model of OpenAI's, or of a server that is one in all but its address.

    Whether the model embeds, reasons or takes images can't be told from its id: both kinds of request are let through
    and the server decides. Chat Completions has parameters that Responses lacks (``seed``, ``stop``, penalties, sound)
    and Responses keeps reasoning between turns.

    Args:
        model: the model's id, such as ``gpt-5.6`` or ``text-embedding-3-small``.
        api: ``chat`` (default) or ``responses``.
        api_key: the key, or a function that returns it (default: OPENAI_API_KEY).
        base_url: another server (default: OPENAI_BASE_URL, else OpenAI's). It needs no key.
        organization: organization to bill (default: OPENAI_ORG_ID).
        project: project to bill (default: OPENAI_PROJECT_ID).
        headers: added to every request.
        capabilities: what the model can do, instead of what the API can.
        http: how to reach the server.

    Raises:
        InvalidArgument: an argument is wrong.
        MissingKey: no key, and the server is OpenAI's.
    """

    def __init__(
        self,
        model: str,
        *,
        api: Literal["chat", "responses"] = "chat",
        api_key: Key | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
        capabilities: Capabilities | None = None,
        http: HTTPOptions | None = None,
    ) -> None:
        if api not in ("chat", "responses"):
            raise InvalidArgument("api", repr(api)[:40], "chat, responses")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI.base_url
        assert url is not None
        given = dict(headers or {})
        signed = any(name.lower() == "authorization" for name in given)
        billed = {
            "openai-organization": organization or os.environ.get("OPENAI_ORG_ID"),
            "openai-project": project or os.environ.get("OPENAI_PROJECT_ID"),
        }
        super().__init__(
            kind=OPENAI.kind if api == "chat" else RESPONSES_KIND,
            model=model,
            codec=ChatCodec(model) if api == "chat" else ResponsesCodec(model, RESPONSES_KIND),
            base_url=url,
            capabilities=capabilities or _capabilities(api),
            headers={**{name: value for name, value in billed.items() if value}, **given},
            key=None if signed else find_key(api_key, *OPENAI.key_env, needed=url == OPENAI.base_url),
            http=http,
            prompt_cache=OPENAI.prompt_cache,
        )


def _capabilities(api: str) -> Capabilities:
    capabilities = OPENAI.capabilities
    if api == "chat":
        return capabilities
    return replace(capabilities, parameters=capabilities.parameters - UNSUPPORTED, audio=False)

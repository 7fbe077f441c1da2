"""What calls have in common that a prompt cache can keep: a digest of how their prompts begin."""

from __future__ import annotations

from hashlib import blake2b

from llmprod.request import GenerateRequest, Request
from llmprod.types import Text

__all__ = ["prefix_key"]


def prefix_key(request: Request, characters: int = 4096) -> str | None:
    """Return a digest of system message, tools and first message, or None for a request that has none of these.

    A conversation keeps it from turn to turn, and so do conversations under one long system message.

    Args:
        request: the request.
        characters: how much of it counts (default 4,096: about 1,024 tokens, the least that the prompt caches of OpenAI
            and Anthropic keep).
    """
    if not isinstance(request, GenerateRequest):
        return None
    digest = blake2b(digest_size=16)
    left = characters
    for tool in request.tools:
        digest.update(f"{tool.name}\0".encode("utf-8", "surrogatepass"))
    for message in request.messages:
        for part in message.parts:
            said = part.text[:left] if isinstance(part, Text) else type(part).__name__
            digest.update(f"{message.role}\0{said}\0".encode("utf-8", "surrogatepass"))
            left -= len(said)
            if left <= 0:
                return digest.hexdigest()
        if message.role != "system":
            break  # the next turn of the conversation begins alike up to here
    return digest.hexdigest()

"""A whole request of the caller's as an item of a batch: what of the options goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.types import Message

__all__ = ["completed", "instructed"]

R = TypeVar("R", GenerateRequest, EmbedRequest)


def completed(request: R, shared: Mapping[str, Any], own: Mapping[str, Any]) -> R:
    """``request`` with the fields of ``own``, and with those of ``shared`` that it leaves at their defaults."""
    changes: dict[str, Any] = {}
    for item in fields(request):
        if item.name in own:
            changes[item.name] = own[item.name]
        elif item.name in shared:
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            # Not by equality alone: 0 is no False, and a temperature of 0 is set.
            here = getattr(request, item.name)
            if here is default or (type(here) is type(default) and here == default):
                changes[item.name] = shared[item.name]
    return replace(request, **changes) if changes else request


def instructed(request: GenerateRequest, shared: str | None, own: str | None) -> GenerateRequest:
    """``request`` behind the item's own instructions, or behind the shared ones if it has none yet; never streamed."""
    system = own
    if system is None and not any(message.role == "system" for message in request.messages):
        system = shared
    if system is not None:
        request = replace(request, messages=(Message.system(system), *request.messages))
    return replace(request, stream=False) if request.stream else request

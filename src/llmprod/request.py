"""What a caller asks for: one frozen, provider-neutral description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast

from llmprod._validate import between, flag, whole
from llmprod.errors import InvalidArgument
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Message

__all__ = ["EmbedRequest", "GenerateRequest", "ReasoningEffort", "Request"]

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
Extra: TypeAlias = Mapping[str, Mapping[str, Any]]

_NO_EXTRA: Extra = {}


def _all(items: tuple[object, ...], kind: type, field: str) -> None:
    if type(items) is not tuple:
        raise InvalidArgument(field, type(items).__name__, f"a tuple of {kind.__name__} objects")
    for place, item in enumerate(items):
        if not isinstance(item, kind):
            raise InvalidArgument(f"{field}[{place}]", type(item).__name__, f"a {kind.__name__}")


def _extra(extra: Any) -> None:
    given = type(extra).__name__
    if not isinstance(extra, Mapping) or not all(isinstance(value, Mapping) for value in cast("Extra", extra).values()):
        raise InvalidArgument("extra", given, "a dict by provider name, such as {'openai': {'store': False}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Ask a model for an answer.

    Attributes:
        messages: the conversation; at least one message.
        stream: hand out the answer as it is made.
        tools: functions that the model may ask for.
        tool_choice: ``auto``, ``none``, ``required``, or the name of one tool that must be called.
        parallel_tool_calls: may the model ask for several at once (None: the provider's default).
        output: the JSON that the answer must be.
        max_tokens: limit of the answer in tokens, thinking included.
        temperature: from 0 (the likeliest tokens) to 2.
        top_p: sample from the likeliest tokens whose probabilities sum to this, from 0 to 1.
        top_k: sample from as many of the likeliest tokens.
        frequency_penalty: from -2 to 2, for tokens by how often they came before.
        presence_penalty: from -2 to 2, for tokens that came before.
        seed: asks for the same answer to the same request; no vendor promises it.
        stop: texts that end the answer; they are not part of it.
        logprobs: report the log probability of each token, with this many alternatives (0 for none).
        prefill: the last message, the assistant's, is the beginning of the answer; only a target that continues it
            (``Capabilities.prefill``) is asked. The answer holds what follows.
        reasoning_effort: how much to think: none, minimal, low, medium, high, xhigh, max.
        extra: what one vendor alone has, by provider name: ``{"openai": {"service_tier": "flex"}}``; goes into the
            body as it is, and only to that provider.
        drop_unsupported: leave out what a target can't honour instead of raising, and record it in
            ``response.dropped``. Never leaves out messages, tools or the output schema.

    Raises:
        InvalidArgument: naming the field.
    """

    messages: tuple[Message, ...]
    stream: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    output: OutputSchema | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prefill: bool = False
    reasoning_effort: ReasoningEffort | None = None
    extra: Extra = field(default_factory=lambda: _NO_EXTRA)
    drop_unsupported: bool = False

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidArgument("messages", "nothing", "at least one message")
        _all(self.messages, Message, "messages")
        _all(self.tools, Tool, "tools")
        if self.output is not None and not isinstance(self.output, OutputSchema):
            raise InvalidArgument("output", type(self.output).__name__, "an OutputSchema, or None")
        flag("stream", self.stream)
        flag("parallel_tool_calls", self.parallel_tool_calls, optional=True)
        flag("drop_unsupported", self.drop_unsupported)
        flag("prefill", self.prefill)
        if self.prefill and (self.messages[-1].role != "assistant" or not self.messages[-1].text):
            raise InvalidArgument("prefill", "no text of the assistant to continue", "such text as the last message")
        whole("max_tokens", self.max_tokens, 1, optional=True)
        between("temperature", self.temperature, 0, 2, optional=True)
        between("top_p", self.top_p, 0, 1, optional=True)
        whole("top_k", self.top_k, 1, optional=True)
        between("frequency_penalty", self.frequency_penalty, -2, 2, optional=True)
        between("presence_penalty", self.presence_penalty, -2, 2, optional=True)
        whole("seed", self.seed, -(2**63), optional=True)
        whole("logprobs", self.logprobs, 0, optional=True)
        if not isinstance(self.stop, tuple) or not all(isinstance(item, str) and item for item in self.stop):
            raise InvalidArgument("stop", type(self.stop).__name__, "non-empty strings in a tuple")
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            raise InvalidArgument("reasoning_effort", repr(self.reasoning_effort)[:40], ", ".join(EFFORTS))
        names = [tool.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise InvalidArgument("tools", "two tools of one name", "different names")
        if self.tool_choice is not None and self.tool_choice not in ("auto", "none", "required", *names):
            raise InvalidArgument(
                "tool_choice", repr(self.tool_choice)[:70], ", ".join(["auto", "none", "required", *names])
            )
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise InvalidArgument("tool_choice", repr(self.tool_choice)[:70], "tools to choose from")
        _extra(self.extra)

    def used(self) -> set[str]:
        """Names of the fields that ask something of the target, for the capability check."""
        # Not by truth or equality: a temperature of 0 asks for something, and so does "no parallel tool calls".
        names = {name for name in _ASKING if (value := getattr(self, name)) is not None and value != ()}
        if self.stream:
            names.add("stream")
        if self.prefill:
            names.add("prefill")
        return names

    def __repr__(self) -> str:
        return f"GenerateRequest({len(self.messages)} messages, {', '.join(sorted(self.used())) or 'defaults'})"


_ASKING = tuple(
    item.name
    for item in fields(GenerateRequest)
    if item.name not in ("messages", "stream", "prefill", "extra", "drop_unsupported")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Ask a model for embeddings.

    Attributes:
        inputs: texts, each at least one character.
        dimensions: length of the vectors, where the model can choose.
        extra: as in :class:`GenerateRequest`.
        drop_unsupported: as in :class:`GenerateRequest`.
    """

    inputs: tuple[str, ...]
    dimensions: int | None = None
    extra: Extra = field(default_factory=lambda: _NO_EXTRA)
    drop_unsupported: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InvalidArgument("inputs", "nothing", "at least one text")
        for place, text in enumerate(self.inputs):
            if not isinstance(text, str) or not text:
                raise InvalidArgument(
                    f"inputs[{place}]", "empty" if text == "" else type(text).__name__, "a non-empty string"
                )
        whole("dimensions", self.dimensions, 1, optional=True)
        flag("drop_unsupported", self.drop_unsupported)
        _extra(self.extra)

    @property
    def stream(self) -> bool:
        """Embeddings are never streamed."""
        return False

    def used(self) -> set[str]:
        """Names of the fields that ask something of the target, for the capability check."""
        return {"embeddings", *(["dimensions"] if self.dimensions is not None else [])}

    def __repr__(self) -> str:
        return f"EmbedRequest({len(self.inputs)} inputs)"


Request: TypeAlias = GenerateRequest | EmbedRequest

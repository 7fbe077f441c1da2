"""What goes into ``client.map`` and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias, cast

from llmprod.errors import InvalidArgument
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.response import Response
from llmprod.types import Message, Part, Text, ToolCall
from llmprod.usage import FinishReason, Usage

__all__ = ["BatchInput", "BatchItem", "BatchProgress", "BatchResult", "StoredError"]


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One input of ``client.map`` with a key and options of its own.

    Attributes:
        input: what ``generate`` takes, or a :class:`GenerateRequest` or :class:`EmbedRequest`.
        key: what the result and the checkpoint call it; different for each item of a run. None: its place in the input.
        options: options of ``generate`` for this item, before those of the whole map.

    Raises:
        InvalidArgument: the key is no string or empty, or the options are no dict.
    """

    input: str | Message | Sequence[Message | Mapping[str, Any]] | GenerateRequest | EmbedRequest
    key: str | None = field(default=None, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], kw_only=True)

    def __post_init__(self) -> None:
        if self.key is not None and (not isinstance(self.key, str) or not self.key):
            raise InvalidArgument("key", type(self.key).__name__ if self.key != "" else "empty", "a non-empty string")
        if not isinstance(self.options, Mapping):
            raise InvalidArgument("options", type(self.options).__name__, "a dict of options")

    def __repr__(self) -> str:
        return f"BatchItem({type(self.input).__name__}, {len(self.options)} options)"


BatchInput: TypeAlias = (
    str | Message | Sequence[Message | Mapping[str, Any]] | GenerateRequest | EmbedRequest | BatchItem
)
"""One item of what ``client.map`` takes."""


@dataclass(frozen=True, slots=True)
class StoredError:
    """An error as a checkpoint keeps it.

    Attributes:
        type: name of the error's class, such as ``RateLimited``.
        message: what it said; empty where it was no error of this library, since such may quote the prompt.
    """

    type: str
    message: str

    def __str__(self) -> str:
        return self.message or self.type


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchResult:
    """What became of one item.

    Attributes:
        index: the item's place in the input, from 0.
        key: the item's own key, or its place as text.
        parts: the answer's parts in order.
        parsed: the answer parsed by the output schema; None without one, or where the model asks for tools.
        finish_reason: why the answer ended; None for embeddings and for what failed.
        usage: tokens; None where the provider didn't tell.
        cost: US dollars of all its attempts, those that failed too; of a restored one, then. None where not known.
        model: exact id of the model that answered.
        embeddings: one vector an input, for an :class:`EmbedRequest`.
        error: what failed: a :class:`CallError`, an :class:`InvalidArgument`, an :class:`InvalidOutput` of an answer
            that does not fit its schema, or what a provider of yours raised. From a file, a :class:`StoredError`. None
            if nothing did.
        response: the whole response with trace and timing; None where it failed or was restored.
        restored: True where it comes from the checkpoint and nothing was sent.
        seconds: how long the call took, waiting in the client's own stack included; of a restored one, then.
    """

    index: int
    key: str
    parts: tuple[Part, ...] = ()
    parsed: Any = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    cost: Decimal | None = None
    model: str | None = None
    embeddings: Sequence[Sequence[float]] | None = None
    error: Exception | StoredError | None = None
    response: Response | None = None
    restored: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True where nothing failed."""
        return self.error is None

    @property
    def text(self) -> str:
        """The answer's text; empty where there is none."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    def __repr__(self) -> str:
        if isinstance(self.error, StoredError):
            told = self.error.type
        elif self.error is not None:
            told = type(self.error).__name__
        elif self.embeddings is not None:
            told = f"{len(self.embeddings)} embeddings"
        else:
            told = f"{len(self.text)} chars finish={self.finish_reason}"
        return f"<BatchResult {self.index} {told}{' restored' if self.restored else ''}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a ``client.map`` is.

    Attributes:
        done: items that have ended: answered, failed or restored.
        failed: those of them that failed.
        restored: those of them that came from the checkpoint.
        in_flight: items being answered now.
        total: items in all; None where the input has no length.
        usage: tokens of what was answered in this run, as far as the providers told.
        seconds: since the run began.
        items_per_second: over about the last minute, without what was restored; None before there is any.
        tokens_per_second: tokens of answers likewise; for embeddings, of what was embedded.
        eta: seconds that the rest will take at this rate; None where the total or the rate is unknown.
        cost: US dollars of the items that ended in this run, failed ones too, as far as known.
        unpriced: those of them whose cost is not known; with any, ``cost`` is the least that it may be.
    """

    done: int
    failed: int
    restored: int
    in_flight: int
    total: int | None
    usage: Usage
    seconds: float
    items_per_second: float | None
    tokens_per_second: float | None
    eta: float | None
    cost: Decimal = Decimal(0)
    unpriced: int = 0


def item_of(value: object) -> BatchItem:
    """``value`` as a :class:`BatchItem`."""
    return value if isinstance(value, BatchItem) else BatchItem(cast("Any", value))

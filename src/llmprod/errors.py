"""One tree of errors. Every error says who caused it and whether it will pass, and none carries prompt text or keys.

``str()`` and ``repr()`` are built from machine fields alone (provider, model, status, code, request id). What the
provider wrote in prose can quote the prompt, so it is kept apart in ``provider_message``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from llmprod.response import Response
    from llmprod.trace import Trace
    from llmprod.usage import Usage
    from llmprod.verdict import Verdict

Origin = Literal["user", "app", "provider", "network", "policy"]

_TOKEN = re.compile(r"[\w.\-/:\[\]]{1,80}\Z")


def machine_token(value: object) -> str | None:
    """Return ``value`` if it looks like a code (no spaces, at most 80 characters), else None.

    Only such values may appear in a message: free text can quote the prompt.
    """
    return value if isinstance(value, str) and _TOKEN.match(value) else None


class LLMProdError(Exception):
    """Base of every error that this library raises.

    Attributes:
        origin: who caused it: the ``user``'s input, this ``app``'s configuration, the ``provider``, the ``network``
            or a ``policy``.
        transient: True where the same call may succeed later, False where it is systematic.
        retry_after: seconds the refusing side asked to wait, or None.
        trace: what was tried in the call, set on the error that reaches the caller.
    """

    origin: Origin = "app"
    transient: bool = False
    retry_after: float | None = None
    trace: Trace | None = None


class InvalidArgument(LLMProdError, ValueError):
    """An argument is wrong; raised before anything is sent.

    Attributes:
        field: the argument's name.
        allowed: what is allowed, in words.
    """

    origin: Origin = "app"

    def __init__(self, field: str, given: str, allowed: str) -> None:
        super().__init__(field, given, allowed)
        self.field = field
        self.given = given
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.field}: got {self.given}; allowed: {self.allowed}"


class MissingKey(InvalidArgument):
    """No API key was passed and none of the usual environment variables is set."""


class UnsupportedParameter(LLMProdError):
    """The target can't honour a parameter of the request, and ``drop_unsupported`` was not asked for.

    Attributes:
        fields: the request's fields, by name.
    """

    origin: Origin = "app"

    def __init__(self, target: str, fields: tuple[str, ...]) -> None:
        super().__init__(target, fields)
        self.target = target
        self.fields = fields

    def __str__(self) -> str:
        return (
            f"{self.target} can't honour {', '.join(self.fields)}; remove it, choose another target, or pass"
            " drop_unsupported=True for what may be left out"
        )


class ForkedProcess(LLMProdError, RuntimeError):
    """A client or connection pool made before ``fork`` was used in the child process."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} was made before fork and can't be used in the child; make a new one after the fork"


class ClientClosed(LLMProdError, RuntimeError):
    """A client was used after it was closed."""

    def __str__(self) -> str:
        return "the client is closed; make a new one"


class StoreUnavailable(LLMProdError):
    """A store can't be reached, read or written now, or is full. A cache takes it for a miss.

    Attributes:
        store: which store, as ``RedisStore``.
        why: what is wrong, in a few words.
    """

    origin: Origin = "app"
    transient: bool = True

    def __init__(self, store: str, why: str, *, retry_after: float | None = None) -> None:
        super().__init__(store, why)
        self.store = store
        self.why = why
        self.retry_after = retry_after

    def __str__(self) -> str:
        after = f", retry after {self.retry_after:g} s" if self.retry_after is not None else ""
        return f"{self.store} is unavailable: {self.why}{after}"


class CallError(LLMProdError):
    """An attempt to call a target failed.

    Attributes:
        provider: the provider's name, such as ``openai``.
        model: the model that was asked.
        status: HTTP status, also where an error came inside a 200 stream and the status is implied; else None.
        code: the provider's machine code or type, such as ``rate_limit_exceeded``.
        param: the parameter that the provider complained about.
        request_id: the provider's id of the request, for its support.
        provider_message: the provider's prose. It can quote the prompt: never log it unredacted.
        in_stream: True where the failure came after a successful status line.
        silent: True where not one byte of an answer arrived.
        usage: tokens the failed attempt is known to have used, or None.
    """

    origin: Origin = "provider"
    what = "the call failed"

    def __init__(
        self,
        *,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        provider_message: str | None = None,
        in_stream: bool = False,
        silent: bool = False,
        detail: str | None = None,
    ) -> None:
        super().__init__()
        self.provider = provider
        self.model = model
        self.status = status
        self.code: str | None = machine_token(code)
        self.param: str | None = machine_token(param)
        self.request_id: str | None = machine_token(request_id)
        self.retry_after = retry_after
        self.provider_message = provider_message
        self.in_stream = in_stream
        self.silent = silent
        self.detail: str | None = detail
        self.usage: Usage | None = None

    @property
    def target(self) -> str:
        """``provider:model``, as far as known."""
        return ":".join(part for part in (self.provider, self.model) if part) or "target"

    def __str__(self) -> str:
        words = [f"{self.target}: {self.what}" if self.provider or self.model else self.what]
        if self.detail:
            words.append(f"({self.detail})")
        if self.status is not None:
            words.append(f"status {self.status}")
        if self.code:
            words.append(f"code {self.code}")
        if self.param:
            words.append(f"param {self.param}")
        if self.in_stream:
            words.append("inside the stream")
        if self.retry_after is not None:
            words.append(f"retry after {self.retry_after:g} s")
        if self.request_id:
            words.append(f"request {self.request_id}")
        return ", ".join(words[:1]) + (" " if len(words) > 1 else "") + ", ".join(words[1:])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[CallError], state: dict[str, Any]) -> CallError:
    error = kind.__new__(kind)
    Exception.__init__(error)
    error.__dict__.update(state)
    return error


# ---- the provider answered with a refusal ---------------------------------------------------------------------------


class ProviderError(CallError):
    """The provider answered with an error."""

    what = "the provider answered with an error"


class RateLimited(ProviderError):
    """429: too many requests or tokens for now."""

    transient = True
    what = "rate limited"


class QuotaExhausted(ProviderError):
    """402 or 429: the account's quota, credit or spend limit is used up; waiting does not help."""

    origin: Origin = "app"
    what = "quota exhausted"


class Overloaded(ProviderError):
    """503 or 529: the provider has no capacity for now."""

    transient = True
    what = "overloaded"


class ServerError(ProviderError):
    """5xx, 408, 409 or 425: the provider failed."""

    transient = True
    what = "server error"


class AuthenticationFailed(ProviderError):
    """401: the key is missing, wrong or revoked."""

    origin: Origin = "app"
    what = "authentication failed"


class PermissionDenied(ProviderError):
    """403: the key may not do this."""

    origin: Origin = "app"
    what = "permission denied"


class NotFound(ProviderError):
    """404: no such model or endpoint."""

    origin: Origin = "app"
    what = "not found"


class BadRequest(ProviderError):
    """400, 413 or 422: the provider says that the request is wrong."""

    origin: Origin = "user"
    what = "request refused as invalid"


class ContextTooLong(BadRequest):
    """The prompt, or the prompt and ``max_tokens``, exceed the model's context window.

    Attributes:
        tokens: the prompt's tokens, where they were estimated here before it was sent; else None.
        window: the window in tokens, where known; else None.
    """

    what = "the request exceeds the context window"

    def __init__(self, *, tokens: int | None = None, window: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.tokens = tokens
        self.window = window


class ContentFiltered(BadRequest):
    """The provider's content policy refused the request."""

    origin: Origin = "policy"
    what = "refused by the provider's content policy"


# ---- no usable answer arrived ---------------------------------------------------------------------------------------


class TransportError(CallError):
    """The network, a proxy or the server's HTTP failed."""

    origin: Origin = "network"
    transient = True
    what = "transport error"


class ConnectError(TransportError):
    """No connection: refused, unresolvable, TLS failure."""

    what = "could not connect"


class ReadError(TransportError):
    """The connection broke before the answer was whole."""

    what = "the connection broke"


class TruncatedAnswer(TransportError):
    """The answer ended without the terminal event of its API; it is not complete, however it looks."""

    origin: Origin = "provider"
    what = "the answer ended before its terminal event"


class ProtocolError(TransportError):
    """What arrived is not an answer: HTML, an empty body, malformed JSON or events."""

    origin: Origin = "provider"
    what = "not a valid answer"


# ---- time ran out ---------------------------------------------------------------------------------------------------


class CallTimeout(CallError, TimeoutError):
    """A time limit passed.

    Attributes:
        limit: the limit in seconds.
    """

    origin: Origin = "provider"
    transient = True
    what = "timed out"

    def __init__(self, limit: float | None = None, **fields: Any) -> None:
        if limit is not None:
            fields.setdefault("detail", f"limit {limit:g} s")
        super().__init__(**fields)
        self.limit = limit


class ConnectTimeout(CallTimeout):
    """No connection within the connect limit."""

    origin: Origin = "network"
    what = "connecting timed out"


class FirstTokenTimeout(CallTimeout):
    """No content within the first-token limit."""

    what = "no first token in time"


class IdleTimeout(CallTimeout):
    """The answer stopped moving for longer than the idle limit."""

    what = "the answer stalled"


class AttemptTimedOut(CallTimeout):
    """One attempt took longer than its total limit."""

    what = "the attempt took too long"


class StreamTooSlow(CallTimeout):
    """The answer moved, but slower than the least rate asked for."""

    what = "the answer crawled"


class DeadlineExceeded(CallTimeout):
    """The whole call's time is up."""

    origin: Origin = "app"
    transient = False
    what = "the call's deadline passed"


# ---- refused here, without asking the provider ----------------------------------------------------------------------


class Rejected(CallError):
    """This process refused to start the attempt; the provider was not asked."""

    origin: Origin = "policy"
    transient = True
    what = "refused locally"


class CircuitOpen(Rejected):
    """The target's circuit breaker is open; ``retry_after`` says for how long."""

    what = "the circuit breaker is open"


class RateLimitExceeded(Rejected):
    """A rate limit of this application has no room for the call; ``retry_after`` says for how long.

    Attributes:
        dimension: what is used up: ``requests``, ``input_tokens``, ``output_tokens``, ``tokens``, ``cost`` or
            ``concurrent``.
    """

    what = "over the application's own rate limit"

    def __init__(self, *, dimension: str | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.dimension: str | None = dimension


class BudgetExceeded(Rejected):
    """A budget has no room for what the call may cost; ``resets_at`` says when it begins anew.

    ``retry_after`` is the time until then; None where that would not help, or where calls under way may give enough
    back before.

    Attributes:
        limit: the budget's name.
        scope: names of the tags that it is kept by, without their values; empty for the whole application.
        amount: US dollars that may be spent in a period.
        spent: those that are.
        reserved: those that calls under way may still spend.
        needed: those that this attempt may cost.
        resets_at: when the next period begins; None for a budget of one call.
    """

    what = "the budget has no room for the call"

    def __init__(
        self,
        *,
        limit: str | None = None,
        scope: tuple[str, ...] = (),
        amount: Decimal | None = None,
        spent: Decimal | None = None,
        reserved: Decimal | None = None,
        needed: Decimal | None = None,
        resets_at: datetime | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(**fields)
        self.limit: str | None = limit
        self.scope = scope
        self.amount = amount
        self.spent = spent
        self.reserved = reserved
        self.needed = needed
        self.resets_at = resets_at


class PriceUnknown(Rejected):
    """No price is known for a model that would be asked within a budget."""

    origin: Origin = "app"
    transient = False
    what = "no price known, so no budget can be kept"


class BudgetUnavailable(Rejected):
    """The store that a budget is kept in can't be reached, and calls without a budget are not allowed."""

    origin: Origin = "app"
    what = "the store of budgets is lost"


class BulkheadFull(Rejected):
    """As many calls as are allowed are under way, and as many as may wait are waiting."""

    what = "too many calls under way"


class Shed(Rejected):
    """The call was given up before it was sent: no time was left for an answer, or the target is overloaded."""

    what = "given up before it was sent"


class NoUsableKey(Rejected):
    """Every credential of a pool is quarantined or paused; ``retry_after`` says until when.

    Attributes:
        refused: True where none is merely paused: the provider refused them all.
    """

    origin: Origin = "app"
    what = "no usable key"

    def __init__(self, *, refused: bool = False, **fields: Any) -> None:
        super().__init__(**fields)
        self.refused: bool = refused


class NotCached(Rejected):
    """The call asked for an answer from the cache alone (``cache="only"``), and there is none."""

    transient = False
    what = "no answer in the cache"


# ---- an engine inside this process ----------------------------------------------------------------------------------


class EngineNotReady(Rejected):
    """The embedded engine is starting, restarting or being stopped; ``retry_after`` says when to ask again."""

    what = "the engine is not ready"


class EngineStartFailed(CallError):
    """The embedded engine can't be started: ``detail`` says at which step, the error's cause says why."""

    origin: Origin = "app"
    transient = False
    what = "the engine did not start"


class EngineDied(CallError):
    """The embedded engine ended while it was answering; it is started again in the background."""

    origin: Origin = "provider"
    transient = True
    what = "the engine died"


# ---- an answer that was stopped here ---------------------------------------------------------------------------------


class RunawayAnswer(CallError):
    """The answer would not end: it went on beyond its limit of tokens, or said the same over and over.

    Attributes:
        reason: ``repetition`` or ``length``.
    """

    transient = False
    what = "the answer ran away and was stopped"

    def __init__(self, *, reason: str | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.reason: str | None = reason


# ---- the call as a whole --------------------------------------------------------------------------------------------


class StreamInterrupted(CallError):
    """A stream broke after content was shown to the caller.

    Attributes:
        partial: the response with everything that arrived: ``.text``, ``.parts``, ``.usage`` as far as known.
    """

    transient = True
    what = "the stream was interrupted after content was shown"

    def __init__(self, partial: Response | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.partial = partial
        self._text = ""

    @property
    def partial_text(self) -> str:
        """The text that arrived; known in another process too, where ``partial`` is not."""
        return self.partial.text if self.partial is not None else self._text

    def __reduce__(self) -> tuple[Any, ...]:
        # A response can't travel to another process; its text can.
        return _rebuild, (type(self), {**self.__dict__, "partial": None, "_text": self.partial_text})


class AllTargetsFailed(CallError):
    """Every target was tried or skipped; ``attempts`` tells what each said.

    Attributes:
        attempts: one ``(target, error)`` for each target that was tried or skipped, in order.
        verdict: whether trying all of them again may help.
    """

    what = "all targets failed"

    def __init__(self, attempts: tuple[tuple[str, Exception], ...], verdict: Verdict) -> None:
        super().__init__(retry_after=verdict.retry_after)
        self.attempts = attempts
        self.verdict = verdict
        last = attempts[-1][1] if attempts else None
        self.transient: bool = any(getattr(error, "transient", False) for _, error in attempts)
        if isinstance(last, LLMProdError):
            self.origin: Origin = last.origin

    def __str__(self) -> str:
        told = "; ".join(
            str(error) if isinstance(error, LLMProdError) else f"{target}: {type(error).__name__}"
            for target, error in self.attempts
        )
        return f"all targets failed: {told}" if told else "no target can serve the request"


class InvalidOutput(CallError):
    """The answer does not fit the output schema that was asked for (or was cut by ``max_tokens``)."""

    origin: Origin = "provider"
    transient = True
    what = "the answer does not fit the output schema"


__all__ = [
    "AllTargetsFailed",
    "AttemptTimedOut",
    "AuthenticationFailed",
    "BadRequest",
    "BudgetExceeded",
    "BudgetUnavailable",
    "BulkheadFull",
    "CallError",
    "CallTimeout",
    "CircuitOpen",
    "ClientClosed",
    "ConnectError",
    "ConnectTimeout",
    "ContentFiltered",
    "ContextTooLong",
    "DeadlineExceeded",
    "EngineDied",
    "EngineNotReady",
    "EngineStartFailed",
    "FirstTokenTimeout",
    "ForkedProcess",
    "IdleTimeout",
    "InvalidArgument",
    "InvalidOutput",
    "LLMProdError",
    "MissingKey",
    "NoUsableKey",
    "NotCached",
    "NotFound",
    "Origin",
    "Overloaded",
    "PermissionDenied",
    "PriceUnknown",
    "ProtocolError",
    "ProviderError",
    "QuotaExhausted",
    "RateLimitExceeded",
    "RateLimited",
    "ReadError",
    "Rejected",
    "RunawayAnswer",
    "ServerError",
    "Shed",
    "StoreUnavailable",
    "StreamInterrupted",
    "StreamTooSlow",
    "TransportError",
    "TruncatedAnswer",
    "UnsupportedParameter",
    "machine_token",
]  # fmt: skip

"""Looks whether a prompt fits into the model's window before it is sent, and trims its history if asked to.

A prompt that doesn't fit is refused by every provider, after it was uploaded and some of a rate limit was spent on it.
Tokens are estimated (:class:`llmprod.TokenCounter`), so an estimate near the window proves nothing: a call is refused
only where even its lower bound doesn't fit, and where a better count can be had (OpenAI's tables, the embedded engine)
it is made before that, off the event loop. Trimming begins where the count doesn't fit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, TypeAlias, cast

from llmprod import _validate
from llmprod.context import Context
from llmprod.decisions import HistoryTrimmed
from llmprod.errors import ContextTooLong, InvalidArgument
from llmprod.mechanisms.cache_key import rule_identity
from llmprod.mechanisms.token_prompt import message_tokens, most_bytes
from llmprod.mechanisms.trim import TrimPolicy, trim_history
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.response import Outcome, Response
from llmprod.tokens import TokenCount, TokenCounter, default_counter
from llmprod.types import Message
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves

__all__ = ["ContextWindow"]

Fits: TypeAlias = Callable[[Sequence[Message]], bool]
Trim: TypeAlias = Callable[[Sequence[Message], Fits], Sequence[Message]]

_TYPICAL = 0.08  # relative error of an estimate that nothing was learned of
_SPARE_AT_MOST = 0.25
_LEARNS = 32  # calls to a target that teach, and after them
_EVERY = 8  # one in so many


class ContextWindow(Wrapper):
    """Refuse a call that can't fit into the window of any target, or trim its history until it fits.

    It stands once around a call, outside the retries and the budget (``Phase.CONTEXT_WINDOW``): a prompt is trimmed
    once, whatever is tried after, and a budget reserves for what is sent; and inside cache and guards, which know the
    request as the caller made it.

    Several targets inside: a call goes if it fits one of them (the others refuse it themselves, and a router asks the
    next), and a history is trimmed for the one with the most room. A target whose window is unknown takes anything.

    Args:
        windows: tokens of prompt and answer together, by model (``{"openai:gpt-5": 400_000}``, or ``"gpt-5"``), or one
            number for all. Default: as the providers' capabilities say.
        trim: what to do with a history that is too long: None (default) refuses; ``"oldest"`` leaves out the oldest
            exchanges; ``"middle"`` likewise, but keeps the first; or a function of the messages, and of a function that
            tells whether messages fit, that returns the messages to send.
        reserve: tokens to keep for the answer when trimming, where the request has no ``max_tokens`` (default 1024).
        tokens: counts a request's prompt tokens exactly, instead of the estimate.
        counter: counts and learns (default: the one that the process shares).

    Raises:
        InvalidArgument: naming the option.
    """

    phase: ClassVar[Phase] = Phase.CONTEXT_WINDOW

    def __init__(
        self,
        *,
        windows: Mapping[str, int] | int | None = None,
        trim: TrimPolicy | Trim | None = None,
        reserve: int = 1024,
        tokens: Callable[[Request], int] | None = None,
        counter: TokenCounter | None = None,
    ) -> None:
        if isinstance(windows, Mapping):
            for model, window in windows.items():
                _validate.whole(f"windows[{model!r}]"[:60], window, 1)
            windows = dict(windows)
        else:
            _validate.whole("windows", windows, 1, optional=True)
        if trim is not None and trim not in ("oldest", "middle") and not callable(trim):
            raise InvalidArgument("trim", repr(trim)[:40], "'oldest', 'middle', a function, or None")
        _validate.whole("reserve", reserve, 0)
        self.windows: Mapping[str, int] | int | None = windows
        self.trim: TrimPolicy | Trim | None = trim
        self.reserve = reserve
        self.tokens = tokens
        self.counter: TokenCounter = counter if counter is not None else default_counter()

    def wrap(self, inner: Provider) -> Provider:
        """Look at what is sent to ``inner``."""
        return _ContextWindowProvider(inner, self)

    def window_of(self, target: Provider) -> int | None:
        """Return the window of a provider that answers by itself, None if unknown."""
        windows = self.windows
        if isinstance(windows, int):
            return windows
        if windows:
            named = windows.get(target.name) or windows.get(target.name.partition(":")[2])
            if named is not None:
                return named
        return target.capabilities.context_window

    def __repr__(self) -> str:
        told = ["" if self.trim is None else f"trim {self.trim}" if isinstance(self.trim, str) else "trim by function"]
        return f"ContextWindow({', '.join(filter(None, told))})"


@dataclass(frozen=True, slots=True)
class _Target:
    provider: Provider
    window: int
    count: TokenCount

    def spare(self, answer: int, tokens: int) -> int:
        """Tokens that are left; negative where it doesn't fit."""
        return self.window - tokens - answer


class _ContextWindowProvider(WrappedProvider):
    wrapper: ContextWindow

    def __init__(self, inner: Provider, wrapper: ContextWindow) -> None:
        super().__init__(inner, wrapper)
        self._seen: dict[str, int] = {}

    @property
    def cache_identity(self) -> object:
        """How a history is trimmed, for a cache outside: what is answered then is not what was asked there."""
        wrapper = self.wrapper
        if wrapper.trim is None:
            return None
        policy = wrapper.trim if isinstance(wrapper.trim, str) else rule_identity(wrapper.trim)
        return [policy, wrapper.reserve, wrapper.windows]

    async def send(self, request: Request, context: Context) -> Response:
        targets = list(leaves(self.inner))
        windows = [self.wrapper.window_of(target) for target in targets]
        known = [window for window in windows if window is not None]
        # What can't be looked into (a decorated function's call) is sent as it is, unless `tokens` counts it.
        counted = isinstance(request, (GenerateRequest, EmbedRequest)) or self.wrapper.tokens is not None
        if counted and known and len(known) == len(windows) and not self._surely(request, min(known)):
            request = await self._fitted(request, targets, known, context)
        response = await self.inner.send(request, context)
        response.on_close(lambda outcome: self._ended(outcome, request, response.deployment, targets))
        return response

    def _surely(self, request: Request, window: int) -> bool:
        """Whether it fits by its length alone, at the cost of adding up."""
        most = most_bytes(request)
        return most is not None and self.wrapper.tokens is None and most + self._keep(request) <= window

    def _keep(self, request: Request) -> int:
        """Tokens to leave for the answer; where nothing may be trimmed, no more than the request asks for."""
        trims = self.wrapper.trim is not None and isinstance(request, GenerateRequest)
        return _answer(request) or (self.wrapper.reserve if trims else 0)

    async def _fitted(
        self, request: Request, providers: Sequence[Provider], windows: Sequence[int], context: Context
    ) -> Request:
        answer, keep = _answer(request), self._keep(request)
        counts: dict[str, TokenCount] = {}
        targets: list[_Target] = []
        for provider, window in zip(providers, windows, strict=True):
            if provider.name not in counts:
                counts[provider.name] = self._count(request, provider)
            targets.append(_Target(provider, window, counts[provider.name]))
        # The target with the most room decides: if it can't take the call, none can.
        best = max(targets, key=lambda target: target.spare(answer, target.count.tokens))
        if best.spare(keep, best.count.upper_bound) >= 0:
            return request
        others = [target for target in targets if target is not best]
        best = replace(best, count=await self._surer(request, best))
        trims = self.wrapper.trim is not None and isinstance(request, GenerateRequest)
        if trims and best.spare(keep, best.count.tokens) < 0:
            request, best = self._trimmed(cast("GenerateRequest", request), best, keep, context)
            others = []
        if all(target.spare(answer, target.count.lower_bound) < 0 for target in (best, *others)):
            raise self._refused(best, answer, context)
        return request

    def _count(self, request: Request, target: Provider) -> TokenCount:
        own = self.wrapper.tokens
        if own is None:
            if isinstance(request, EmbedRequest):  # each input has the window for itself
                return self.wrapper.counter.estimate(max(request.inputs, key=len), model=target)
            return self.wrapper.counter.estimate(request, model=target)
        tokens = own(request)
        _validate.whole("tokens", tokens, 0)
        return TokenCount(
            tokens=tokens, exact=True, method="tokens=", lower_bound=tokens, upper_bound=tokens, raw=float(tokens)
        )

    async def _surer(self, request: Request, target: _Target) -> TokenCount:
        """Count exactly, where that can be done, since the estimate leaves doubt."""
        if target.count.exact:
            return target.count
        what = max(request.inputs, key=len) if isinstance(request, EmbedRequest) else request
        try:
            return await self.wrapper.counter.count_async(what, model=target.provider)
        except Exception:  # noqa: BLE001 - an engine that can't count now must not cost the call
            return target.count

    # ---- trimming ---------------------------------------------------------------------------------------------------

    def _trimmed(
        self, request: GenerateRequest, target: _Target, keep: int, context: Context
    ) -> tuple[GenerateRequest, _Target]:
        """Return the request with fewer messages, and the target with what they count for; the same if none may go."""
        trim, count = self.wrapper.trim, target.count
        messages = request.messages
        sizes = [message_tokens(message, target.provider.name) for message in messages]
        fixed = float(sum(count.parts.get(part, 0) for part in _FIXED))
        # Sizes are estimates, and the count may be better: they share out what it says.
        factor = max(1.0, count.tokens - fixed) / max(1.0, sum(sizes))
        room = max(0.0, (target.window - keep) / (1.0 + self._doubt(count)) - fixed) / factor
        if isinstance(trim, str):
            policy: Any = trim
            kept: Sequence[Message] = [messages[at] for at in trim_history(messages, sizes, room, policy)]
        else:
            by_id = {id(message): size for message, size in zip(messages, sizes, strict=True)}

            def size_of(message: Message) -> float:
                known = by_id.get(id(message))
                return message_tokens(message, target.provider.name) if known is None else known

            kept = _checked(cast("Trim", trim)(messages, lambda some: sum(map(size_of, some)) <= room))
        if list(map(id, kept)) == list(map(id, messages)):
            return request, target
        made = replace(request, messages=tuple(kept))
        after = self._count(made, target.provider)
        if not after.exact:
            dropped = factor * (sum(sizes) - sum(message_tokens(message, target.provider.name) for message in kept))
            share = max(0.0, 1.0 - dropped / max(1, count.tokens))
            after = replace(
                after,
                tokens=round(count.tokens * share),
                lower_bound=int(count.lower_bound * share),
                upper_bound=ceil(count.upper_bound * share),
            )
        context.decided(
            HistoryTrimmed,
            self.name,
            messages=max(0, len(messages) - len(kept)),
            tokens=max(0, count.tokens - after.tokens),
            policy=trim if isinstance(trim, str) else "function",
            window=target.window,
        )
        return made, replace(target, count=after)

    def _doubt(self, count: TokenCount) -> float:
        """How much of the window to leave free, since the size of what is left of a history is an estimate."""
        error = self.wrapper.counter.error(count.model)
        if error.p90 is not None and error.count >= _LEARNS // 2:
            return min(max(error.p90, 0.02), _SPARE_AT_MOST)
        return _TYPICAL

    def _refused(self, target: _Target, answer: int, context: Context) -> ContextTooLong:
        count = target.count
        about = "" if count.exact else "about "
        asked = f" and {answer} for the answer" if answer else ""
        told = f"{about}{count.tokens} tokens of prompt{asked}, a window of {target.window}"
        context.trace.skipped(self.name, context.elapsed, told, error="ContextTooLong")
        return ContextTooLong(provider=target.provider.name, detail=told, tokens=count.tokens, window=target.window)

    # ---- learning ---------------------------------------------------------------------------------------------------

    def _ended(self, outcome: Outcome, request: Request, deployment: Hashable, targets: Sequence[Provider]) -> None:
        usage = outcome.usage
        if outcome.kind != "ok" or usage is None or usage.estimated or not usage.total_input:
            return
        if not isinstance(request, (GenerateRequest, EmbedRequest)):
            return
        served: Any = next(
            (target for target in targets if getattr(target, "identity", None) == deployment),
            targets[0] if len(targets) == 1 else None,
        )
        if served is None:
            return
        seen = self._seen[served.name] = self._seen.get(served.name, 0) + 1
        if seen <= _LEARNS or seen % _EVERY == 0:
            counter = self.wrapper.counter
            counter.learn(counter.estimate(request, model=served), usage)


_FIXED = ("tools", "schema")  # parts of a prompt that trimming leaves as they are


def _answer(request: Request) -> int:
    return (request.max_tokens or 0) if isinstance(request, GenerateRequest) else 0


def _checked(kept: object) -> Sequence[Message]:
    given = type(kept).__name__
    if not isinstance(kept, Sequence) or isinstance(kept, (str, bytes)) or not kept:
        raise InvalidArgument("trim", given, "a function that returns at least one message")
    items = cast("Sequence[object]", kept)
    for item in items:
        if not isinstance(item, Message):
            raise InvalidArgument("trim", f"an item of type {type(item).__name__}", "a function that returns messages")
    return cast("Sequence[Message]", items)

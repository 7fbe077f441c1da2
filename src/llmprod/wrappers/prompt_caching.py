"""Uses the provider's own prompt cache: marks, keys or kept content, by what each of them has.

The mechanisms, with their sources: :mod:`llmprod.mechanisms.cache_plan` (where marks stand),
:mod:`llmprod.mechanisms.cache_habits` (lifetimes, and whether conversations go on),
:mod:`llmprod.mechanisms.cache_routing_key` (keys), :mod:`llmprod.mechanisms.prefix_lint` (what spoils it) and
:mod:`llmprod.mechanisms.cache_ledger` (what it saved).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Literal

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.cache_habits import CacheHabits, CacheWorth
from llmprod.mechanisms.cache_ledger import CacheLedger, PricesGiven, PromptCacheStats, as_prices
from llmprod.mechanisms.cache_routing_key import CacheRoutingKey
from llmprod.mechanisms.cache_rules import CacheRules, rules_for
from llmprod.mechanisms.prefix_chain import Cut, StableMessages, leading_system, prefix_chain
from llmprod.mechanisms.warmth import Warmth
from llmprod.pricing import PriceBook
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Outcome, Response
from llmprod.usage import Usage
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves
from llmprod.wrappers._cache_shape import Shape, Shaper, in_order
from llmprod.wrappers._kept_content import KeepsContent, KeptContent
from llmprod.wrappers._prefix_watch import PrefixWatch

__all__ = ["PromptCaching"]

_AN_HOUR = 2.0  # price of a token that Anthropic keeps for an hour, by that of a plain one


class PromptCaching(Wrapper):
    """Lets a target's prompt cache pay.

    * Anthropic: ``cache_control`` at the end of tools and system messages and along the conversation, at most four,
      none on what is shorter than the model's minimum; for five minutes or an hour, by the gaps that were seen.
    * OpenAI: ``prompt_cache_key``; ``prompt_cache_retention`` if asked for; from GPT-5.6 on breakpoints, and no writes
      for prompts that nobody continues.
    * Gemini: nothing (its cache is implicit), or content that the API keeps, if ``keep_content`` asks for it.
    * Servers whose profile says so (Mistral's): ``prompt_cache_key``. vLLM, llama.cpp: nothing; they cache by
      themselves. Other targets get their requests as they are.

    Marks that a caller has placed by hand, in a part's ``meta`` or in ``extra``, are left alone, and so is any field of
    these that stands in ``extra``.

    One object may wrap several targets; each learns for itself, and :meth:`stats` adds them up. Use it on one event
    loop.

    Args:
        app: tells applications apart in ``prompt_cache_key``, where they share an account (default ``llmprod``). The
            key is a digest.
        stable: how many leading messages stay the same from call to call; a function of the request (default: the
            system messages at its beginning).
        conversations: mark the conversation too (True), only what is stable (False), or by whether conversations with
            this beginning go on (``auto``, the default).
        ttl: Anthropic's lifetime, ``5m``, ``1h`` or ``auto`` (the default: the cheaper one for the gaps seen so far).
        retention: OpenAI's ``prompt_cache_retention``, ``in_memory`` or ``24h``, for models before GPT-5.6 (default
            None: the account's). Later models refuse it beside their own options.
        requests_per_key: calls a minute that one ``prompt_cache_key`` may bring (default 15, OpenAI's advice).
        keep_content: seconds for which the Gemini API is to keep what is stable, billed by the hour (default None: not
            at all); see :func:`llmprod.break_even_reads`. Deleted when the provider is closed.
        sort_tools: send tools in the order of their names and their schemas' keys in alphabetical order, for
            applications that make them anew each time (default False: it changes the prompt).
        lint: tell (:class:`llmprod.PrefixVolatile`, and a line in the log) when times, ids or an unsteady order keep a
            prompt from ever being found again (default True). The last prompt's beginning is kept for it.
        prices: what tokens cost, for the money in :meth:`stats`; a loaded :class:`PriceBook`, for instance.
        warmth: what is believed to be warm where, to be shared with a :class:`llmprod.Cheapest` router.
        clock: time.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    # It must know which provider it stands before, so it is inside routing. Of what stands there it is the innermost
    # but for the span: a call that a limiter or breaker refuses, or that waits, has warmed nothing yet, making kept
    # content counts into the attempt's time, and the span shows what was really sent.
    phase: ClassVar[Phase] = Phase.VENDOR

    def __init__(
        self,
        *,
        app: str = "llmprod",
        stable: StableMessages | None = None,
        conversations: bool | Literal["auto"] = "auto",
        ttl: Literal["5m", "1h", "auto"] = "auto",
        retention: Literal["in_memory", "24h"] | None = None,
        requests_per_key: float = 15.0,
        keep_content: float | None = None,
        sort_tools: bool = False,
        lint: bool = True,
        prices: PriceBook | PricesGiven = None,
        warmth: Warmth | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not isinstance(app, str) or not app:
            raise InvalidArgument("app", repr(app)[:40], "a name")
        if stable is not None and not callable(stable):
            raise InvalidArgument("stable", repr(stable)[:40], "a function of the request, or None")
        if conversations not in (True, False, "auto"):
            raise InvalidArgument("conversations", repr(conversations)[:40], "True, False, auto")
        if ttl not in ("5m", "1h", "auto"):
            raise InvalidArgument("ttl", repr(ttl)[:40], "5m, 1h, auto")
        if retention not in (None, "in_memory", "24h"):
            raise InvalidArgument("retention", repr(retention)[:40], "in_memory, 24h, None")
        _validate.between("requests_per_key", requests_per_key, 1, float("inf"))
        _validate.seconds("keep_content", keep_content, optional=True)
        _validate.flag("sort_tools", sort_tools)
        _validate.flag("lint", lint)
        if warmth is not None and not isinstance(warmth, Warmth):
            raise InvalidArgument("warmth", type(warmth).__name__, "a Warmth, or None for one of its own")
        self.app = app
        self.stable: StableMessages = stable or leading_system
        self.conversations: bool | Literal["auto"] = conversations
        self.ttl: Literal["5m", "1h", "auto"] = ttl
        self.retention = retention
        self.requests_per_key = requests_per_key
        self.keep_content = keep_content
        self.sort_tools = sort_tools
        self.lint = lint
        self.price: Callable[[str, Usage], Decimal | None] | None = (
            _from_book(prices) if isinstance(prices, PriceBook) else as_prices(prices)
        )
        self.clock = clock
        self.warmth: Warmth = Warmth(clock=clock) if warmth is None else warmth
        self._ledgers: dict[str, CacheLedger] = {}

    def wrap(self, inner: Provider) -> Provider:
        """Use the prompt cache of ``inner``."""
        return _CachingProvider(inner, self)

    def ledger(self, target: str) -> CacheLedger:
        """Return the ledger of a target, by its name; targets of one name share it."""
        found = self._ledgers.get(target)
        if found is None:
            found = self._ledgers[target] = CacheLedger(target, self.price)
        return found

    def stats(self, target: str | None = None) -> PromptCacheStats:
        """Return what was read, written, missed and saved so far, by one target or by all."""
        ledgers = self._ledgers.values() if target is None else filter(None, [self._ledgers.get(target)])
        return sum((ledger.stats for ledger in ledgers), PromptCacheStats())

    def __repr__(self) -> str:
        return f"PromptCaching({self.ttl})"


class _CachingProvider(WrappedProvider):
    wrapper: PromptCaching

    def __init__(self, inner: Provider, wrapper: PromptCaching) -> None:
        super().__init__(inner, wrapper)
        leaf: Any = next(leaves(inner))
        self.rules: CacheRules = rules_for(getattr(leaf, "prompt_cache", "none"), getattr(leaf, "model", ""))
        self.habits = CacheHabits(clock=wrapper.clock)
        self.worth = CacheWorth(2 * self.rules.lifetime, clock=wrapper.clock)
        key = CacheRoutingKey(wrapper.app, per_minute=wrapper.requests_per_key, clock=wrapper.clock)
        self._shaper = Shaper(
            self.rules,
            getattr(leaf, "kind", ""),
            getattr(leaf, "wire_format", ""),
            self.habits,
            key,
            self.worth,
            ttl=wrapper.ttl,
            conversations=wrapper.conversations,
            retention=wrapper.retention,
        )
        self._watch = PrefixWatch() if wrapper.lint else None
        self._kept: KeptContent | None = None
        if wrapper.keep_content is not None and isinstance(leaf, KeepsContent):
            self._kept = KeptContent(leaf, wrapper.keep_content, self.rules.minimum, wrapper.clock)

    async def send(self, request: Request, context: Context) -> Response:
        if not isinstance(request, GenerateRequest):
            return await self.inner.send(request, context)
        wrapper = self.wrapper
        if wrapper.sort_tools:
            request = in_order(request)
        stable = min(max(int(wrapper.stable(request)), 0), len(request.messages))
        cuts = prefix_chain(request)
        if self._watch is not None:
            self._watch.look(request, stable, cuts[stable], self.name, context)
        if self.rules.style == "none":
            response = await self.inner.send(request, context)
            self._settle(response, cuts, Shape(request, (), self.rules.lifetime), 0.0)
            return response
        expected = wrapper.warmth.warm(self.name, cuts)
        shape = self._shaper.shape(request, cuts, stable)
        if self._kept is not None:
            response = await self._kept.send(self.inner, shape.request, cuts[stable], stable, context)
        else:
            response = await self.inner.send(shape.request, context)
        self._settle(response, cuts, shape, expected)
        return response

    def _settle(self, response: Response, cuts: Sequence[Cut], shape: Shape, expected: float) -> None:
        def ended(outcome: Outcome) -> None:
            usage = outcome.usage
            # Servers that cache by themselves need not tell what they read.
            tells = self.rules.style != "automatic" and expected >= max(self.rules.minimum, 1)
            told = expected if tells else 0.0
            if usage is not None and told:
                told *= usage.total_input / cuts[-1].tokens  # our tokens, in the provider's measure
            self.wrapper.ledger(self.name).add(usage, told)
            if usage is None or self.rules.style == "none":
                return
            if shape.marked and self.rules.write > 1:
                hour = shape.lifetime >= 3600.0 and self.rules.style == "anthropic"
                self.worth.add(usage.cached, usage.cache_written, _AN_HOUR if hour else self.rules.write)
            missed = told > 0 and not usage.cached
            if missed:
                self.wrapper.warmth.missed(self.name, cuts)
            # A cache that has just failed and wrote nothing is not believed to have it now.
            if shape.kept and usage.total_input >= self.rules.minimum and not (missed and not usage.cache_written):
                self.wrapper.warmth.served(self.name, shape.kept, shape.lifetime)

        response.on_close(ended)

    async def aclose(self) -> None:
        """Delete kept content, then close the inner provider."""
        try:
            if self._kept is not None:
                await self._kept.aclose()
        finally:
            await self.inner.aclose()


def _from_book(book: PriceBook) -> Callable[[str, Usage], Decimal | None]:
    def price(name: str, usage: Usage) -> Decimal | None:
        provider, _, model = name.partition(":")
        return book.cost(usage, provider=provider, model=model).amount

    return price

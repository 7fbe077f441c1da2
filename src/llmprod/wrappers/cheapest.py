"""Asks the target at which a call will probably cost least, and knows that a warm prompt cache is worth money.

``(read if warm there, else write) * prefix + fresh * rest + output`` for each target; see
:mod:`llmprod.mechanisms.cache_prices`. A conversation stays where its prefix is warm for as long as that is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, ClassVar

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import TargetChosen
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.cache_prices import CachePrices
from llmprod.mechanisms.cache_rules import CacheRules, rules_for
from llmprod.mechanisms.prefix_chain import Cut, prefix_chain
from llmprod.mechanisms.warmth import Warmth
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Outcome, Response
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import leaves
from llmprod.wrappers._router import Router
from llmprod.wrappers.prompt_caching import PromptCaching

__all__ = ["Cheapest"]

_FIRST_OUTPUT = 300.0  # tokens of an answer before any was seen
_WEIGHT = 0.03


class Cheapest(Router):
    """A provider over several that are good enough, cheapest for this call first.

    What comes after a failure is as in :class:`llmprod.Failover`: the next cheapest is asked. A target inside a
    :class:`llmprod.PromptCaching` is believed to be warm where that says so; any other one where its provider caches by
    itself (OpenAI, Gemini, vLLM) and has served the prompt's beginning within its cache's lifetime.

    Args:
        targets: one or more providers.
        prices: for each target, in order.
        output: tokens that an answer probably has; None (the default) learns it from the answers, from 300 on.
        warmth: what is believed to be warm, for targets without a PromptCaching (default: one of its own).
        classify: what an error means (default :func:`llmprod.classify`).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    label: ClassVar[str] = "Cheapest"

    def __init__(
        self,
        *targets: Provider,
        prices: Sequence[CachePrices],
        output: float | None = None,
        warmth: Warmth | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(targets, classify=classify, clock=clock)
        if not isinstance(prices, Sequence) or not all(isinstance(one, CachePrices) for one in prices):
            raise InvalidArgument("prices", type(prices).__name__, "CachePrices for each target")
        if len(prices) != len(targets):
            raise InvalidArgument("prices", f"{len(prices)} of them", f"one for each of {len(targets)} targets")
        _validate.between("output", output, 0, float("inf"), optional=True)
        if len({id(target) for target in targets}) != len(targets):
            raise InvalidArgument("targets", "the same provider twice", "different providers")
        self.prices: tuple[CachePrices, ...] = tuple(prices)
        self.output = output
        self.warmth: Warmth = Warmth(clock=clock) if warmth is None else warmth
        self._mean = _FIRST_OUTPUT if output is None else output
        self._answers = 0
        self._caching = [_caching(target) for target in targets]
        self._rules = [_rules(target) for target in targets]
        self._places: dict[int, int] = {id(target): place for place, target in enumerate(targets)}

    def costs(self, request: GenerateRequest) -> list[Decimal]:
        """Return what the request would probably cost at each target now, in US dollars."""
        cuts = prefix_chain(request)
        output = self._mean if request.max_tokens is None else min(self._mean, float(request.max_tokens))
        return [self._cost(place, cuts, output) for place in range(len(self.targets))]

    def _cost(self, place: int, cuts: Sequence[Cut], output: float) -> Decimal:
        rules, caching, target = self._rules[place], self._caching[place], self.targets[place]
        prompt = cuts[-1].tokens
        cached = rules.style != "none" and (rules.style != "anthropic" or caching is not None)
        warmth = caching.warmth if caching is not None else self.warmth
        warm = warmth.warm(target.name, cuts) if cached else 0.0
        # What is too short for the cache is neither read nor written.
        warm = warm if warm >= rules.minimum else 0.0
        kept = prompt if cached and prompt >= rules.minimum else 0.0
        return self.prices[place].expected(prompt=prompt, warm=warm, kept=kept, output=output)

    def order(self, request: Request, context: Context) -> Sequence[Provider]:
        """By what the call will probably cost, as given where that is equal."""
        if not isinstance(request, GenerateRequest) or len(self.targets) == 1:
            return self.targets
        costs = self.costs(request)
        places = sorted(range(len(costs)), key=costs.__getitem__)
        first = self.targets[places[0]]
        context.decided(TargetChosen, first.name, policy="cheapest", of=len(places), cost=float(costs[places[0]]))
        return [self.targets[place] for place in places]

    async def ask(self, target: Provider, request: Request, context: Context) -> Response:
        """Send, and learn what the answer's length and the target's cache are."""
        response = await target.send(request, context)
        if isinstance(request, GenerateRequest):
            place = self._places[id(target)]
            response.on_close(lambda outcome: self._ended(place, request, outcome))
        return response

    def _ended(self, place: int, request: GenerateRequest, outcome: Outcome) -> None:
        usage = outcome.usage
        if outcome.kind != "ok" or usage is None:
            return
        if self.output is None:
            self._answers += 1
            self._mean += (usage.total_output - self._mean) * max(_WEIGHT, 1.0 / self._answers)
        rules = self._rules[place]
        if self._caching[place] is None and rules.style not in ("none", "anthropic"):
            name, cuts = self.targets[place].name, prefix_chain(request)
            tells = rules.style != "automatic"  # vLLM need not
            missed = tells and not usage.cached and self.warmth.warm(name, cuts) >= max(rules.minimum, 1)
            if missed:
                self.warmth.missed(name, cuts)
            if usage.total_input >= rules.minimum and not (missed and not usage.cache_written):
                self.warmth.served(name, cuts, rules.lifetime)


def _caching(target: Provider | None) -> PromptCaching | None:
    while target is not None:
        wrapper = getattr(target, "wrapper", None)
        if isinstance(wrapper, PromptCaching):
            return wrapper
        target = getattr(target, "inner", None)
    return None


def _rules(target: Provider) -> CacheRules:
    leaf: Any = next(leaves(target))
    return rules_for(getattr(leaf, "prompt_cache", "none"), getattr(leaf, "model", ""))

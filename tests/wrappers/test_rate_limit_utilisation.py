"""200 callers at once use at least 95% of what a hosted API allows and see 429 at most once in a hundred calls.

Whatever way the server counts: it is not told to the client. In virtual time, three minutes each.
"""

import random

import anyio
import pytest

from llmprod import GenerateRequest, LoopClock, Message
from llmprod.mechanisms.limit_store import Limit, Limits
from llmprod.mechanisms.rate_limit import RateLimiter
from llmprod.wrappers.rate_limit import RateLimit
from tests.wrappers.helpers import context
from tests.wrappers.hosted import STYLES, Hosted, callers

REQUEST = GenerateRequest(messages=(Message.user("word " * 320),), max_tokens=1000)
MINUTES = 3
CALLERS = 200

# Requests and tokens a minute: which of them binds.
ALLOWANCES = {"requests bind": (400, 10_000_000), "tokens bind": (2000, 280_000)}


async def run(rpm, tpm, style, charge="end", headers=True, seed=1, processes=1, **options):
    """Return the share of the allowance that was used, the share of calls that saw 429, and the server."""
    server = Hosted(rpm=rpm, tpm=tpm, style=style, charge=charge, headers=headers, seed=seed, now=anyio.current_time())
    started = anyio.current_time()
    server.until = started + 60 * MINUTES
    limited = [
        RateLimit(requests_per_minute=rpm, tokens_per_minute=tpm, clock=LoopClock(), **options)(server)
        for _ in range(processes)
    ]
    async with anyio.create_task_group() as tasks:
        for stack in limited:
            tasks.start_soon(callers, stack, REQUEST, CALLERS // processes, server.until, context)
    told = server.told
    used = max(told.accepted / (rpm * MINUTES), told.tokens / (tpm * MINUTES))
    return used, told.refused / (told.accepted + told.refused), server


@pytest.mark.slow
@pytest.mark.parametrize(("style", "headers"), [(style, number % 2 == 0) for number, style in enumerate(STYLES)])
@pytest.mark.parametrize("allowance", ALLOWANCES)
async def test_utilisation(allowance, style, headers):
    used, refused, _ = await run(*ALLOWANCES[allowance], style, "end" if headers else "start", headers)
    assert used >= 0.95
    assert refused <= 0.01


@pytest.mark.parametrize("style", ["bucket", "fixed minute"])
async def test_utilisation_of_a_small_allowance(style):
    used, refused, _ = await run(60, 1_000_000, style)
    assert used >= 0.95
    assert refused <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("style", ["small bucket", "fixed minute"])
async def test_a_provider_that_counts_more_than_it_is_told(style):
    """It takes ``max_tokens`` for used, three times what the answers are: after some refusals the pace fits."""
    used, refused, server = await run(2000, 280_000, style, charge="max")
    assert used >= 0.95
    assert refused <= 0.02
    late = [at for at in server.told.refused_at if at > server.until - 60]
    assert len(late) <= 5


async def test_told_that_the_provider_counts_max_tokens_it_sees_no_refusal():
    used, refused, _ = await run(2000, 280_000, "small bucket", charge="max", count_max_tokens=True)
    assert used >= 0.95
    assert refused == 0


@pytest.mark.slow
@pytest.mark.parametrize("style", ["bucket", "sliding minute"])
async def test_two_processes_that_know_nothing_of_each_other(style):
    """Each takes the whole allowance for its own: they slow down until it fits, with few refusals."""
    used, refused, _ = await run(300, 10_000_000, style, processes=2)
    assert used >= 0.9
    assert refused <= 0.03


async def test_a_mean_that_is_learned_wastes_nothing_where_max_tokens_would():
    """What the server grants is bound by tokens really used, not by what answers might have been."""
    made = RateLimiter(Limits(rates=(Limit(dimension="tokens", amount=60_000, burst=5_000),)), clock=LoopClock())
    server = Hosted(rpm=10**6, tpm=10**9, now=anyio.current_time(), seed=3)
    server.until = anyio.current_time() + 120
    started = anyio.current_time()
    stack = RateLimit(limiter=made, clock=LoopClock())(server)
    request = GenerateRequest(messages=REQUEST.messages, max_tokens=8000)
    await callers(stack, request, 50, server.until, context)
    spent = server.told.tokens / ((server.until - started) / 60 * 60_000)
    assert 0.95 <= spent <= 1.1
    assert made.in_flight == 0


async def test_nothing_is_lost_when_callers_give_up():
    """Callers that are cancelled anywhere leave nothing behind: at the end all is given back."""
    chance = random.Random(5)
    made = RateLimiter(
        Limits(rates=(Limit(dimension="requests", amount=600, burst=10),), concurrent=20), clock=LoopClock()
    )
    server = Hosted(rpm=10**6, tpm=10**9, now=anyio.current_time(), seed=3)
    stack = RateLimit(limiter=made, clock=LoopClock())(server)

    async def impatient():
        for _ in range(10):
            with anyio.move_on_after(chance.uniform(0, 8)):
                response = await stack.send(REQUEST, context())
                await response.read()

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(impatient)
    assert made.in_flight == 0
    assert made.gate.line.places == []
    assert made.gate._waiting == {}

"""Errors and what they mean: one table, pickles, messages that leak nothing."""

import copy
import pickle
import traceback

import pytest

import llmprod
from llmprod import (
    Action,
    AllTargetsFailed,
    Context,
    DeadlineExceeded,
    IdleTimeout,
    InvalidArgument,
    LLMProdError,
    Message,
    Overloaded,
    RateLimited,
    ReadError,
    Response,
    StreamInterrupted,
    Usage,
    Verdict,
    classify,
    errors,
)
from llmprod.errors import CallError, CallTimeout, UnsupportedParameter, machine_token
from llmprod.events import Finish, TextDelta
from llmprod.request import GenerateRequest

SECRET = "sesame-4711 with spaces"
SAME, OTHER, KEY, FATAL = Action.RETRY_SAME, Action.RETRY_OTHER, Action.QUARANTINE_KEY, Action.FATAL
ERRORS = sorted(
    (
        value
        for name in llmprod.__all__
        if name != "__version__"
        and isinstance(value := getattr(llmprod, name), type)
        and issubclass(value, LLMProdError)
    ),
    key=lambda kind: kind.__name__,
)
SPECIAL = {
    "InvalidArgument": ("field", "given", "allowed"),
    "MissingKey": ("api_key", "nothing", "a key"),
    "UnsupportedParameter": ("openai:gpt", ("seed",)),
    "ForkedProcess": ("a Client",),
    "ClientClosed": (),
    "StoreUnavailable": ("RedisStore", "no connection"),
    "LLMProdError": ("words",),
    "AllTargetsFailed": (
        (("a", Overloaded(provider="a")), ("b", ValueError("x"))),
        Verdict(action=SAME, retry_after=2.0),
    ),
}


def example(kind: type[LLMProdError]) -> LLMProdError:
    if kind.__name__ in SPECIAL:
        return kind(*SPECIAL[kind.__name__])
    return kind(
        provider="openai", model="gpt-5", status=500, code="boom", param="seed", request_id="req_1", retry_after=2.5,
        provider_message=SECRET, in_stream=True, silent=True, detail="why",
    )  # fmt: skip


# error, action, (throttled, prefer_other), health
TABLE = [
    ("RateLimited", SAME, (True, True), "up"),
    ("Overloaded", SAME, (True, True), "down"),
    ("ServerError", SAME, (False, False), "down"),
    ("ProviderError", OTHER, (False, False), "down"),
    ("ConnectError", SAME, (False, False), "down"),
    ("ReadError", SAME, (False, False), "down"),
    ("TruncatedAnswer", SAME, (False, True), "down"),
    ("ProtocolError", SAME, (False, True), "down"),
    ("QuotaExhausted", KEY, (False, False), "up"),
    ("AuthenticationFailed", KEY, (False, False), "up"),
    ("PermissionDenied", KEY, (False, False), "up"),
    ("NotFound", OTHER, (False, False), "up"),
    ("ContextTooLong", OTHER, (False, False), "up"),
    ("ConnectTimeout", OTHER, (False, False), "down"),
    ("FirstTokenTimeout", OTHER, (False, False), "down"),
    ("IdleTimeout", OTHER, (False, False), "down"),
    ("AttemptTimedOut", OTHER, (False, False), "down"),
    ("CallTimeout", OTHER, (False, False), "down"),
    ("Rejected", OTHER, (False, False), "unknown"),
    ("CircuitOpen", OTHER, (False, False), "unknown"),
    ("RateLimitExceeded", OTHER, (False, False), "unknown"),
    ("BulkheadFull", OTHER, (False, False), "unknown"),
    ("Shed", OTHER, (False, False), "unknown"),
    ("BudgetExceeded", OTHER, (False, False), "unknown"),
    ("BudgetUnavailable", OTHER, (False, False), "unknown"),
    ("PriceUnknown", OTHER, (False, False), "unknown"),
    ("NotCached", OTHER, (False, False), "unknown"),
    ("RunawayAnswer", FATAL, (False, False), "unknown"),
    ("NoUsableKey", SAME, (False, True), "unknown"),  # paused, unless all were refused
    ("EngineNotReady", SAME, (False, True), "unknown"),
    ("EngineStartFailed", OTHER, (False, False), "down"),
    ("EngineDied", SAME, (False, True), "down"),
    ("StreamTooSlow", OTHER, (False, False), "down"),
    ("UnsupportedParameter", OTHER, (False, False), "unknown"),
    ("ContentFiltered", FATAL, (False, False), "up"),
    ("BadRequest", FATAL, (False, False), "up"),
    ("InvalidOutput", FATAL, (False, False), "up"),
    ("DeadlineExceeded", FATAL, (False, False), "unknown"),
    ("StreamInterrupted", FATAL, (False, False), "unknown"),
    ("InvalidArgument", FATAL, (False, False), "unknown"),
    ("MissingKey", FATAL, (False, False), "unknown"),
    ("ForkedProcess", FATAL, (False, False), "unknown"),
    ("ClientClosed", FATAL, (False, False), "unknown"),
    ("StoreUnavailable", FATAL, (False, False), "unknown"),
    ("LLMProdError", FATAL, (False, False), "unknown"),
]


@pytest.mark.parametrize(("name", "action", "flags", "health"), TABLE)
def test_what_each_error_means(name, action, flags, health):
    kind = getattr(errors, name)
    error = kind(*SPECIAL[name]) if name in SPECIAL else kind()
    verdict = classify(error)
    assert (verdict.action, (verdict.throttled, verdict.prefer_other), verdict.health) == (action, flags, health)
    assert verdict.retry_after is None


def test_the_table_above_is_complete():
    # TransportError is only a base; AllTargetsFailed carries its own verdict.
    listed = {name for name, *_ in TABLE} | {"TransportError", "CallError", "AllTargetsFailed"}
    assert {kind.__name__ for kind in ERRORS} <= listed


def test_a_wait_that_was_asked_for_is_part_of_the_verdict():
    assert classify(RateLimited(retry_after=7)).retry_after == 7
    assert classify(ReadError(in_stream=True)).prefer_other
    told = Verdict(action=OTHER, retry_after=3)
    assert classify(AllTargetsFailed((), told)) is told


def test_a_subclass_means_what_its_base_does():
    class Slow(Overloaded):
        """One vendor's."""

    assert classify(Slow()) == classify(Overloaded())


@pytest.mark.parametrize("error", [ValueError(), KeyError(), TimeoutError(), KeyboardInterrupt(), OSError()])
def test_what_is_not_understood_is_not_repeated(error):
    assert classify(error) == Verdict(action=FATAL)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids=range(3))
def test_every_error_survives_pickling_and_copying(kind, through):
    error = example(kind)
    error.trace = Context.new().trace
    error.trace.begin("openai:gpt-5", 0.0).failed(error, 1.0)
    again = through(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert repr(again) == repr(error)
    assert classify(again) == classify(error)
    assert str(again.trace) == str(error.trace)
    for name in ("status", "code", "retry_after", "provider_message", "in_stream", "silent", "field", "fields"):
        assert getattr(again, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    "kind", [kind for kind in ERRORS if kind.__name__ not in SPECIAL], ids=lambda kind: kind.__name__
)
def test_messages_are_made_of_machine_fields_alone(kind):
    error = example(kind)
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(error.args)
    assert SECRET not in shown
    for word in ("openai:gpt-5", "status 500", "code boom", "param seed", "retry after 2.5 s", "request req_1"):
        assert word in str(error)


@pytest.mark.parametrize("text", [SECRET, "a" * 81, "line\nbreak", "a\n", "", None, 5])
def test_only_what_looks_like_a_code_is_one(text):
    assert machine_token(text) is None
    assert Overloaded(code=text).code is None
    assert Overloaded(param=text).param is None
    assert machine_token("rate_limit_exceeded") == "rate_limit_exceeded"


def test_timeouts_are_timeout_errors_and_tell_their_limit():
    assert issubclass(CallTimeout, TimeoutError)
    assert "limit 20 s" in str(IdleTimeout(20, provider="a"))
    assert IdleTimeout(20).limit == 20
    assert not DeadlineExceeded().transient
    assert issubclass(InvalidArgument, ValueError)


def test_all_targets_failed_tells_what_each_said():
    error = AllTargetsFailed(
        (("a", Overloaded(provider="a", status=529)), ("b", KeyError(SECRET))), Verdict(action=SAME)
    )
    assert str(error) == "all targets failed: a: overloaded status 529; b: KeyError"
    assert error.transient
    assert str(AllTargetsFailed((), Verdict(action=OTHER))) == "no target can serve the request"
    refused = AllTargetsFailed((("a", UnsupportedParameter("a", ("seed",))),), Verdict(action=OTHER))
    assert (refused.transient, refused.origin) == (False, "app")


async def test_an_interrupted_stream_is_pickled_with_its_text_and_without_its_connection():
    partial = Response(
        provider="a", context=Context.new(), request=GenerateRequest(messages=(Message.user("Hi"),)),
        events=[TextDelta("Hel"), Finish("stop")],
    )  # fmt: skip
    error = StreamInterrupted(partial, provider="a")
    error.usage = Usage(output=1)
    again = pickle.loads(pickle.dumps(error))
    assert again.partial is None
    assert again.partial_text == error.partial_text == "Hel"
    assert again.usage == Usage(output=1)
    assert "Hel" not in f"{error} {error!r}"


def test_every_error_says_who_caused_it():
    for kind in ERRORS:
        assert kind.origin in ("user", "app", "provider", "network", "policy")
        if issubclass(kind, CallError):
            assert kind.what


def test_a_store_that_is_away_says_when_to_ask_again():
    error = errors.StoreUnavailable("RedisStore", "no connection", retry_after=2.5)
    assert str(error) == "RedisStore is unavailable: no connection, retry after 2.5 s"
    assert (error.transient, error.origin) == (True, "app")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.store, again.retry_after) == (str(error), "RedisStore", 2.5)

"""Read by mypy and pyright, never run: what the decorator leaves of a function's type (all of it)."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import assert_type

from llmprod import AttemptTimeout, CallRecord, Response, Retry, Trace, Usage, capture, resilient


@resilient
def bare(question: str, *, temperature: float = 0.0) -> list[int]:
    return [len(question), round(temperature)]


@resilient()
def standard(question: str) -> str:
    return question


@resilient(Retry(3), AttemptTimeout(total=30), fallbacks=[standard, lambda question: "Sorry"])
def wrapped(question: str) -> str:
    return question


@resilient(Retry(3))
async def asynchronous(question: str) -> bytes:
    return question.encode()


@resilient(Retry(3))
def stream(question: str) -> Iterator[str]:
    yield question


@resilient(Retry(3), name="s", stream=True, check_complete=False)
async def asynchronous_stream(question: str) -> AsyncIterator[str]:
    yield question


class Service:
    @resilient(Retry(3))
    def ask(self, question: str) -> int:
        return len(question)

    @resilient
    async def ask_async(self, question: str) -> int:
        return len(question)

    @classmethod
    @resilient(Retry(3))
    def of_class(cls, question: str) -> int:
        return len(question)


def calls() -> None:
    assert_type(bare("q", temperature=1.0), list[int])
    assert_type(standard("q"), str)
    assert_type(wrapped("q"), str)
    assert_type(stream("q"), Iterator[str])
    assert_type(asynchronous_stream("q"), AsyncIterator[str])
    assert_type(Service().ask("q"), int)
    assert_type(Service.of_class("q"), int)


async def awaited() -> None:
    assert_type(await asynchronous("q"), bytes)
    assert_type(await Service().ask_async("q"), int)
    async for item in asynchronous_stream("q"):
        assert_type(item, str)


def hands_over() -> Callable[[str], str]:
    return wrapped


def wrong_calls() -> None:
    bare("q", temperature="hot")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    standard()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Service().ask(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def records() -> None:
    with capture() as seen:
        standard("q")
    assert_type(seen, list[CallRecord])
    assert_type(seen[-1].response, Response | None)
    assert_type(seen[-1].trace, Trace)
    assert_type(seen[-1].usage, Usage | None)
    assert_type(seen[-1].text, str)

"""What the simulated model says: the whole answer follows from the seed and the request, never from time or order."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from pydantic_core import to_json

from llmprod.events import Event, TextDelta, ThinkingDelta, TokenLogprob, ToolCallDelta, ToolCallDone
from llmprod.providers._simulate_schema import instance_of
from llmprod.request import GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Audio, File, Image, Message, Text, Thinking, ToolCall, ToolResult
from llmprod.usage import FinishReason, Usage

__all__ = ["MARK", "Answer", "embedding", "prompt_usage", "tokens_of", "write"]

MARK = "[simulated]"
"""What every text of the simulated model begins with."""

_EFFORT = {"minimal": 8, "low": 16, "medium": 32, "high": 64, "xhigh": 96, "max": 128}
_IMAGE_TOKENS, _AUDIO_TOKENS = 256, 128
_SHAPE = ("{}", "no {}", "every {}", "the first {}", "a second {}", "the {}")
_NOUNS = ("answer", "timeout", "queue", "token", "server", "request", "deadline", "retry", "route", "stream", "budget")
_VERBS = ("waits for", "follows", "replaces", "needs", "outlives", "carries", "hides", "returns", "counts", "allows")
_ENDS = ("before noon", "in time", "without loss", "once more", "as planned", "at night", "under load", "for now")


@dataclass(slots=True)
class Answer:
    """A written answer.

    Attributes:
        steps: content events, each with the number of tokens that it stands for.
        finish: why it ends.
        usage: its tokens, the prompt's among them.
    """

    steps: list[tuple[Event, int]] = field(default_factory=list[tuple[Event, int]])
    finish: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)


def write(request: GenerateRequest, seed: int, model: str, median_tokens: float) -> Answer:
    """Write the answer to ``request``; ``stream`` makes no difference, and ``max_tokens`` only cuts it."""
    random = Random(_key(request, seed, model))
    calls = _chosen(request, random)
    answer = Answer(finish="tool_calls" if calls else "stop")
    effort = request.reasoning_effort or "none"
    part = 0
    if effort != "none":
        for token in _prose(random, _EFFORT[effort]):
            answer.steps.append((ThinkingDelta(token, part), 1))
        part = 1
    if calls:
        for number, tool in enumerate(calls, part):
            answer.steps.extend(_call(tool, number, random))
    else:
        for token in _until_stop(_text(request, random, median_tokens), request.stop):
            logprobs = () if request.logprobs is None else (_logprob(token, request.logprobs, random),)
            answer.steps.append((TextDelta(token, part, logprobs), 1))
    _cut(answer, request.max_tokens)
    thinking = sum(count for event, count in answer.steps if type(event) is ThinkingDelta)
    prompt = prompt_usage(request.messages, request.tools)
    answer.usage = prompt + Usage(output=sum(count for _, count in answer.steps) - thinking, reasoning=thinking)
    return answer


def _key(request: GenerateRequest, seed: int, model: str) -> int:
    schema = request.output.schema if request.output else None
    tools = [(tool.name, tool.parameters) for tool in request.tools]
    asked = (seed, model, request.seed, request.messages, tools, request.tool_choice, schema)
    return int.from_bytes(blake2b(to_json(asked, bytes_mode="base64", fallback=str), digest_size=8).digest())


def _cut(answer: Answer, most: int | None) -> None:
    """Keep ``most`` tokens."""
    left = math.inf if most is None else most
    for place, (_, count) in enumerate(answer.steps):
        left -= count
        if left < 0:
            del answer.steps[place:]
            answer.finish = "length"
            return


# ---- text -----------------------------------------------------------------------------------------------------------


def tokens_of(text: str) -> int:
    """About as many tokens as ``text`` has: four characters each."""
    return math.ceil(len(text) / 4)


def _text(request: GenerateRequest, random: Random, median: float) -> Iterable[str]:
    if request.output is not None:
        return _pieces(to_json(instance_of(request.output.schema, random)).decode())
    results = _last_results(request.messages)
    if results:
        told = " and ".join(
            f"{result.name or 'the tool'} {'failed: ' * result.is_error}{result.text}" for result in results
        )
        return re.findall(r"\s*\S+", f"{MARK} According to {told}.")
    return _prose(random, max(4, round(random.lognormvariate(math.log(median), 0.5))))


def _last_results(messages: Sequence[Message]) -> list[ToolResult]:
    """The results that end the conversation, one message each or several in one."""
    last = itertools.takewhile(lambda message: message.role == "tool", reversed(messages))
    return [part for message in reversed([*last]) for part in message.parts if isinstance(part, ToolResult)]


def _prose(random: Random, count: int) -> Iterator[str]:
    """``count`` tokens of sentences that mean nothing."""
    yield MARK
    made = 1
    while made < count:
        subject, thing = (random.choice(_SHAPE).format(random.choice(_NOUNS)) for _ in range(2))
        words = f"{subject.capitalize()} {random.choice(_VERBS)} {thing} {random.choice(_ENDS)}.".split()
        for word in words[: count - made]:
            made += 1
            yield f" {word}"


def _pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def _until_stop(tokens: Iterable[str], stops: tuple[str, ...]) -> Iterator[str]:
    if not stops:
        yield from tokens
        return
    tokens = list(tokens)
    text = "".join(tokens)
    left = min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
    for token in tokens:
        if left <= 0:
            return
        yield token[:left]
        left -= len(token)


def _logprob(token: str, top: int, random: Random) -> TokenLogprob:
    chosen = -random.expovariate(4)
    others = [
        (f" {word}", chosen - random.expovariate(0.5))
        for word in random.sample(_NOUNS, min(max(top - 1, 0), len(_NOUNS)))
    ]
    ranked = sorted([(token, chosen), *others], key=lambda pair: -pair[1])
    return TokenLogprob(token, chosen, tuple(ranked[:top]))


# ---- tools ----------------------------------------------------------------------------------------------------------


def _chosen(request: GenerateRequest, random: Random) -> list[Tool]:
    """The tools to call: what is forced, else those whose names the user's last message mentions."""
    choice = request.tool_choice
    if not request.tools or choice == "none":
        return []
    if choice == "required":
        return [random.choice(request.tools)]
    if choice not in (None, "auto"):
        return [tool for tool in request.tools if tool.name == choice]
    last = request.messages[-1]
    said = _plain(last.text) if last.role == "user" else ""
    named = [tool for tool in request.tools if f" {_plain(tool.name).strip()} " in said]
    return named[:1] if request.parallel_tool_calls is False else named


def _plain(text: str) -> str:
    return f" {re.sub(r'[^a-z0-9]+', ' ', text.lower()).strip()} "


def _call(tool: Tool, part: int, random: Random) -> Iterator[tuple[Event, int]]:
    arguments = to_json(instance_of({"type": "object", **tool.parameters}, random)).decode()
    call = ToolCall(f"call_{random.getrandbits(48):012x}", tool.name, arguments)
    yield ToolCallDelta(part, call.id, call.name), tokens_of(tool.name)
    for piece in _pieces(arguments):
        yield ToolCallDelta(part, arguments=piece), 1
    yield ToolCallDone(call, part), 0


# ---- prompts and embeddings -----------------------------------------------------------------------------------------


def prompt_usage(messages: Iterable[Message], tools: Iterable[Tool] = ()) -> Usage:
    """About as many tokens as a prompt has: four characters each, and a flat number for media."""
    text = images = sounds = 0
    for message in messages:
        text += 4  # the turn's own marks
        for part in message.parts:
            if isinstance(part, (Text, Thinking)):
                text += tokens_of(part.text)
            elif isinstance(part, ToolCall):
                text += tokens_of(part.name + part.arguments)
            elif isinstance(part, ToolResult):
                text += tokens_of(part.text)
            elif isinstance(part, Image):
                images += _IMAGE_TOKENS
            elif isinstance(part, Audio):
                sounds += _AUDIO_TOKENS
            elif isinstance(part, File):
                text += tokens_of(" " * len(part.data or b""))
    text += sum(tokens_of(tool.name + tool.description) + len(to_json(tool.parameters)) // 4 for tool in tools)
    return Usage(input=text, input_image=images, input_audio=sounds, estimated=True)


def embedding(text: str, dimensions: int, seed: int) -> list[float]:
    """A unit vector from hashed three-letter runs and words, so that texts alike lie close (Weinberger et al. 2009)."""
    plain = _plain(text)
    vector = [0.0] * dimensions
    for gram in [*(plain[start : start + 3] for start in range(len(plain) - 2)), *plain.split()]:
        hashed = zlib.crc32(gram.encode(), seed & 0xFFFFFFFF)
        vector[(hashed >> 1) % dimensions] += 1.0 if hashed & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if not length:
        return [1.0, *[0.0] * (dimensions - 1)]
    return [value / length for value in vector]

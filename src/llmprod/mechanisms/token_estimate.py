"""How many tokens a call will use, before anybody has counted them.

The prompt: bytes of UTF-8 by four where it is all ASCII (a token is about four English letters), by what it is made of
where it is not (:mod:`llmprod.mechanisms.token_prompt`), corrected by what the target counted so far. The answer: the
mean of the target's answers to the same prompt name, since ``max_tokens`` taken at its word would leave most of an
allowance unused (most answers are far shorter). The mean, not a high quantile: what is reserved too little is settled
into debt soon after, and what is reserved too much makes calls wait for nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from llmprod.mechanisms.token_prompt import prompt_tokens
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.types import Audio, File, Image, Message, Text, Thinking, ToolCall, ToolResult

__all__ = ["TokenEstimate"]

_BYTES_A_TOKEN = 4.0
_A_MESSAGE = 4  # the marks around a message (OpenAI's chat format: 3 or 4)
_IMAGE, _IMAGE_LOW = 800, 85  # OpenAI: 85 and 765 for a megapixel; Gemini 258 a tile; Anthropic up to 1,600
_AUDIO_BYTES = 800.0  # compressed speech of 16 kB a second at 20 tokens a second
_FILE_BYTES = 40.0  # a PDF's page of 60 kB is 1,500 tokens (Anthropic)
_UNSEEN = 1000  # behind a URL
_FIRST_OUTPUT = 300.0  # the mean of public traces lies between 100 and 450
_WEIGHT = 0.03
_ROUTES = 256


class _Mean:
    """A mean that forgets: the first samples count evenly, later ones with a fixed weight."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += (sample - self.value) * max(_WEIGHT, 1.0 / self.count)


class TokenEstimate:
    """Estimates tokens, and learns from what calls really used.

    Args:
        tokens: counts the prompt tokens of a request exactly; takes the place of the estimate from its length.
        output: what an answer is taken for before any was seen, in tokens (default 300).
        model: whose tokens, such as ``openai:gpt-5`` (default: no model's in particular).
    """

    def __init__(
        self, *, tokens: Callable[[Request], int] | None = None, output: float = _FIRST_OUTPUT, model: str = ""
    ) -> None:
        self._tokens = tokens
        self._model = model
        self._first_output = output
        self._told = _Mean()
        self._raw = _Mean()
        self._unseen = _Mean()
        self._all = _Mean()
        self._routes: OrderedDict[str, _Mean] = OrderedDict()

    def raw_input(self, request: Request) -> float:
        """Prompt tokens before any correction; 0 for what can't be looked into (a decorated function's call)."""
        if self._tokens is not None:
            return float(self._tokens(request))
        # Four bytes a token are near enough for English, code and JSON, and cost nothing. Other scripts and media are
        # not like that, and one correction for all would leave a mixture of languages off by half.
        return rough_tokens(request) if _plain(request) else prompt_tokens(request, self._model).total.tokens

    def input(self, raw: float) -> float:
        """Prompt tokens, corrected by experience; ``raw`` is :meth:`raw_input`'s."""
        if self._tokens is not None:
            return raw
        if not raw:
            return self._unseen.value
        return raw * self._told.value / self._raw.value if self._raw.count else raw

    def output(self, request: Request, route: str = "") -> float:
        """Answer tokens; never more than ``max_tokens``, and none for embeddings."""
        if isinstance(request, EmbedRequest):
            return 0.0
        known = self._routes.get(route)
        if known is None or known.count < 3:
            known = self._all
        expected = known.value if known.count else self._first_output
        most = getattr(request, "max_tokens", None)
        return expected if most is None else min(expected, float(most))

    def learn(self, request: Request, raw: float, prompt: float, answer: float, route: str = "") -> None:
        """Note what a complete answer used, in tokens."""
        if prompt and raw:
            self._told.add(prompt)
            self._raw.add(raw)
        elif prompt:
            self._unseen.add(prompt)  # no length to compare with: the mean of the counts is the estimate
        if isinstance(request, EmbedRequest):
            return
        self._all.add(answer)
        if route:
            known = self._routes.get(route)
            if known is None:
                known = self._routes[route] = _Mean()
                if len(self._routes) > _ROUTES:
                    self._routes.popitem(last=False)
            else:
                self._routes.move_to_end(route)
            known.add(answer)


def rough_tokens(request: Request) -> float:
    """Return about how many tokens a request's prompt has, from its length alone."""
    if isinstance(request, EmbedRequest):
        return sum(map(_size, request.inputs)) / _BYTES_A_TOKEN
    if not isinstance(request, GenerateRequest):
        return 0.0
    total = sum(map(_message, request.messages))
    for tool in request.tools:
        total += (_size(tool.name) + _size(tool.description or "") + len(to_json(tool.parameters))) / _BYTES_A_TOKEN
    if request.output is not None:
        total += len(to_json(request.output.schema)) / _BYTES_A_TOKEN
    return total


def _plain(request: Request) -> bool:
    """Whether the prompt is text in ASCII, as far as it is looked into."""
    if isinstance(request, EmbedRequest):
        return all(map(str.isascii, request.inputs))
    if not isinstance(request, GenerateRequest):
        return True
    return all(
        part.text.isascii()
        if isinstance(part, (Text, Thinking))
        else part.arguments.isascii()
        if isinstance(part, ToolCall)
        else isinstance(part, ToolResult) and isinstance(part.content, str) and part.content.isascii()
        for message in request.messages
        for part in message.parts
    )


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _message(message: Message) -> float:
    return _A_MESSAGE + sum(map(_part, message.parts))


def _part(part: Any) -> float:
    if isinstance(part, (Text, Thinking)):
        return _size(part.text) / _BYTES_A_TOKEN
    if isinstance(part, ToolCall):
        return (_size(part.name) + _size(part.arguments)) / _BYTES_A_TOKEN + _A_MESSAGE
    if isinstance(part, ToolResult):
        inner = (part.content,) if isinstance(part.content, str) else part.content
        return _A_MESSAGE + sum(
            _size(item) / _BYTES_A_TOKEN if isinstance(item, str) else _part(item) for item in inner
        )
    if isinstance(part, Image):
        return _IMAGE_LOW if part.detail == "low" else _IMAGE
    if isinstance(part, (Audio, File)):
        a_token = _AUDIO_BYTES if isinstance(part, Audio) else _FILE_BYTES
        return len(part.data) / a_token if part.data is not None else _UNSEEN
    return 0.0

"""Three APIs in memory, behind `httpx.MockTransport`: what was sent is kept, and prompt caches work as documented.

They are no judges of what the real ones do, but they hold the rules that the plans rely on: an entry ends at a mark
(or, where caching is implicit, at the end of the prompt), lives for its lifetime, and is found by looking back 20
blocks (Anthropic) or at a mark alone (OpenAI from GPT-5.6 on).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx

from llmprod import HTTPOptions


def tokens(value: Any) -> int:
    """Four characters of text make a token here too."""
    if isinstance(value, str):
        return len(value) // 4
    if isinstance(value, dict):
        return sum(tokens(item) for key, item in value.items() if key not in ("cache_control", "type", "role"))
    return sum(map(tokens, value)) if isinstance(value, list) else 0


class Vendor:
    """Keeps what was sent; answers by `answer`, or by the next of `failures`."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.failures: list[httpx.Response] = []
        self.entries: dict[str, float] = {}

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests if request.content]

    def http(self) -> HTTPOptions:
        return HTTPOptions(client=httpx.AsyncClient(transport=httpx.MockTransport(self._take)))

    def _take(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.failures:
            return self.failures.pop(0)
        return self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError

    def lives(self, key: str) -> bool:
        return self.entries.get(key, -1.0) > anyio.current_time()


class AnthropicVendor(Vendor):
    """Messages: four marks at most, 20 blocks back, five minutes or an hour from the last use."""

    minimum = 1024

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        blocks = [*body.get("tools", []), *body.get("system", [])]
        for turn in body["messages"]:
            blocks += [{**block, "said_by": turn["role"]} for block in turn["content"]]
        marks = [place for place, block in enumerate(blocks) if "cache_control" in block]
        lifetimes = [blocks[place]["cache_control"].get("ttl", "5m") for place in marks]
        if len(marks) > 4:
            return httpx.Response(400, json=error("A maximum of 4 blocks with cache_control may be provided."))
        if lifetimes != sorted(lifetimes):  # "1h" sorts before "5m"
            return httpx.Response(400, json=error("a ttl='1h' cache_control block must not come after a ttl='5m' one"))
        keys = self._keys(blocks)
        sizes = [sum(tokens(block) for block in blocks[: place + 1]) for place in range(len(blocks))]
        read = 0
        for mark in marks:
            for place in range(mark, max(-1, mark - 20), -1):
                if self.lives(keys[place]) and sizes[place] >= self.minimum:
                    read = max(read, sizes[place])
                    self._keep(keys[place], "5m")
                    break
        written = {"5m": 0, "1h": 0}
        upto = read
        for mark, lifetime in zip(marks, lifetimes, strict=True):
            if sizes[mark] >= self.minimum:
                self._keep(keys[mark], lifetime)
                written[lifetime] += max(0, sizes[mark] - upto)
                upto = max(upto, sizes[mark])
        usage = {
            "input_tokens": sizes[-1] - upto,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": sum(written.values()),
            "cache_creation": {
                "ephemeral_5m_input_tokens": written["5m"],
                "ephemeral_1h_input_tokens": written["1h"],
            },
            "output_tokens": 10,
        }
        answer = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "usage": usage}
        told = {"content": [{"type": "text", "text": "Yes."}], "stop_reason": "end_turn", "stop_sequence": None}
        return httpx.Response(200, json={**answer, **told})

    def _keep(self, key: str, lifetime: str) -> None:
        until = anyio.current_time() + {"5m": 300.0, "1h": 3600.0}[lifetime]
        self.entries[key] = max(until, self.entries.get(key, until))

    def _keys(self, blocks: list[Any]) -> list[str]:
        bare = [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks]
        return [json.dumps(bare[: place + 1]) for place in range(len(bare))]


class OpenAIVendor(Vendor):
    """Chat Completions; with `breakpoints` as from GPT-5.6 on, else as before it: the longest common beginning."""

    def __init__(self, *, breakpoints: bool) -> None:
        super().__init__()
        self.breakpoints = breakpoints

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if "prompt_cache_options" in body and "prompt_cache_retention" in body:
            return httpx.Response(400, json=error("prompt_cache_options and prompt_cache_retention are exclusive"))
        blocks: list[Any] = [*body.get("tools", [])]
        ends: list[int] = []
        for message in body["messages"]:
            content = message.get("content") or ""
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if "prompt_cache_breakpoint" in part:
                    ends.append(len(blocks))
                bare = {key: value for key, value in part.items() if key != "prompt_cache_breakpoint"}
                blocks.append({**bare, "said_by": message["role"]})
        if body.get("prompt_cache_options", {}).get("mode") != "explicit" or not self.breakpoints:
            ends.append(len(blocks) - 1)
        if not self.breakpoints:
            ends = list(range(len(blocks)))
        keys = [json.dumps(blocks[: place + 1]) for place in range(len(blocks))]
        sizes = [sum(tokens(block) for block in blocks[: place + 1]) for place in range(len(blocks))]
        found = [sizes[end] for end in ends if self.lives(keys[end]) and sizes[end] >= 1024]
        read = max(found, default=0)
        most = max((sizes[end] for end in ends if sizes[end] >= 1024), default=0)
        written = max(0, most - read) if self.breakpoints else 0
        for end in ends:
            self.entries[keys[end]] = anyio.current_time() + (1800.0 if self.breakpoints else 300.0)
        details = {"cached_tokens": read, "cache_write_tokens": written}
        usage = {"prompt_tokens": sizes[-1], "completion_tokens": 10, "total_tokens": sizes[-1] + 10}
        message = {"role": "assistant", "content": "Yes."}
        return httpx.Response(
            200,
            json={
                "id": "c1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {**usage, "prompt_tokens_details": details},
            },
        )


class GoogleVendor(Vendor):
    """generateContent, and cached content that can be made, used and deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: dict[str, int] = {}
        self.deleted: list[str] = []
        self.refuses: Callable[[], httpx.Response] | None = None

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "DELETE":
            name = path.partition("/v1beta/")[2]
            self.deleted.append(name)
            self.contents.pop(name)
            return httpx.Response(200, json={})
        body = json.loads(request.content)
        if path.endswith("/cachedContents"):
            if self.refuses is not None:
                return self.refuses()
            name = f"cachedContents/c{len(self.contents) + len(self.deleted)}"
            self.contents[name] = tokens([body.get("systemInstruction", {}), body.get("tools", [])])
            return httpx.Response(200, json={"name": name, "usageMetadata": {"totalTokenCount": self.contents[name]}})
        kept = body.get("cachedContent")
        if kept is not None and body.keys() & {"systemInstruction", "tools", "toolConfig"}:
            return httpx.Response(400, json=google_error(400, "INVALID_ARGUMENT", "CachedContent can not be used with"))
        if kept is not None and kept not in self.contents:
            return httpx.Response(403, json=google_error(403, "PERMISSION_DENIED", "CachedContent not found"))
        cached = self.contents[kept] if kept else 0
        count = cached + tokens(body["contents"]) + tokens(body.get("systemInstruction", {}))
        usage = {"promptTokenCount": count, "cachedContentTokenCount": cached, "candidatesTokenCount": 10}
        part = {"content": {"role": "model", "parts": [{"text": "Yes."}]}, "finishReason": "STOP"}
        return httpx.Response(200, json={"candidates": [part], "usageMetadata": usage, "modelVersion": "m"})


def error(message: str) -> Any:
    return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


def google_error(code: int, status: str, message: str) -> Any:
    return {"error": {"code": code, "status": status, "message": message}}

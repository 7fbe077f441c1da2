"""Answers of OpenAI's two APIs that hold every kind of part, and the streams that they come as."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from typing import Any

Json = dict[str, Any]

TEXT = "Héllo — 世界 🎉, it is noon."


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


# ---- Chat Completions -----------------------------------------------------------------------------------------------

CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {
        "cached_tokens": 40,
        "cache_write_tokens": 10,
        "audio_tokens": 5,
        "image_tokens": 7,
        "text_tokens": 38,
    },
    "completion_tokens_details": {
        "reasoning_tokens": 20,
        "audio_tokens": 3,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def call(id: str, name: str, arguments: str) -> Json:  # noqa: A002
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def token(text: str, logprob: float, *others: tuple[str, float]) -> Json:
    top = [{"token": other, "bytes": list(other.encode()), "logprob": value} for other, value in others]
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": top}


LOGPROBS = {
    "content": [token("It is", -0.1, ("It is", -0.1), ("Its", -3.0)), token(" noon", -0.5), token(".", -0.01)],
    "refusal": None,
}
CITED = {
    "type": "url_citation",
    "url_citation": {"start_index": 0, "end_index": 4, "title": "Noon", "url": "https://example.com/noon"},
}


def completion(finish: str | None = "stop", logprobs: Json | None = None, **message: Any) -> Json:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-5.6-2026-06-01",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None, **message},
                "logprobs": logprobs,
                "finish_reason": finish,
            }
        ],
        "usage": CHAT_USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


CHAT: dict[str, Json] = {
    "text": completion(content=TEXT),
    "length": completion("length", content="It is"),
    "filtered": completion("content_filter", content="It"),
    "tools": completion(
        "tool_calls",
        tool_calls=[call("call_a", "weather", '{"city": "Zürich", "days": [1, 2.5]}'), call("call_b", "clock", "{}")],
    ),
    "text and tools": completion(
        "tool_calls", content="Let me see.", tool_calls=[call("call_a", "weather", '{"city":"Bern"}')]
    ),
    "refusal": completion(refusal="I can't help with that."),
    "logprobs": completion(content="It is noon.", logprobs=LOGPROBS),
    "cited": completion(content=TEXT, annotations=[CITED]),
    "sound": completion(
        audio={"id": "audio_1", "data": "aGVsbG8h", "transcript": "Hello!", "expires_at": 1_760_003_600}
    ),
}


def chat_chunks(body: Json) -> list[Json]:
    """The chunks that OpenAI would send for a whole answer, with ``include_usage``."""
    head = {key: body[key] for key in ("id", "created", "model", "service_tier", "system_fingerprint") if key in body}
    head["object"] = "chat.completion.chunk"
    choice = body["choices"][0]
    message, logprobs = choice["message"], choice.get("logprobs")
    chunks: list[Json] = []

    def add(delta: Json | None, finish: str | None = None, told: Json | None = None) -> None:
        made = {"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish}
        chunks.append({**head, "choices": [made], "usage": None, "obfuscation": "aX9"})

    add({"role": "assistant", "content": "", "refusal": None})
    for field in ("reasoning_content", "reasoning"):
        for piece in pieces(message.get(field) or ""):
            add({field: piece})
    if logprobs:
        for one in logprobs["content"]:
            add({"content": one["token"]}, told={"content": [one], "refusal": None})
    else:
        for piece in pieces(message.get("content") or ""):
            add({"content": piece})
    for piece in pieces(message.get("refusal") or ""):
        add({"refusal": piece})
    for place, one in enumerate(message.get("tool_calls") or ()):
        function = one["function"]
        add({"tool_calls": [{"index": place, **one, "function": {"name": function["name"], "arguments": ""}}]})
        for piece in pieces(function["arguments"]):
            add({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})
    if message.get("annotations"):
        add({"annotations": message["annotations"]})
    if message.get("audio"):
        audio = message["audio"]
        add({"audio": {"id": audio["id"], "transcript": audio["transcript"][:3]}})
        add({"audio": {"data": audio["data"][:4]}})
        add({"audio": {"data": audio["data"][4:], "transcript": audio["transcript"][3:]}})
        add({"audio": {"expires_at": audio["expires_at"]}})
    add({}, choice["finish_reason"])
    if body.get("usage"):
        chunks.append({**head, "choices": [], "usage": body["usage"], "obfuscation": ""})
    return chunks


def sse(events: Iterable[Json], *, done: bool = True) -> bytes:
    """Chunks as Chat Completions sends them."""
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"] if done else lines).encode()


def chat_stream(body: Json) -> bytes:
    return sse(chat_chunks(body))


# ---- Responses ------------------------------------------------------------------------------------------------------

RESPONSES_USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {
        "cached_tokens": 40,
        "cache_write_tokens": 30,
        "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 15},
    },
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}


def said(text: str, id: str = "msg_1", phase: str | None = None, **content: Any) -> Json:  # noqa: A002
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **content}
    item = {"id": id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return item if phase is None else {**item, "phase": phase}


REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [
        {"type": "summary_text", "text": "First, the city."},
        {"type": "summary_text", "text": "Then, the hour."},
    ],
    "encrypted_content": "gAAAAABo+/x==",
}
OPEN_REASONING = {
    "id": "rs_3",
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "I add the numbers."}],
    "encrypted_content": None,
}
HIDDEN = {"id": "rs_2", "type": "reasoning", "summary": [], "encrypted_content": "gAAAAABp=="}
FUNCTION = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_a",
    "name": "weather",
    "arguments": '{"city": "Zürich", "days": [1, 2.5]}',
}
FUNCTION_TWO = {**FUNCTION, "id": "fc_2", "call_id": "call_b", "name": "clock", "arguments": "{}"}
CUSTOM = {"id": "ctc_1", "type": "custom_tool_call", "call_id": "call_c", "name": "shell", "input": '["ls", "-l"]'}
CITED_ITEM = {"type": "url_citation", "start_index": 0, "end_index": 4, "title": "Noon", "url": "https://example.com"}

OTHERS: dict[str, Json] = {
    "web_search_call": {
        "id": "ws_1",
        "type": "web_search_call",
        "status": "completed",
        "action": {"type": "search", "query": "noon", "queries": ["noon"]},
    },
    "file_search_call": {
        "id": "fs_1",
        "type": "file_search_call",
        "status": "completed",
        "queries": ["noon"],
        "results": None,
    },
    "code_interpreter_call": {
        "id": "ci_1",
        "type": "code_interpreter_call",
        "status": "completed",
        "code": "1+1",
        "container_id": "cntr_1",
        "outputs": [],
    },
    "image_generation_call": {"id": "ig_1", "type": "image_generation_call", "status": "completed", "result": "aGk="},
    "mcp_call": {
        "id": "mcp_1",
        "type": "mcp_call",
        "status": "completed",
        "arguments": "{}",
        "name": "look",
        "server_label": "s",
        "output": "seen",
    },
    "mcp_list_tools": {"id": "mcpl_1", "type": "mcp_list_tools", "server_label": "s", "tools": []},
    "computer_call": {
        "id": "cu_1",
        "type": "computer_call",
        "status": "completed",
        "call_id": "call_cu",
        "pending_safety_checks": [],
        "action": {"type": "wait"},
    },
    "local_shell_call": {
        "id": "ls_1",
        "type": "local_shell_call",
        "status": "completed",
        "call_id": "call_ls",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
    },
    "compaction": {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAA"},
    "of a kind yet unknown": {"id": "x_1", "type": "telepathy_call", "status": "completed", "mood": {"calm": True}},
}
"""Items that are kept to be replayed."""


def answered(*output: Json, status: str = "completed", reason: str | None = None, **fields: Any) -> Json:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_760_000_000,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-5.6-2026-06-01",
        "output": list(output),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSES_USAGE,
        **fields,
    }


_REFUSED = {**said(""), "content": [{"type": "refusal", "refusal": "I can't help with that."}]}
_TWO_TEXTS = {**said("One. "), "content": [said("One. ")["content"][0], said("Two.")["content"][0]]}

RESPONSES: dict[str, Json] = {
    "text": answered(said(TEXT)),
    "phases": answered(said("Looking.", phase="commentary"), said(TEXT, "msg_2", "final_answer")),
    "two texts": answered(_TWO_TEXTS),
    "cited": answered(said(TEXT, annotations=[CITED_ITEM])),
    "logprobs": answered(said("It is noon.", logprobs=LOGPROBS["content"])),
    "refusal": answered(_REFUSED),
    "reasoning": answered(REASONING, said(TEXT)),
    "open reasoning": answered(OPEN_REASONING, said(TEXT)),
    "hidden reasoning and tools": answered(HIDDEN, FUNCTION, FUNCTION_TWO),
    "custom tool": answered(CUSTOM),
    "cut by length": answered(said("It is"), status="incomplete", reason="max_output_tokens"),
    "cut by filter": answered(said("It"), status="incomplete", reason="content_filter"),
    "own tools": answered(*OTHERS.values(), said(TEXT), tool_usage={"web_search": {"num_requests": 2}}),
}


def responses_events(body: Json) -> list[Json]:
    """The events that OpenAI would send for a whole answer."""
    numbers = count()
    events: list[Json] = []

    def add(kind: str, **fields: Any) -> None:
        events.append({"type": f"response.{kind}", "sequence_number": next(numbers), **fields})

    begun = {**body, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None, "error": None}
    for kind in ("created", "queued", "in_progress"):
        add(kind, response=begun)
    for place, item in enumerate(body["output"]):
        at = {"output_index": place, "item_id": item["id"]}
        kind = item["type"]
        start = {"status": "in_progress"} if "status" in item else {}
        empty = {"message": {"content": []}, "reasoning": {"summary": [], "encrypted_content": None}}
        empty |= {"function_call": {"arguments": ""}, "custom_tool_call": {"input": ""}}
        add("output_item.added", output_index=place, item={**item, **start, **empty.get(kind, {})})
        if kind == "message":
            _message_events(add, item, at)
        elif kind == "reasoning":
            _reasoning_events(add, item, at)
        elif kind == "function_call":
            for piece in pieces(item["arguments"]):
                add("function_call_arguments.delta", **at, delta=piece)
            add("function_call_arguments.done", **at, arguments=item["arguments"], name=item["name"])
        elif kind == "custom_tool_call":
            for piece in pieces(item["input"]):
                add("custom_tool_call_input.delta", **at, delta=piece)
            add("custom_tool_call_input.done", **at, input=item["input"])
        else:
            _tool_events(add, kind, at)
        add("output_item.done", output_index=place, item=item)
    add(body["status"], response=body)
    return events


def _message_events(add: Any, item: Json, at: Json) -> None:
    for index, part in enumerate(item["content"]):
        here = {**at, "content_index": index}
        if part["type"] == "refusal":
            add("content_part.added", **here, part={**part, "refusal": ""})
            for piece in pieces(part["refusal"]):
                add("refusal.delta", **here, delta=piece)
            add("refusal.done", **here, refusal=part["refusal"])
        else:
            add("content_part.added", **here, part={**part, "text": "", "annotations": [], "logprobs": []})
            told = part["logprobs"]
            for one in told:
                add("output_text.delta", **here, delta=one["token"], logprobs=[one], obfuscation="a9")
            for piece in [] if told else pieces(part["text"]):
                add("output_text.delta", **here, delta=piece, logprobs=[], obfuscation="a9")
            for number, note in enumerate(part["annotations"]):
                add("output_text.annotation.added", **here, annotation_index=number, annotation=note)
            add("output_text.done", **here, text=part["text"], logprobs=told)
        add("content_part.done", **here, part=part)


def _reasoning_events(add: Any, item: Json, at: Json) -> None:
    for index, part in enumerate(item["summary"]):
        here = {**at, "summary_index": index}
        add("reasoning_summary_part.added", **here, part={**part, "text": ""})
        for piece in pieces(part["text"]):
            add("reasoning_summary_text.delta", **here, delta=piece, obfuscation="b")
        add("reasoning_summary_text.done", **here, text=part["text"])
        add("reasoning_summary_part.done", **here, part=part)
    for index, part in enumerate(item.get("content") or ()):
        here = {**at, "content_index": index}
        add("content_part.added", **here, part={**part, "text": ""})
        for piece in pieces(part["text"]):
            add("reasoning_text.delta", **here, delta=piece)
        add("reasoning_text.done", **here, text=part["text"])
        add("content_part.done", **here, part=part)


def _tool_events(add: Any, kind: str, at: Json) -> None:
    """Events that tell of the provider's own tools at work; none of them changes the answer."""
    if kind == "web_search_call":
        steps: list[tuple[str, Json]] = [("in_progress", {}), ("searching", {}), ("completed", {})]
    elif kind == "file_search_call":
        steps = [("in_progress", {}), ("searching", {}), ("completed", {})]
    elif kind == "code_interpreter_call":
        add("code_interpreter_call.in_progress", **at)
        add("code_interpreter_call_code.delta", **at, delta="1+1")
        add("code_interpreter_call_code.done", **at, code="1+1")
        steps = [("interpreting", {}), ("completed", {})]
    elif kind == "image_generation_call":
        steps = [("in_progress", {}), ("generating", {}), ("completed", {})]
        add("image_generation_call.partial_image", **at, partial_image_b64="aA==", partial_image_index=0)
    elif kind == "mcp_call":
        add("mcp_call.in_progress", **at)
        add("mcp_call_arguments.delta", **at, delta="{}")
        add("mcp_call_arguments.done", **at, arguments="{}")
        steps = [("completed", {}), ("failed", {})]
    elif kind == "mcp_list_tools":
        steps = [("in_progress", {}), ("completed", {}), ("failed", {})]
    elif kind == "compaction":
        add("compaction.compacting", **at)
        steps = []
    elif kind == "local_shell_call":
        here = {**at, "command_index": 0}
        add("shell_call_command.added", **here, command="")
        add("shell_call_command.delta", **here, delta="ls")
        add("shell_call_command.done", **here, command="ls")
        add("shell_call_output_content.delta", **here, delta={"stdout": "a"})
        add("shell_call_output_content.done", **here, output=[])
        add("audio.delta", delta="aA==")
        add("audio.transcript.delta", delta="a")
        add("audio.transcript.done")
        add("audio.done")
        steps = []
    else:
        add("telepathy.begun", **at)
        steps = []
    for step, fields in steps:
        add(f"{kind}.{step}", **at, **fields)


def named(events: Iterable[Json]) -> bytes:
    """Events as Responses sends them."""
    return "".join(
        f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events
    ).encode()


def responses_stream(body: Json) -> bytes:
    return named(responses_events(body))

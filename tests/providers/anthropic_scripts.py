"""Anthropic messages that hold every kind of content block, and the streams that they come as."""

from __future__ import annotations

import json
from typing import Any

USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 30,
    "cache_read_input_tokens": 40,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 25,
    "output_tokens_details": {"thinking_tokens": 9},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    "service_tier": "standard",
}
_NOT_IN_DELTA = {"cache_creation", "service_tier"}

TEXT = {"type": "text", "text": "Héllo — 世界 🎉, it is noon.", "citations": None}
THINKING = {"type": "thinking", "thinking": "First, let me see…", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h=="}
HIDDEN = {"type": "thinking", "thinking": "", "signature": "EqQBhidden=="}
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4a"}
TOOL = {"type": "tool_use", "id": "toolu_01", "name": "weather", "input": {"city": "Zürich", "days": [1, 2.5]}}
TOOL_TWO = {"type": "tool_use", "id": "toolu_02", "name": "clock", "input": {}, "caller": {"type": "direct"}}
SERVER_TOOL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "noon"}}
SEARCH_RESULT = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [
        {
            "type": "web_search_result",
            "url": "https://example.com/noon",
            "title": "Noon",
            "encrypted_content": "EqgfCioIARgB",
            "page_age": "April 30, 2025",
        }
    ],
}
CITED = {
    "type": "text",
    "text": "Noon is at twelve.",
    "citations": [
        {
            "type": "web_search_result_location",
            "url": "https://example.com/noon",
            "title": "Noon",
            "encrypted_index": "Eo8BCioIAhgB",
            "cited_text": "Noon is at 12.",
        },
        {
            "type": "char_location",
            "cited_text": "twelve",
            "document_index": 0,
            "document_title": "Hours",
            "start_char_index": 3,
            "end_char_index": 9,
            "file_id": None,
        },
    ],
}
CODE = {
    "type": "bash_code_execution_tool_result",
    "tool_use_id": "srvtoolu_2",
    "content": {
        "type": "bash_code_execution_result",
        "stdout": "12\n",
        "stderr": "",
        "return_code": 0,
        "content": [],
    },
}
UPLOAD = {"type": "container_upload", "file_id": "file_011"}
FETCHED = {
    "type": "web_fetch_tool_result",
    "tool_use_id": "srvtoolu_3",
    "content": {
        "type": "web_fetch_result",
        "url": "https://example.com/noon",
        "retrieved_at": "2026-10-01T12:00:00Z",
        "content": {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "Noon is at 12."},
            "title": "Noon",
            "citations": {"enabled": True},
        },
    },
}
RAN = {
    "type": "code_execution_tool_result",
    "tool_use_id": "srvtoolu_4",
    "content": {"type": "code_execution_result", "stdout": "12\n", "stderr": "", "return_code": 0, "content": []},
}
EDITED = {
    "type": "text_editor_code_execution_tool_result",
    "tool_use_id": "srvtoolu_5",
    "content": {"type": "text_editor_code_execution_create_result", "is_file_update": False},
}
FOUND = {
    "type": "tool_search_tool_result",
    "tool_use_id": "srvtoolu_6",
    "content": {
        "type": "tool_search_tool_search_result",
        "tool_references": [{"type": "tool_reference", "tool_name": "weather"}],
    },
}


def message(*content: dict[str, Any], stop_reason: str = "end_turn", **more: Any) -> dict[str, Any]:
    """A whole message."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def stream(whole: dict[str, Any], *, size: int = 5) -> list[dict[str, Any]]:
    """The events that a message comes as, its texts in pieces of ``size`` characters."""
    first = {**USAGE, "output_tokens": 1, "output_tokens_details": None, "server_tool_use": None}
    start = {**whole, "content": [], "stop_reason": None, "usage": first, "stop_details": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(whole["content"]):
        opened, deltas = _block(block, size)
        events.append({"type": "content_block_start", "index": index, "content_block": opened})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {key: whole.get(key) for key in ("stop_reason", "stop_sequence", "stop_details", "container")}
    usage = {key: value for key, value in whole["usage"].items() if key not in _NOT_IN_DELTA}
    events.append({"type": "message_delta", "delta": delta, "usage": usage})
    events.append({"type": "message_stop"})
    return events


def _block(block: dict[str, Any], size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    kind = block["type"]
    if kind == "text":
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"], size)]
        deltas += [{"type": "citations_delta", "citation": item} for item in block.get("citations") or ()]
        return {**block, "text": "", "citations": [] if block.get("citations") else None}, deltas
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"], size)]
        return {**block, "thinking": "", "signature": ""}, [
            *deltas,
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    if kind in ("tool_use", "server_tool_use"):
        text = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
        return {**block, "input": {}}, [
            {"type": "input_json_delta", "partial_json": piece} for piece in ["", *_pieces(text, size)]
        ]
    return block, []  # others come whole


def _pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


REFUSAL = {"type": "refusal", "category": "cyber", "explanation": "This could enable harm."}
MESSAGES: dict[str, dict[str, Any]] = {
    "text": message(TEXT),
    "stop sequence": message(TEXT, stop_reason="stop_sequence", stop_sequence="noon"),
    "thinking then text": message(THINKING, TEXT),
    "hidden and redacted thinking": message(HIDDEN, REDACTED, TEXT),
    "tools": message(THINKING, TEXT, TOOL, TOOL_TWO, stop_reason="tool_use"),
    "server tools and citations": message(TEXT, SERVER_TOOL, SEARCH_RESULT, CITED, CODE, UPLOAD),
    "results of the API's own tools": message(SERVER_TOOL, FETCHED, RAN, EDITED, FOUND, TEXT),
    "pause": message(SERVER_TOOL, stop_reason="pause_turn"),
    "cut": message(TEXT, stop_reason="max_tokens"),
    "window": message(TEXT, stop_reason="model_context_window_exceeded"),
    "refusal": message(stop_reason="refusal", stop_details=REFUSAL),
    "refusal without detail": message(TEXT, stop_reason="refusal"),
    "nothing": message(),
}

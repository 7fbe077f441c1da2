"""Gemini answers that hold every kind of part, and the streams that they come as."""

from __future__ import annotations

from typing import Any

USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 40,
    "candidatesTokenCount": 25,
    "thoughtsTokenCount": 9,
    "toolUsePromptTokenCount": 7,
    "totalTokenCount": 141,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 60},
        {"modality": "AUDIO", "tokenCount": 30},
        {"modality": "IMAGE", "tokenCount": 10},
    ],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 30}, {"modality": "AUDIO", "tokenCount": 10}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 20}, {"modality": "IMAGE", "tokenCount": 5}],
    "trafficType": "ON_DEMAND",
}
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJw=="

TEXT = {"text": "Héllo — 世界 🎉, it is noon."}
SIGNED = {"text": "Twelve.", "thoughtSignature": SIGNATURE}
BARE = {"text": "", "thoughtSignature": SIGNATURE}
ONLY = {"thoughtSignature": SIGNATURE}
THOUGHT = {"text": "First, let me see…", "thought": True}
SIGNED_THOUGHT = {"text": "Hm.", "thought": True, "thoughtSignature": SIGNATURE}
CALL = {
    "functionCall": {"id": "fc_1", "name": "weather", "args": {"city": "Zürich", "days": [1, 2.5]}},
    "thoughtSignature": SIGNATURE,
}
CALL_TWO = {"functionCall": {"name": "clock", "args": {}}}
CODE = {"executableCode": {"language": "PYTHON", "code": "print(12)"}, "thoughtSignature": SIGNATURE}
CODE_RESULT = {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "12\n"}}
IMAGE = {"inlineData": {"mimeType": "image/png", "data": "cG5n"}, "thoughtSignature": SIGNATURE}
SOUND = {"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "d2F2"}}
PDF = {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}}
LINK = {"fileData": {"fileUri": "https://example.com/a", "mimeType": "image/png"}}


def answer(*parts: dict[str, Any], reason: str | None = "STOP", **more: Any) -> dict[str, Any]:
    """A whole answer."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}
    if reason is not None:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": USAGE,
        "modelVersion": "gemini-3-flash",
        "responseId": "resp_1",
    }


def stream(whole: dict[str, Any], *, size: int = 5, last_alone: bool = False) -> list[dict[str, Any]]:
    """The chunks that an answer comes as: unsigned texts in pieces, the end with the last part or alone."""
    parts: list[dict[str, Any]] = []
    for part in whole["candidates"][0]["content"]["parts"]:
        text = part.get("text")
        if text and "thoughtSignature" not in part:
            parts += [{**part, "text": text[at : at + size]} for at in range(0, len(text), size)]
        else:
            parts.append(part)
    chunks: list[dict[str, Any]] = []
    for number, part in enumerate(parts, start=1):
        usage = {**USAGE, "candidatesTokenCount": number, "candidatesTokensDetails": []}
        chunks.append(
            {**whole, "candidates": [{"content": {"parts": [part], "role": "model"}}], "usageMetadata": usage}
        )
    end = {key: value for key, value in whole["candidates"][0].items() if key != "content"}
    if last_alone or not chunks:
        chunks.append({**whole, "candidates": [{**end, "content": {"parts": [{"text": ""}], "role": "model"}}]})
    else:
        last = chunks.pop()["candidates"][0]
        chunks.append({**whole, "candidates": [{**last, **end}]})
    return chunks


ANSWERS: dict[str, dict[str, Any]] = {
    "text": answer(TEXT),
    "thoughts then text": answer(THOUGHT, TEXT),
    "signed text": answer(TEXT, SIGNED, TEXT),
    "a signature on empty text": answer(TEXT, BARE),
    "a signature alone": answer(TEXT, ONLY),
    "signed thoughts": answer(THOUGHT, SIGNED_THOUGHT, TEXT, THOUGHT),
    "tools": answer(THOUGHT, TEXT, CALL, CALL_TWO),
    "code": answer(TEXT, CODE, CODE_RESULT, TEXT),
    "media": answer(TEXT, IMAGE, SOUND, PDF, LINK),
    "cut": answer(TEXT, reason="MAX_TOKENS"),
    "safety": answer(TEXT, reason="SAFETY"),
    "broken call": answer(reason="MALFORMED_FUNCTION_CALL", finishMessage="Malformed function call"),
}
BLOCKED = {
    "promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []},
    "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8},
    "modelVersion": "gemini-3-flash",
    "responseId": "resp_2",
}

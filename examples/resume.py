"""Streams that break in the middle, and what goes on after each: a seam, a new start, a dropped tool call.

    python examples/resume.py

Both targets are servers on loopback, started here: they speak Anthropic's Messages API, and the first one breaks.
"""

from dataclasses import replace
from typing import Any

from llmprod import (
    Anthropic,
    AttemptTimeout,
    Client,
    ContinueText,
    Failover,
    Reset,
    Restart,
    Resume,
    Retry,
    Seam,
    Stack,
    StreamInterrupted,
    SynthesizeToolUse,
    TextDelta,
    Tool,
    TruncateBeforeTool,
)
from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    Cut,
    ErrorReply,
    FaultServer,
    RequestRecord,
    Stall,
    StreamError,
    ToolCall,
)

TEXT = "The ferry to the islands leaves at nine, at noon, and at six in the evening. "
CALL = ToolCall(name="timetable", arguments={"line": "islands", "day": "Sunday"})
TIMETABLE = Tool(name="timetable", parameters={"type": "object", "properties": {"line": {"type": "string"}}})
HEALTHY = Behaviour(answer=Answer(text=TEXT), token_delay=0.01)
CALLS = replace(HEALTHY, answer=Answer(text=TEXT, tool_calls=[CALL]))
WORDS = len(TEXT.split())

ALL = Resume(SynthesizeToolUse(), ContinueText(), TruncateBeforeTool(), Restart())
CASES: list[tuple[str, Resume, Behaviour]] = [
    ("A reset after seven words", ALL, replace(HEALTHY, cut=Cut(after=7))),
    ("An overloaded server after seven words", ALL, replace(HEALTHY, stream_error=StreamError(at=7))),
    ("Silence after seven words", ALL, replace(HEALTHY, stall=Stall(after=7))),
    ("The same reset, with the first words held back", Resume(hold=60), replace(HEALTHY, cut=Cut(after=7))),
    ("The same reset, and a restart alone", Resume(Restart()), replace(HEALTHY, cut=Cut(after=7))),
    ("A reset inside a tool call", ALL, replace(CALLS, cut=Cut(after=WORDS + 3))),
    ("A reset after a complete tool call", ALL, replace(CALLS, cut=Cut(after=WORDS + 6))),
    ("A fallback that refuses prefill, and no other plan", Resume(ContinueText()), replace(HEALTHY, cut=Cut(after=7))),
]


def healthy(record: RequestRecord) -> Behaviour:
    """Continue a prefix; but refuse it where the prompt says so."""
    messages: Any = record.body["messages"]
    answer = CALLS.answer if record.body.get("tools") else HEALTHY.answer
    if messages[-1]["role"] != "assistant":
        return replace(HEALTHY, answer=answer)
    if "refuses" in str(messages[0]["content"]):
        return Behaviour(error=ErrorReply(kind="prefill_rejected"))
    prefix = "".join(block["text"] for block in messages[-1]["content"])
    return replace(HEALTHY, answer=replace(answer, text=TEXT[len(prefix) :]))


with FaultServer() as bad, FaultServer(healthy) as good:
    for title, resume, behaviour in CASES:
        bad.behave(behaviour)
        targets = [Anthropic("claude-haiku-4-5", base_url=server.url, api_key="none") for server in (bad, good)]
        limited = [AttemptTimeout(idle=0.5)(target) for target in targets]
        print(f"\n## {title}\n\n{resume!r}")
        tools = [TIMETABLE] if behaviour.answer.tool_calls else []
        with Client(Stack(resume, Retry())(Failover(*limited))) as client:
            try:
                with client.stream(f"When does it leave? ({title})", tools=tools) as response:
                    for event in response:
                        match event:
                            case TextDelta(text=text):
                                print(text, end="", flush=True)
                            case Seam(reason=reason, dropped=dropped):
                                gone = ", without the tool call that broke" if dropped else ""
                                print(f"⟨{reason}; goes on{gone}⟩", end="", flush=True)
                            case Reset(reason=reason):
                                print(f"⟨{reason}; forget that⟩ ", end="", flush=True)
                            case _:
                                pass
                calls = [(call.name, call.input) for call in response.tool_calls]
                print(f"\n→ {response.finish_reason} {calls or ''}\n  {response.usage}\n\n{response.trace}")
            except StreamInterrupted as error:
                print(f"…\n→ {error}")
                for note in getattr(error.__cause__, "__notes__", ()):
                    print(f"  {note}")

"""Each fault in the middle of a stream, by each plan: what the reader sees. The table of docs/mid-stream.md.

The runs are in virtual time on both backends. What each must come to is told by :func:`expected`, which knows the rules
and nothing of the code; the page's tables are made of the runs, and as a program this file writes them anew.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import looptime
import pytest

from llmprod import (
    AttemptTimeout,
    BadRequest,
    ContentFiltered,
    Context,
    Failover,
    GenerateRequest,
    LoopClock,
    Message,
    Overloaded,
    ProtocolError,
    ReadError,
    Retry,
    StreamInterrupted,
    Tool,
    ToolCall,
)
from llmprod.events import Finish, Reset, Seam, TextDelta, ToolCallDelta, ToolCallDone
from llmprod.mechanisms.resume_plan import ContinueText, Restart, SynthesizeToolUse, TruncateBeforeTool
from llmprod.provider import Capabilities
from llmprod.schema import OutputSchema
from llmprod.testing.scripted import CUT, HANG, Scripted
from llmprod.wrappers.resume import Resume
from llmprod.wrappers.throughput_guard import ThroughputGuard
from tests.virtual_time import anyio_backend as anyio_backend
from tests.wrappers.helpers import Drawn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mid-stream.md"
TEXT = "Let me look at the weather of Oslo. "
SHOWN = ["Let me look ", "at the weather "]
EARLY = ["Let "]
OSLO = ToolCall("call_1", "weather", '{"city": "Oslo"}')
WEATHER = Tool(name="weather", description="", parameters={"type": "object"})
HOLD = 12
"""Characters held back by the plans that hold: more than EARLY, and less than SHOWN."""


# ---- faults ---------------------------------------------------------------------------------------------------------


def call(part: int, *arguments: str) -> list[Any]:
    return [ToolCallDelta(part, OSLO.id, OSLO.name), *(ToolCallDelta(part, arguments=piece) for piece in arguments)]


@dataclass(frozen=True)
class Fault:
    """What the first target does, every time it is asked."""

    title: str
    steps: Callable[[], list[Any]]
    shown: str = "text"
    """What the reader has when it breaks: nothing, early, text, broken call, text and broken call, call."""
    final: bool = False


FAULTS = {
    "before": Fault("cut before content", lambda: [ReadError()], "nothing"),
    "crawl-start": Fault("crawls from its start", lambda: [item for _ in range(50) for item in ("a", 3.0)], "nothing"),
    "early": Fault("cut after one word", lambda: [*EARLY, ReadError(in_stream=True)], "early"),
    "cut": Fault("cut after text (reset)", lambda: [*SHOWN, ReadError(in_stream=True)]),
    "end": Fault("cut after text (clean end, no finish)", lambda: [*SHOWN, CUT]),
    "error": Fault("error event after text", lambda: [*SHOWN, Overloaded(in_stream=True)]),
    "malformed": Fault("malformed event after text", lambda: [*SHOWN, ProtocolError(in_stream=True)]),
    "stall": Fault("stall after text", lambda: [*SHOWN, HANG]),
    "crawl": Fault(
        "crawl after text", lambda: [*SHOWN, *[item for letter in "of Oslo" for item in (3.0, letter)], HANG]
    ),
    "filter": Fault(
        "content filter after text", lambda: [*SHOWN, ContentFiltered(in_stream=True)], final=True
    ),
    "in-call": Fault(
        "cut inside a tool call, after text",
        lambda: [*SHOWN, *call(1, '{"city": '), ReadError(in_stream=True)],
        "text and broken call",
    ),
    "in-first-call": Fault(
        "cut inside a tool call, no text", lambda: [*call(0, '{"city": "a', "nd more than is held"), CUT], "broken call"
    ),
    "after-call": Fault(
        "cut after a complete tool call",
        lambda: [*SHOWN, *call(1, OSLO.arguments), ReadError(in_stream=True)],
        "call",
    ),
}  # fmt: skip

PLANS: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "none": ("no `Resume`", (), 0),
    "hold": (f"`hold={HOLD}`", (), HOLD),
    "continue": ("`ContinueText`", (ContinueText(),), 0),
    "synthesize": ("`SynthesizeToolUse`", (SynthesizeToolUse(),), 0),
    "truncate": ("`TruncateBeforeTool`", (TruncateBeforeTool(),), 0),
    "restart": ("`Restart`", (Restart(),), 0),
    "all": ("all of them", (SynthesizeToolUse(), ContinueText(), TruncateBeforeTool(), Restart()), HOLD),
}


# ---- settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is asked, and what the targets can do."""

    title: str
    prefill: bool = True
    """The targets say that they continue a prefix."""
    refuses: bool = False
    """The second one does not, and answers 400."""
    request: GenerateRequest = field(
        default_factory=lambda: GenerateRequest(messages=(Message.user("Weather?"),), stream=True)
    )

    @property
    def tools(self) -> bool:
        return bool(self.request.tools)


_PLAIN = GenerateRequest(messages=(Message.user("Weather?"),), stream=True)
_TOOLS = replace(_PLAIN, tools=(WEATHER,))
SETTINGS = {
    "text": Setting("Text; the fallback continues a prefix"),
    "tools": Setting("With tools; the fallback continues a prefix", request=_TOOLS),
    "no-prefill": Setting("With tools; no target continues a prefix", prefill=False, request=_TOOLS),
    "refused": Setting("With tools; the fallback answers prefill with 400", refuses=True, request=_TOOLS),
    "schema": Setting(
        "With tools and an output schema; the fallback continues a prefix",
        request=replace(_TOOLS, output=OutputSchema.of({"type": "object"})),
    ),
    "whole": Setting("Not streamed, with tools", request=replace(_TOOLS, stream=False)),
}


def faults_of(setting: Setting) -> list[str]:
    return [name for name, fault in FAULTS.items() if setting.tools or "call" not in fault.shown]


CASES = [(setting, fault, plan) for setting in SETTINGS for fault in faults_of(SETTINGS[setting]) for plan in PLANS]


class Healthy(Scripted):
    """The fallback: says the text from where the prefix ends, and the tool call where there are tools."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(name="fallback", capabilities=Capabilities(prefill=setting.prefill))
        self.refuses = setting.refuses

    def _step(self) -> Any:
        request = self.requests[-1]
        assert isinstance(request, GenerateRequest)
        rest = TEXT
        if request.prefill:
            prefix = request.messages[-1].text
            assert TEXT.startswith(prefix)
            assert prefix == prefix.rstrip(), "no target takes white space at the end of a prefix"
            if self.refuses:
                return BadRequest(provider="fallback", code="prefill_rejected")
            rest = TEXT[len(prefix) :]
        said: list[Any] = [TextDelta(rest[:9]), TextDelta(rest[9:])]
        if not request.tools:
            return said
        return [*said, *call(1, OSLO.arguments), ToolCallDone(OSLO, 1), Finish("tool_calls")]


# ---- what is seen ---------------------------------------------------------------------------------------------------

WHOLE = "whole"
SEAM = "**seam**"
NEW = "**reset**"
CALLS = "**call**"
BROKEN = "interrupted"
REFUSED = "refusal"


def expected(setting: Setting, fault: Fault, plan: str) -> str:
    """What the rules say."""
    _, plans, hold = PLANS[plan]
    kinds = {type(item) for item in plans}
    shown = fault.shown
    if not setting.request.stream:
        return REFUSED if fault.final else WHOLE
    if shown == "nothing" or (shown == "early" and hold):
        return WHOLE
    if fault.final:
        return BROKEN
    if shown == "call":
        if SynthesizeToolUse in kinds:
            return CALLS
    elif shown != "broken call":
        continues = setting.prefill and not setting.refuses and setting.request.output is None
        by = TruncateBeforeTool if shown == "text and broken call" else ContinueText
        if by in kinds and continues:
            return SEAM
    return NEW if Restart in kinds else BROKEN


@dataclass
class Seen:
    label: str
    response: Any = None
    error: Any = None
    events: list[Any] = field(default_factory=list)
    targets: tuple[Scripted, ...] = ()


async def play(setting: Setting, fault: Fault, plan: str) -> Seen:
    _, plans, hold = PLANS[plan]
    broken = Scripted(name="primary", capabilities=Capabilities(prefill=setting.prefill))
    broken._step = fault.steps  # type: ignore[method-assign]  # new errors each time
    healthy = Healthy(setting)
    guarded = [ThroughputGuard(hold=len(EARLY[0]))(AttemptTimeout(idle=10)(target)) for target in (broken, healthy)]
    stack: Any = Retry(2)(Failover(*guarded))
    if plans or hold:
        stack = Resume(*plans, hold=hold)(stack)
    seen = Seen("", targets=(broken, healthy))
    told = Context.new(clock=LoopClock(), random=Drawn())
    try:
        seen.response = await stack.send(setting.request, told)
        async for event in seen.response:
            seen.events.append(event)
    except StreamInterrupted as error:
        seen.error, seen.label = error, BROKEN
        return seen
    except ContentFiltered as error:
        seen.error, seen.label = error, REFUSED
        return seen
    kinds = {type(event) for event in seen.events}
    if Reset in kinds:
        seen.label = NEW
    elif Seam not in kinds:
        seen.label = WHOLE
    else:
        seen.label = SEAM if seen.response.text == TEXT else CALLS
    return seen


@pytest.mark.parametrize(("setting", "fault", "plan"), CASES, ids=["-".join(case) for case in CASES])
async def test_mid_stream(setting: str, fault: str, plan: str) -> None:
    asked, broke = SETTINGS[setting], FAULTS[fault]
    seen = await play(asked, broke, plan)
    assert seen.label == expected(asked, broke, plan)
    assert [(target.in_flight, target.open_sources) for target in seen.targets] == [(0, 0), (0, 0)]
    attempts = sum(target.calls for target in seen.targets)
    assert attempts <= 3 + (plan == "all" and asked.refuses), "one call, one resume, and a refused prefill"
    if seen.label == BROKEN:
        _interrupted(seen, resumes=plan != "none")
    elif seen.label != REFUSED:
        _answered(seen, asked)


def _interrupted(seen: Seen, *, resumes: bool) -> None:
    """The caller has all that was shown, and the error is that of the break."""
    error = seen.error
    assert not isinstance(error.__cause__, StreamInterrupted)
    assert error.__cause__.code is None, "never the refusal of a prefill"
    text = "".join(event.text for event in seen.events if isinstance(event, TextDelta))
    assert error.partial_text == text
    assert TEXT.startswith(text)
    assert not seen.response.complete
    if resumes:
        assert error.__cause__.__notes__[-1].startswith("not resumed")


def _answered(seen: Seen, setting: Setting) -> None:
    """The answer is complete and right, whoever gave which part of it."""
    response = seen.response
    assert response.complete
    if seen.label == CALLS:
        assert response.parts[0].text == "".join(SHOWN)
    elif setting.request.stream or response.provider == "fallback":
        assert response.text == TEXT, "nothing is lost, and nothing said twice"
    for made in response.tool_calls:
        assert made == OSLO, "no tool call is broken"
    if setting.tools and response.provider == "fallback":
        assert response.tool_calls == (OSLO,)
        assert response.finish_reason == "tool_calls"
    if seen.label in (SEAM, NEW):
        assert response.provider == "fallback"
        assert response.usage.output > len([event for event in seen.events if isinstance(event, TextDelta)]) - 2
        assert response.usage.estimated


# ---- the page -------------------------------------------------------------------------------------------------------

TABLE = re.compile(r"(?<=<!-- mid-stream -->\n).*?(?=<!-- /mid-stream -->)", re.DOTALL)


def tables() -> str:
    """The page's tables, from runs."""
    made: list[str] = []
    for setting in SETTINGS.values():
        alike: dict[tuple[str, ...], list[str]] = {}
        for name in faults_of(setting):
            alike.setdefault(tuple(_run(setting, FAULTS[name], plan) for plan in PLANS), []).append(FAULTS[name].title)
        head = ["fault", *(title for title, *_ in PLANS.values())]
        rows = [head, ["---"] * len(head), *(["; ".join(titles), *cells] for cells, titles in alike.items())]
        lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        made.append(f"\n### {setting.title}\n\n{lines}")
    return "".join(made) + "\n"


def _run(setting: Setting, fault: Fault, plan: str) -> str:
    loop = looptime.new_event_loop(start=0)
    try:
        return loop.run_until_complete(play(setting, fault, plan)).label
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)


def test_the_page_shows_the_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = TABLE.search(text)
    assert found is not None
    assert found.group() == tables(), "run: python -m tests.scenarios.test_mid_stream"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: tables(), before), encoding="utf-8")
    print("written:", PAGE)

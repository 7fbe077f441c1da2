"""ContextWindow: refuses what can't fit, trims what may be trimmed, and leaves the rest alone."""

import pytest

from llmprod import (
    AsyncClient,
    Capabilities,
    ContextTooLong,
    Failover,
    GenerateRequest,
    InvalidArgument,
    Message,
    Phase,
    Retry,
    Stack,
    Tool,
    Usage,
    lint,
)
from llmprod.decisions import HistoryTrimmed
from llmprod.errors import ServerError
from llmprod.events import Finish, UsageUpdate
from llmprod.request import EmbedRequest
from llmprod.testing.scripted import Scripted
from llmprod.tokens import TokenCounter
from llmprod.types import ToolCall
from llmprod.wrappers.context_window import ContextWindow
from tests.wrappers.helpers import ask, context

SENTENCE = "The water stood ankle-deep in the lanes of the old town. "  # 13 tokens


def words(tokens: int) -> str:
    return SENTENCE * (tokens // 13)


def sized(window: int | None, *told: object, name: str = "scripted", then: object = "Hi") -> Scripted:
    return Scripted(*told, name=name, then=then, capabilities=Capabilities(context_window=window, embeddings=True))


def wrapper(**options) -> ContextWindow:
    return ContextWindow(**{"counter": TokenCounter(tables="none"), **options})


def talk(*messages: Message, **options) -> GenerateRequest:
    return GenerateRequest(messages=messages, **options)


def history(exchanges: int, tokens: int = 130) -> tuple[Message, ...]:
    made = [Message.system("Be brief.")]
    for number in range(exchanges):
        made += [Message.user(f"Question {number}. {words(tokens)}"), Message.assistant(f"Answer {number}.")]
    return (*made, Message.user("And now?"))


# ---- refusing --------------------------------------------------------------------------------------------------------


async def test_what_fits_is_sent_as_it_is():
    model = sized(1000)
    request = talk(Message.user(words(200)))
    assert (await ask(wrapper()(model), request)).text == "Hi"
    assert model.requests == [request]


async def test_what_cannot_fit_is_refused_before_it_is_sent():
    model = sized(1000)
    call = context()
    with pytest.raises(ContextTooLong) as caught:
        await wrapper()(model).send(talk(Message.user(words(3000))), call)
    error = caught.value
    assert model.requests == []
    assert error.window == 1000
    assert error.tokens == pytest.approx(3000, rel=0.3)
    assert "ankle" not in str(error) + repr(error)
    assert "tokens of prompt, a window of 1000" in str(error)
    assert call.trace.entries[-1].state == "skipped"
    assert call.trace.entries[-1].error == "ContextTooLong"


async def test_the_answer_needs_room_too():
    model = sized(1000)
    await ask(wrapper()(model), talk(Message.user(words(300)), max_tokens=200))
    with pytest.raises(ContextTooLong, match="and 900 for the answer"):
        await ask(wrapper()(model), talk(Message.user(words(300)), max_tokens=900))
    assert len(model.requests) == 1


async def test_an_estimate_near_the_window_refuses_nothing():
    model = sized(1000)
    for tokens in (850, 950, 1050, 1150):
        await ask(wrapper()(model), talk(Message.user(words(tokens))))
    assert len(model.requests) == 4


async def test_an_exact_count_decides_at_the_window():
    model = sized(100)
    counted = wrapper(tokens=lambda request: len(request.messages[0].text))
    await ask(counted(model), talk(Message.user("x" * 100)))
    await ask(counted(model), talk(Message.user("x" * 90), max_tokens=10))
    for text, answer in (("x" * 101, None), ("x" * 90, 11)):
        with pytest.raises(ContextTooLong):
            await ask(counted(model), talk(Message.user(text), max_tokens=answer))
    assert len(model.requests) == 2


async def test_a_target_that_counts_by_itself_is_asked_where_the_estimate_leaves_doubt():
    class Engine(Scripted):
        asked = 0
        says: int | Exception = 90

        async def count_tokens(self, text, *, tools=None):
            self.asked += 1
            if isinstance(self.says, Exception):
                raise self.says
            return self.says

    model = Engine(then="Hi", capabilities=Capabilities(context_window=100))
    near = talk(Message.user(words(104)))
    await ask(wrapper()(model), near)
    assert model.asked == 1
    model.says = 101
    with pytest.raises(ContextTooLong, match="101 tokens of prompt, a window of 100"):
        await ask(wrapper()(model), near)
    model.says = ServerError()
    await ask(wrapper()(model), near)
    await ask(wrapper()(model), talk(Message.user("Hi")))
    assert model.asked == 3


async def test_an_unknown_window_takes_anything():
    model = sized(None)
    await ask(wrapper(trim="oldest")(model), talk(*history(40)))
    assert len(model.requests[0].messages) == 82


async def test_windows_may_be_told_by_name_by_model_or_for_all():
    long = talk(Message.user(words(3000)))
    for windows, name in (
        ({"openai:gpt-5": 1000}, "openai:gpt-5"),
        ({"gpt-5": 1000}, "openai:gpt-5"),
        (1000, "openai:gpt-5"),
        ({"gpt-5": 1000}, "other:gpt-5"),
    ):
        with pytest.raises(ContextTooLong):
            await ask(wrapper(windows=windows)(sized(None, name=name)), long)
    assert (await ask(wrapper(windows={"gpt-4": 1000})(sized(None, name="openai:gpt-5")), long)).text == "Hi"
    assert (await ask(wrapper(windows={"gpt-5": 10_000})(sized(1000, name="openai:gpt-5")), long)).text == "Hi"


async def test_each_text_to_embed_has_the_window_for_itself():
    model = sized(1000)
    provider = wrapper()(model)
    request = EmbedRequest(inputs=(words(800), words(800)))
    await provider.send(request, context())
    with pytest.raises(ContextTooLong):
        await provider.send(EmbedRequest(inputs=("Hi", words(3000))), context())
    assert model.requests == [request]


# ---- several targets -------------------------------------------------------------------------------------------------


async def test_the_largest_window_decides():
    small, large = sized(1000, ContextTooLong(), name="small"), sized(10_000, name="large")
    long = talk(Message.user(words(3000)))
    assert (await ask(wrapper()(Failover(small, large)), long)).text == "Hi"
    assert len(large.requests) == 1
    with pytest.raises(ContextTooLong) as caught:
        await ask(wrapper()(Failover(small, large)), talk(Message.user(words(30_000))))
    assert caught.value.window == 10_000


async def test_one_unknown_window_is_enough_to_let_a_call_through():
    small, unknown = sized(1000, name="small"), sized(None, name="unknown")
    provider = wrapper(trim="oldest")(Failover(small, unknown))
    await ask(provider, talk(*history(40)))
    assert len(small.requests[0].messages) == 82


# ---- trimming --------------------------------------------------------------------------------------------------------


async def test_the_oldest_exchanges_are_left_out_and_that_is_noted():
    model = sized(2000)
    told = []
    client = AsyncClient(wrapper(trim="oldest")(model), listeners=[lambda decision, _: told.append(decision)])
    response = await client.generate(history(20), max_tokens=500)
    sent = model.requests[0].messages
    assert sent[0].text == "Be brief."
    assert sent[-1].text == "And now?"
    assert sent[1].text.startswith("Question ")
    assert sent == (sent[0], *history(20)[-len(sent) + 1 :])
    assert 3 < len(sent) < 25
    [decision] = told
    assert response.trace.decisions == [decision]
    assert isinstance(decision, HistoryTrimmed)
    assert decision.messages == 42 - len(sent)
    assert decision.tokens == pytest.approx(decision.messages / 2 * 137, rel=0.3)
    assert (decision.policy, decision.window, decision.target) == ("oldest", 2000, "scripted")


async def test_the_middle_keeps_the_first_exchange():
    model = sized(2000)
    await ask(wrapper(trim="middle")(model), talk(*history(20)))
    sent = model.requests[0].messages
    assert sent[1].text.startswith("Question 0.")
    assert sent[3].text.startswith("Question ")
    assert not sent[3].text.startswith("Question 1.")


async def test_a_trimmed_prompt_leaves_room_for_an_answer():
    for reserve, answer in ((1024, None), (500, None), (0, 700)):
        model = sized(2000)
        await ask(wrapper(trim="oldest", reserve=reserve)(model), talk(*history(20), max_tokens=answer))
        left = 2000 - TokenCounter(tables="none").count(model.requests[0], model="scripted").tokens
        assert (answer or reserve) <= left <= (answer or reserve) + 450


async def test_a_history_that_leaves_no_room_for_an_answer_is_trimmed_too():
    text = words(700)
    for trim, messages in ((None, 3), ("oldest", 1)):
        model = sized(1500)
        talked = talk(Message.user(text), Message.assistant("Yes."), Message.user("And now?"))
        await ask(wrapper(trim=trim, reserve=1200)(model), talked)
        assert len(model.requests[0].messages) == messages


async def test_what_still_does_not_fit_is_refused():
    model = sized(1000)
    with pytest.raises(ContextTooLong):
        await ask(wrapper(trim="oldest")(model), talk(*history(5), Message.user(words(4000))))
    assert model.requests == []


async def test_a_last_turn_that_may_fit_is_sent_alone():
    model = sized(1000)
    await ask(wrapper(trim="oldest")(model), talk(*history(5)[:-1], Message.user(words(950))))
    assert [message.role for message in model.requests[0].messages] == ["system", "user"]


async def test_tools_are_part_of_the_prompt_and_stay():
    tool = Tool(name="look", description=words(800), parameters={"type": "object", "properties": {}})
    model = sized(2000)
    await ask(wrapper(trim="oldest", reserve=0)(model), talk(*history(10), tools=(tool,)))
    [sent] = model.requests
    assert sent.tools == (tool,)
    assert 0 < sum(message.role == "user" for message in sent.messages) < 9


async def test_a_long_agent_run_loses_its_first_steps_with_their_results():
    steps = []
    for number in range(30):
        call = ToolCall(str(number), "look")
        steps += [Message("assistant", (call,)), Message.tool(call, words(100))]
    model = sized(2000)
    await ask(wrapper(trim="oldest")(model), talk(Message.user("Find it."), *steps))
    sent = model.requests[0].messages
    assert sent[0].text == "Find it."
    assert sent[1:] == tuple(steps[-len(sent) + 1 :])
    assert sent[1].role == "assistant"
    assert len(sent) < 25


async def test_a_function_of_your_own_trims():
    asked = []

    def last_one(messages, fits):
        asked.append((len(messages), fits(messages), fits(messages[-1:])))
        return messages[-1:]

    model = sized(1000)
    call = context()
    await wrapper(trim=last_one, reserve=100)(model).send(talk(*history(20)), call)
    assert asked == [(42, False, True)]
    assert len(model.requests[0].messages) == 1
    assert call.trace.decisions[0].policy == "function"


async def test_a_function_may_put_a_summary_in():
    model = sized(2000)

    def summed_up(messages, fits):
        made = [Message.system("Earlier: a question about water."), messages[-1]]
        assert fits(made)
        return made

    await ask(wrapper(trim=summed_up)(model), talk(*history(40)))
    assert model.requests[0].messages[0].text.startswith("Earlier")


@pytest.mark.parametrize("given", [None, [], "text", [7]])
async def test_a_function_must_return_messages(given):
    with pytest.raises(InvalidArgument, match="trim"):
        await ask(wrapper(trim=lambda messages, fits: given)(sized(1000)), talk(*history(20)))


async def test_a_function_that_leaves_all_of_it_is_refused_like_no_function():
    with pytest.raises(ContextTooLong):
        await ask(wrapper(trim=lambda messages, fits: messages)(sized(500)), talk(*history(40)))


async def test_trimming_happens_once_whatever_is_tried_after():
    model = sized(2000, ServerError(retry_after=0.01), ServerError(retry_after=0.01))
    call = context()
    response = await Stack(wrapper(trim="oldest"), Retry())(model).send(talk(*history(20)), call)
    await response.read()
    assert len(model.requests) == 3
    assert len({id(request.messages) for request in model.requests}) == 1
    assert [type(decision).__name__ for decision in call.trace.decisions].count("HistoryTrimmed") == 1


# ---- learning --------------------------------------------------------------------------------------------------------


async def test_it_learns_from_usage_and_stands_corrected():
    counter = TokenCounter(tables="none")
    provider = ContextWindow(windows=1000, counter=counter)
    long = talk(Message.user(words(700)))
    real = counter.estimate(long, model="scripted").raw * 1.6
    model = Scripted(then=["Hi", UsageUpdate(Usage(input=round(real), output=5)), Finish("stop")])
    for _ in range(30):
        await ask(provider(model), long)
    assert counter.error("scripted").count == 30
    assert counter.count(long, model="scripted").tokens == pytest.approx(real, rel=0.02)
    # What looked as if it might fit is known not to, now.
    with pytest.raises(ContextTooLong):
        await ask(provider(model), talk(Message.user(words(1000))))


async def test_it_learns_seldom_from_a_target_that_it_knows():
    counter = TokenCounter(tables="none")
    provider = ContextWindow(counter=counter)(
        Scripted(then=["Hi", UsageUpdate(Usage(input=20, output=5)), Finish("stop")])
    )
    for _ in range(32 + 80):
        await ask(provider, talk(Message.user(words(30))))
    assert counter.error("scripted").count == 32 + 10


async def test_the_target_that_answered_is_learned_of():
    counter = TokenCounter(tables="none")
    a = Scripted(then=ServerError(), name="a")
    b = Scripted(then=["Hi", UsageUpdate(Usage(input=20, output=5)), Finish("stop")], name="b")
    await ask(ContextWindow(counter=counter)(Failover(a, b)), talk(Message.user(words(30))))
    assert (counter.error("a").count, counter.error("b").count) == (0, 1)


async def test_a_broken_or_untold_answer_teaches_nothing():
    counter = TokenCounter(tables="none")
    provider = ContextWindow(counter=counter)(Scripted(["Hi", Finish("stop")], ServerError()))
    await ask(provider, talk(Message.user("Hi")))
    with pytest.raises(ServerError):
        await ask(provider, talk(Message.user("Hi")))
    assert counter.error("scripted").count == 0


async def test_a_call_that_cannot_be_looked_into_is_let_through_unless_something_counts_it():
    class Call:
        stream, drop_unsupported, max_tokens = False, False, None

    sent = []

    class Function(Scripted):
        async def send(self, request, context):
            sent.append(request)
            return await super().send(talk(Message.user("Hi")), context)

    call = Call()
    model = Function(then="Hi", capabilities=Capabilities(context_window=100))
    await (await wrapper(trim="oldest")(model).send(call, context())).read()
    assert sent == [call]
    with pytest.raises(ContextTooLong):
        await wrapper(tokens=lambda request: 101)(model).send(call, context())


# ---- options and place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("windows", {"windows": 0}),
        ("windows", {"windows": "large"}),
        ("windows['gpt-5']", {"windows": {"gpt-5": -1}}),
        ("trim", {"trim": "newest"}),
        ("trim", {"trim": 7}),
        ("reserve", {"reserve": -1}),
    ],
)
def test_options_are_checked(field, options):
    with pytest.raises(InvalidArgument) as caught:
        ContextWindow(**options)
    assert caught.value.field == field


def test_it_stands_between_cache_and_budget():
    assert Phase.OUTPUT_GUARD < ContextWindow.phase < Phase.BUDGET
    assert lint(Stack(ContextWindow(), Retry())(Scripted())) == []
    assert repr(ContextWindow()) == "ContextWindow()"
    assert repr(ContextWindow(trim="oldest")) == "ContextWindow(trim oldest)"
    assert repr(ContextWindow(trim=lambda messages, fits: messages)) == "ContextWindow(trim by function)"

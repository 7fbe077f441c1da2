"""Which messages go when a history is too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import Message
from llmprod.mechanisms.trim import trim_history
from llmprod.types import ToolCall, ToolResult

U, A, S = Message.user("u"), Message.assistant("a"), Message.system("s")


def call(*ids):
    return Message("assistant", tuple(ToolCall(one, "look") for one in ids))


def result(*ids):
    return Message("tool", tuple(ToolResult(one, "found") for one in ids))


def trimmed(messages, room, policy="oldest"):
    return trim_history(messages, [1.0] * len(messages), room, policy)


def test_what_fits_stays():
    assert trimmed([S, U, A, U], 4) == [0, 1, 2, 3]


def test_the_oldest_exchange_goes_first_and_as_a_whole():
    assert trimmed([S, U, A, U, A, U], 5) == [0, 3, 4, 5]
    assert trimmed([S, U, A, U, A, U], 2) == [0, 5]


def test_instructions_and_the_last_turn_stay_even_where_they_do_not_fit():
    assert trimmed([S, U, A, S, U, U], 0) == [0, 3, 4, 5]
    assert trimmed([U], 0) == [0]
    assert trimmed([S], 0) == [0]
    assert trimmed([], 0) == []


def test_the_middle_leaves_the_task():
    assert trimmed([S, U, A, U, A, U, A, U], 6, "middle") == [0, 1, 2, 5, 6, 7]
    assert trimmed([S, U, A, U, A, U, A, U], 1, "middle") == [0, 1, 2, 7]


def test_two_user_messages_in_a_row_are_one_turn():
    assert trimmed([U, U, A, U, U], 3) == [3, 4]


def test_steps_of_an_agent_go_with_the_results_of_their_calls():
    messages = [S, U, call("1"), result("1"), call("2", "3"), result("2"), result("3"), call("4"), result("4")]
    assert trimmed(messages, 8) == [0, 1, 4, 5, 6, 7, 8]
    assert trimmed(messages, 5) == [0, 1, 7, 8]
    assert trimmed(messages, 0) == [0, 1, 7, 8]
    assert trimmed(messages, 8, "middle") == [0, 1, 2, 3, 7, 8]


def test_results_in_a_user_message_begin_no_turn():
    messages = [U, call("1"), Message("user", (ToolResult("1", "found"),)), A, U]
    assert trimmed(messages, 4) == [4]


def test_a_result_in_a_later_turn_goes_with_its_call_or_holds_it():
    messages = [U, call("1"), U, result("1"), A, U]
    assert trimmed(messages, 5) == [5]
    held = [U, call("1"), U, result("1")]
    assert trimmed(held, 1) == [0, 1, 2, 3]


def test_ids_that_come_again_do_not_tie_turns_together():
    messages = [U, call("0"), result("0"), A, U, call("0"), result("0"), A, U]
    assert trimmed(messages, 5) == [4, 5, 6, 7, 8]


IDS = st.sampled_from("123")
MESSAGES = st.lists(
    st.one_of(st.sampled_from([U, A, S]), st.builds(call, IDS), st.builds(result, IDS)), min_size=1, max_size=14
)


@given(MESSAGES, st.integers(0, 14), st.sampled_from(["oldest", "middle"]))
def test_rules_that_always_hold(messages, room, policy):
    kept = trimmed(messages, room, policy)
    assert kept == sorted(set(kept))
    assert {at for at, message in enumerate(messages) if message.role == "system"} <= set(kept)
    users = [at for at, message in enumerate(messages) if message.role == "user"]
    assert not users or users[-1] in kept
    # A call and the results that follow it, up to the next call of that id, stay or go together.
    open_calls: dict[str, int] = {}
    for at, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, ToolCall):
                open_calls[part.id] = at
            elif isinstance(part, ToolResult) and part.call_id in open_calls:
                assert (at in kept) == (open_calls[part.call_id] in kept)


@given(MESSAGES, st.integers(0, 13), st.sampled_from(["oldest", "middle"]))
def test_more_room_keeps_no_less(messages, room, policy):
    assert set(trimmed(messages, room, policy)) <= set(trimmed(messages, room + 1, policy))


@pytest.mark.parametrize("policy", ["oldest", "middle"])
def test_sizes_are_weighed(policy):
    messages = [U, A, U, A, U, A, U]
    kept = trim_history(messages, [100, 100, 5000, 100, 100, 100, 10], 700, policy)
    assert sum([100, 100, 5000, 100, 100, 100, 10][at] for at in kept) <= 700
    assert kept == ([4, 5, 6] if policy == "oldest" else [0, 1, 4, 5, 6])

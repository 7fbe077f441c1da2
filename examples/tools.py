"""A tool loop: the model asks for functions, they are run, and their results go back until it answers.

python examples/tools.py                      a simulated model, which calls the tools that the question names
python examples/tools.py openai:gpt-5-mini    a real one (needs OPENAI_API_KEY)
"""

import sys
from typing import Literal

from llmprod import Client, InvalidArgument, Message, Tool

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, object]:
    """Current weather in a city."""
    return {"city": city, "temperature": 21 if unit == "celsius" else 70, "unit": unit, "sky": "clear"}


def get_time(zone: str) -> str:
    """Local time in a time zone such as Europe/Vienna."""
    return f"12:30 in {zone}"


FUNCTIONS = {function.__name__: function for function in (get_weather, get_time)}
TOOLS = [Tool.from_function(function) for function in FUNCTIONS.values()]
MOST_ROUNDS = 5

messages = [
    Message.system("Use the tools. Answer in one sentence."),
    Message.user("What are weather and time in Vienna? Use get_weather and get_time."),
]

with Client(MODEL) as client:
    for _ in range(MOST_ROUNDS):
        response = client.generate(messages, tools=TOOLS)
        if not response.tool_calls:
            print(response.text)
            break
        # The whole answer goes back: its thinking belongs to the calls, and some APIs insist on it.
        messages.append(Message.assistant(*response.parts))
        for call in response.tool_calls:
            try:
                result, failed = FUNCTIONS[call.name](**call.input), False
            except (InvalidArgument, KeyError, TypeError) as error:  # models do write wrong arguments
                result, failed = f"{type(error).__name__}: {error}", True
            print(f"{call.name}({call.arguments}) -> {result}")
            messages.append(Message.tool(call, result, is_error=failed))
    else:
        print(f"no answer after {MOST_ROUNDS} rounds")

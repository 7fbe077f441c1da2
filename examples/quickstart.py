"""The shortest useful program: ask, read the answer, and see what happened on the way.

python examples/quickstart.py                      a simulated model: no key, no network
python examples/quickstart.py openai:gpt-5-mini    a real one (needs OPENAI_API_KEY)
"""

import sys

from llmprod import Client

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"

with Client(MODEL, fallbacks=["static:I can't answer right now. Please try again in a minute."]) as client:
    print(client.describe(), end="\n\n")

    response = client.generate("Why do production systems need deadlines?", max_tokens=200)

    print(response.text, end="\n\n")
    print("answered by ", response.model)
    print("finished    ", response.finish_reason)
    print("tokens      ", response.usage)
    print(f"took         {response.timing.total:.2f} s", end="\n\n")
    print(response.trace)

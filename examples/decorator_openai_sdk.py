"""An existing call of the OpenAI SDK, made resilient by one line: same signature, same result, same exceptions.

    python examples/decorator_openai_sdk.py

With OPENAI_API_KEY set it asks OpenAI; without, a server on loopback that refuses twice, then answers, then cuts a
stream. Needs the SDK: pip install openai
"""

import os
from contextlib import ExitStack

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmprod import AttemptTimeout, CircuitBreaker, Deadline, Retry, StreamInterrupted, capture, resilient
from llmprod.testing.fault_server import Answer, Behaviour, Cut, ErrorReply, FaultServer

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5-mini")
REFUSED = Behaviour(error=ErrorReply(kind="rate_limit", retry_after=0.2))
HEALTHY = Behaviour(answer=Answer(text="Because a caller who has stopped waiting needs no answer."))

with ExitStack() as stack:
    server = None
    options = {}
    if not os.environ.get("OPENAI_API_KEY"):
        print("No OPENAI_API_KEY: asking a server on loopback that misbehaves.\n")
        server = stack.enter_context(FaultServer([REFUSED, REFUSED, HEALTHY]))
        options = {"base_url": f"{server.url}/v1", "api_key": "none"}

    # The SDK's own retries are off: two layers would multiply the attempts, and only one of them keeps a trace.
    client = stack.enter_context(openai.OpenAI(max_retries=0, **options))

    @resilient(Deadline(60), Retry(3), CircuitBreaker(), AttemptTimeout(total=30))
    def ask(question: str) -> ChatCompletion:
        return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])

    with capture() as calls:
        print(ask("Why do production systems need deadlines?").choices[0].message.content)
    print(calls[-1].usage)
    print(calls[-1].trace, end="\n\n")

    # A function that returns the SDK's stream: its chunks come through unchanged, and a cut is an error, not an end.
    @resilient(Retry(3), AttemptTimeout(first_token=20, idle=10))
    def stream(question: str) -> openai.Stream[ChatCompletionChunk]:
        return client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True
        )

    if server is not None:
        server.behave(Behaviour(answer=HEALTHY.answer, cut=Cut(after=4, how="clean")))
    with capture() as calls:
        try:
            for chunk in stream("And idle timeouts?"):
                print((chunk.choices[0].delta.content or "") if chunk.choices else "", end="", flush=True)
            print()
        except StreamInterrupted as error:
            print(f"…\ncut after {error.partial.text!r}")
    print(calls[-1].trace)

"""A primary that breaks in six ways, and a fallback that answers: what the caller sees, and the trace of each call.

    python examples/failover.py                      both are servers on loopback, started here
    python examples/failover.py openai:gpt-5-mini    the fallback is a real model (needs OPENAI_API_KEY)

The primary is a `FaultServer`: a real HTTP server on 127.0.0.1 that speaks the model APIs and fails on demand.
"""

import sys

from llmprod import AttemptTimeout, Client, StreamInterrupted, standard
from llmprod.providers.registry import from_string
from llmprod.testing.fault_server import Answer, Behaviour, Cut, ErrorReply, FaultServer, RawReply

FAULTS = {
    "503": Behaviour(error=ErrorReply(status=503)),
    "200 with a page of HTML": Behaviour(reply=RawReply()),
    "silence": Behaviour(connection="silence"),
    "a reset in the middle of the answer": Behaviour(cut=Cut(after=3), token_delay=0.02),
}
HEALTHY = Behaviour(answer=Answer(text="This is the fallback's whole answer."), first_token_delay=0.05)

with FaultServer(HEALTHY) as good, FaultServer() as bad:
    primary = from_string(f"openai:primary-model@{bad.url}/v1")
    fallback = from_string(sys.argv[1] if len(sys.argv) > 1 else f"anthropic:fallback-model@{good.url}")

    # The usual limits would do; a shorter one for the primary saves waiting for its silence here.
    stack = standard(AttemptTimeout(total=2)(primary), [fallback])

    with Client(stack) as client:
        print(client.describe(), end="\n\n")
        for title, behaviour in FAULTS.items():
            bad.behave(behaviour)
            response = client.generate("Say that you are the fallback.")
            print(f"{title}: answered by {response.provider} in {response.timing.total:.2f} s")
            print(response.trace, end="\n\n")

        bad.behave(Behaviour(answer=Answer(text="The primary is back.")))
        response = client.generate("Hello?")
        print(f"healthy again: {response.text!r} from {response.provider}\n")

        # A stream whose text was already shown can't be taken back: the caller gets what arrived, marked as partial.
        bad.behave(FAULTS["a reset in the middle of the answer"])
        try:
            with client.stream("Say that you are the fallback.") as response:
                for piece in response.text_stream():
                    print(piece, end="", flush=True)
        except StreamInterrupted as error:
            print(f"…\n{error}\npartial: {error.partial.text!r}\n{error.trace}\n")

        # One that asks for an hour's rest is left alone by the calls that follow, too.
        bad.behave(Behaviour(error=ErrorReply(kind="rate_limit", retry_after=3600)))
        for number in ("first", "second"):
            response = client.generate("Say that you are the fallback.")
            print(f"429 with Retry-After: 3600, {number} call: answered by {response.provider}\n{response.trace}\n")

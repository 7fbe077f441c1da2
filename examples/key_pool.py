"""Three keys of two accounts: one is revoked, and an account runs out of quota. What the caller sees of it.

    python examples/key_pool.py

The server is a `FaultServer`: a real HTTP server on 127.0.0.1 that speaks the model APIs; it looks at the key of each
request and answers as a provider would.
"""

from llmprod import Client, KeyPool, NoUsableKey
from llmprod.providers.registry import from_string
from llmprod.testing.fault_server import Answer, Behaviour, ErrorReply, FaultServer

ANSWERS = {
    "key-one": Behaviour(answer=Answer(text="Answered for account A, first key.")),
    "key-two": Behaviour(answer=Answer(text="Answered for account A, second key.")),
    "key-three": Behaviour(answer=Answer(text="Answered for account B.")),
}


def by_key(record):
    return ANSWERS[record.headers["authorization"].removeprefix("Bearer ")]


def ask(client, title):
    print(f"{title}:")
    try:
        response = client.generate("Hello")
        print(f"  {response.text}")
        for line in str(response.trace).splitlines():
            print(f"    {line}")
    except NoUsableKey as error:
        print(f"  {error}")
    print(f"  {pool.ring.state()}\n")


with FaultServer(by_key) as server:
    pool = KeyPool.of(
        lambda key: from_string(f"openai:model@{server.url}/v1", api_key=key),
        ["key-one", "key-two", "key-three"],
        labels=["a-1", "a-2", "b-1"],
        quota_groups=["account A", "account A", "account B"],
    )
    with Client(pool) as client:
        ask(client, "all is well")

        ANSWERS["key-two"] = Behaviour(error=ErrorReply(kind="authentication"))
        ask(client, "the second key has been revoked")

        ANSWERS["key-one"] = Behaviour(error=ErrorReply(kind="rate_limit", retry_after=300))
        ask(client, "account A has used up its quota")
        ask(client, "and is left alone, so the next call loses no time")

        ANSWERS["key-three"] = Behaviour(error=ErrorReply(kind="rate_limit", retry_after=120))
        ask(client, "so has account B")

        ANSWERS.update(dict.fromkeys(ANSWERS, Behaviour(answer=Answer(text="The account is in order again."))))
        for label in pool.ring.labels:
            pool.ring.restore(label)
        ask(client, "mended, and told so")

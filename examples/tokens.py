"""Count a prompt before it is sent, and keep a long conversation within a model's window.

    python examples/tokens.py

Nothing here needs a key or the network: the model is simulated, with a window of 2,000 tokens.
"""

from llmprod import Client, ContextTooLong, Message, Simulated
from llmprod.tokens import TokenCounter, count_tokens
from llmprod.wrappers.context_window import ContextWindow

QUESTION = "The water stood ankle-deep in the lanes of the old town. What should be repaired first, and why? "


def count() -> None:
    """The same prompt for three models."""
    for model in ("openai:gpt-5", "anthropic:claude-opus-4-8", "google:gemini-2.5-pro"):
        counted = count_tokens([Message.system("Be brief."), Message.user(QUESTION)], model=model)
        print(f"{model}: {counted.tokens} tokens ({counted.method}), at most {counted.upper_bound}")


def talk() -> None:
    """A conversation that outgrows the window loses its oldest exchanges, and says so."""
    history = [Message.system("You are a town planner.")]
    with Client(Simulated("instant"), wrappers=[ContextWindow(windows=2000, trim="oldest")]) as client:
        for turn in range(1, 13):
            history.append(Message.user(QUESTION * 10))
            response = client.generate(history, max_tokens=100)
            history.append(Message.assistant(response.text))
            for decision in response.trace.decisions:
                print(f"turn {turn}: {decision}")


def refuse() -> None:
    """Without a policy, what can't fit is refused before anything is sent."""
    with Client(Simulated("instant"), wrappers=[ContextWindow(windows=2000)]) as client:
        try:
            client.generate(QUESTION * 500)
        except ContextTooLong as error:
            print(error)


def learn() -> None:
    """A provider whose tokenizer nobody knows counts a quarter more; ContextWindow learns that by itself from usage."""
    counter = TokenCounter()
    for turn in range(1, 41):
        counted = counter.count(QUESTION * turn, model="acme:large")
        counter.learn(counted, round(1.25 * counted.raw))
        if turn in (1, 10, 40):
            now, error = counter.count(QUESTION, model="acme:large"), counter.error("acme:large")
            bounds = f"{now.lower_bound} to {now.upper_bound}"
            print(f"after {turn} prompts: {now.tokens} tokens, {bounds}; errors so far {error.mean:.1%} in the mean")


count()
talk()
refuse()
learn()

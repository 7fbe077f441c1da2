"""Embeddings: one vector a text, through the same stack.

python examples/embeddings.py                                  simulated vectors: texts that share words lie close
python examples/embeddings.py openai:text-embedding-3-small    real ones (needs OPENAI_API_KEY)
"""

import sys
from math import sqrt

from llmprod import Client

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"
TEXTS = ["how to cancel a subscription", "cancel my subscription", "a recipe for potato soup"]


def cosine(one: list[float], other: list[float]) -> float:
    """Return the cosine of the angle between two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / sqrt(sum(a * a for a in one) * sum(b * b for b in other))


with Client(MODEL) as client:
    response = client.embed(TEXTS)

query, *others = response.embeddings
print(f"{len(TEXTS)} vectors of length {len(query)}, {response.usage}")
for text, vector in zip(TEXTS[1:], others, strict=True):
    print(f"{cosine(query, vector):.2f}  {TEXTS[0]!r} ~ {text!r}")

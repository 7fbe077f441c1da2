"""Output that fits a type: a pydantic model in, an instance of it out.

python examples/structured_output.py                           a simulated model: fitting JSON, random content
python examples/structured_output.py google:gemini-2.5-flash   a real one (needs GEMINI_API_KEY)
"""

import sys
from typing import Literal

from pydantic import BaseModel, Field

from llmprod import Client, InvalidOutput

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"


class Ticket(BaseModel):
    """A support ticket."""

    summary: str = Field(description="one sentence")
    urgency: Literal["low", "normal", "high"]
    tags: list[str]


MAIL = "The invoice page has been down since this morning and we have to pay salaries today. Please help!"

with Client(MODEL) as client:
    response = client.generate(f"File this mail as a ticket:\n\n{MAIL}", output=Ticket, max_tokens=2000)
    try:
        ticket = response.parsed
    except InvalidOutput as error:  # cut by max_tokens, refused, or not what the schema says
        sys.exit(f"no ticket: {error}")

print(type(ticket).__name__, ticket.model_dump_json(indent=2))

"""How much of a provider's allowance a caller uses, and how often it is refused."""

"""What hedging does to the tail: latencies with and without :class:`llmprod.Hedge`, and what it costs."""

"""How a function becomes a provider: its request, its threads, its streams, and what its results and errors mean."""

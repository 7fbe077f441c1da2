"""Async glue around mechanisms: one wrapper a file, each with its options, each closed under wrapping."""

"""Decisions without I/O: synchronous objects that take their clock and chance, tested without an event loop."""

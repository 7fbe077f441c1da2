"""The embedded vLLM engine: its home thread, the way in and out, and what it tells of itself."""

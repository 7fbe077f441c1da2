"""What a chat application would pay for a real trace, with and without caches; see `docs/prompt-caching.md`."""

"""The embedded engine beside vLLM's own ways to be used: throughput, time to first token, CPU time."""

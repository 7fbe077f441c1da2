"""The fault wall: every scenario of ``llmprod.testing.scenarios`` against a client, judged by what its caller got."""

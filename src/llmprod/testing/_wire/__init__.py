"""The wire forms of the model APIs that the fault server speaks: bytes only, no I/O."""

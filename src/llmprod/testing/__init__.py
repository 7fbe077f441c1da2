"""What `llmprod` gives to tests: of itself and of the applications that use it."""

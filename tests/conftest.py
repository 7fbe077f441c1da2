"""What all tests share. Async tests run on asyncio and trio, in real time unless their folder chose virtual time."""

import gc

from hypothesis import settings

# A busy machine makes an example slow, not wrong.
settings.register_profile("llmprod", deadline=None)
settings.load_profile("llmprod")


def pytest_collection_finish() -> None:
    """Keep the tests' modules out of the collections that tests ask for, which took half a second each."""
    gc.collect()
    gc.freeze()

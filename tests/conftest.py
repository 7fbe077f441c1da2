"""What all tests share. Async tests run on asyncio and trio, in real time unless their folder chose virtual time."""

from hypothesis import settings

# A busy machine makes an example slow, not wrong.
settings.register_profile("llmprod", deadline=None)
settings.load_profile("llmprod")

"""Virtual time: import ``anyio_backend`` into a conftest, and its folder's async tests wait hours in milliseconds.

Time passes when everything waits, on asyncio and on trio. The library's own clock follows where it is a LoopClock.
"""

import looptime
import pytest
import trio.testing


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": lambda: looptime.new_event_loop(start=0)}

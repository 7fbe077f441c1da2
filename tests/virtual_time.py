"""Virtual time: import ``anyio_backend`` into a conftest, and its folder's async tests wait hours in milliseconds.

Time passes when everything waits, on asyncio and on trio. The library's own clock follows where it is a LoopClock.
"""

import pytest

from llmprod.testing import virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backend(request.param)

"""Programs that are each a test, run several at once: they wait more than they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["side_by_side"]

T = TypeVar("T")
_AT_ONCE = 3


def side_by_side(
    request: pytest.FixtureRequest,
    folders: pytest.TempPathFactory,
    test: Callable[..., object],
    run: Callable[[Path, Path], T],
) -> Iterator[Callable[[Path], T]]:
    """Run all that ``test`` is asked for by its parameter ``path``, from the start, each in a folder of its own.

    Yields what tells how one ran.
    """
    paths = [
        item.callspec.params["path"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test
    ]
    pool = ThreadPoolExecutor(_AT_ONCE)
    runs = {path: pool.submit(run, path, folders.mktemp(path.stem)) for path in paths}
    yield lambda path: runs[path].result()
    pool.shutdown(cancel_futures=True)

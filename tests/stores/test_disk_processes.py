"""Several processes on one folder, and processes that are killed while they write."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

pytest.importorskip("diskcache")

from llmprod.stores.disk import DiskStore
from tests.stores.disk_worker import KEYS, right

ROOT = Path(__file__).parents[2]


def start(folder, name, rounds) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.stores.disk_worker", str(folder), str(name), str(rounds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def check(folder) -> dict[str, bytes | None]:
    store = DiskStore(folder, timeout=60)
    found = {key: await store.get(key) for key in (f"key {number}" for number in range(KEYS))}
    assert all(got is None or right(key, got) for key, got in found.items())
    await store.aclose()
    return found


def test_eight_processes_read_and_write_the_same_keys(tmp_path):
    rounds = 60
    workers = [start(tmp_path, name, rounds) for name in range(8)]
    leases: Counter[str] = Counter()
    for worker in workers:
        said, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
        assert errors == ""
        assert "wrong" not in said
        assert said.count("set ") == rounds
        leases.update(line for line in said.splitlines() if line.startswith("lease "))
    assert leases == {f"lease {number}": 1 for number in range(rounds)}, "each lease has one holder"
    anyio.run(check, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["db-1"], "nothing was damaged"


def test_killed_while_they_write(tmp_path):
    chance = random.Random(5)
    for attempt in range(24):
        workers = [start(tmp_path, f"{attempt}.{number}", 100_000) for number in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.15)
        for worker in workers:
            worker.kill()
            said, errors = worker.communicate(timeout=240)
            assert errors == ""
            assert "wrong" not in said
        # What is there is right. Now and then, on a busy machine, one of the entries that were written last is not
        # there (SQLite 3.40, a row of hundreds): a cache may forget.
        anyio.run(check, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["db-1"], "nothing was damaged"

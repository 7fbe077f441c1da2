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
from tests.stores.disk_worker import KEYS, STAY, right

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


def end(worker: "subprocess.Popen[str]") -> str:
    """Kill a process, and return all that it has said."""
    worker.kill()
    assert worker.stdout is not None
    assert worker.stderr is not None
    # Not by communicate(), which leaves out what readline() has read ahead: on a busy machine, several entries.
    said, errors = worker.stdout.read(), worker.stderr.read()
    worker.wait()
    worker.stdout.close()
    worker.stderr.close()
    assert errors == ""
    return said


async def kept(folder, told: dict[str, str]) -> None:
    """What processes were told that is kept is there, or what one of them has set under the same key since."""
    found = await check(folder)
    for name, said in told.items():
        for line in said.splitlines(keepends=True):
            what, number, *key = line.split(" ", 2)
            if what != "set" or not line.endswith("\n") or int(key[0].split()[1]) < STAY:
                continue
            got = found[key[0][:-1]]
            assert got is not None, line
            by, _, its_number = got.rpartition(b"|")[2].decode().rpartition(".")
            assert by in told, line
            assert by != name or int(its_number) >= int(number), line


def test_killed_while_they_write(tmp_path):
    chance = random.Random(5)
    entries = 0
    for attempt in range(24):
        workers = {(name := f"{attempt}.{number}"): start(tmp_path, name, 100_000) for number in range(2)}
        for worker in workers.values():
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.15)
        told = {name: end(worker) for name, worker in workers.items()}
        assert "wrong" not in "".join(told.values())
        entries += sum(said.count("set ") for said in told.values())
        anyio.run(kept, tmp_path, told)
    assert entries > 0
    assert [place.name for place in tmp_path.iterdir()] == ["db-1"], "nothing was damaged"

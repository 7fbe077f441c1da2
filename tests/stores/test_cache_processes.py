"""A cache over real stores and several processes: with a lease, one of them makes the answer."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(where: str, lease: float, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.stores.cache_worker", where, str(lease), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def last(worker: "subprocess.Popen[str]") -> list[str]:
    said, _ = worker.communicate(timeout=240)
    assert worker.returncode == 0
    return said.splitlines()[-1].split()


def one_answer(where: str) -> None:
    ends = [last(worker) for worker in [start(where, 60, 0.5) for _ in range(4)]]
    assert sorted(end[0] for end in ends) == ["0", "0", "0", "1"]
    assert sorted(end[1] for end in ends) == ["0", "20", "20", "20"]
    assert {end[2] for end in ends} == {"Hello"}
    # What a process has answered is stored when it ends.
    assert last(start(where, 60, 0.5)) == ["0", "20", "Hello"]


def handed_over(where: str) -> None:
    killed = start(where, 4, 600)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "asking\n"
    killed.kill()
    killed.communicate()
    assert last(start(where, 4, 0.1)) == ["1", "0", "Hello"]


def test_four_processes_with_equal_calls_make_one_over_a_disk(tmp_path):
    pytest.importorskip("diskcache")
    one_answer(str(tmp_path))


def test_four_processes_with_equal_calls_make_one_over_redis(server):
    one_answer(server.url)


def test_a_process_that_is_killed_while_it_asks_hands_over_when_its_lease_ends_over_a_disk(tmp_path):
    pytest.importorskip("diskcache")
    handed_over(str(tmp_path))


def test_a_process_that_is_killed_while_it_asks_hands_over_when_its_lease_ends_over_redis(server):
    handed_over(server.url)

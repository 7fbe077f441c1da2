"""``make mutation``: change the mechanisms in small ways, one at a time, and see whether their tests notice.

mutmut makes the mutants and runs them, each in a fork of a process that has everything imported, against the tests that
reach the changed function. It works in ``build/mutation`` on a copy, in which three things differ:

* mutmut passes over decorated functions, so a property is written as a function and ``name = property(name)``;
* Hypothesis tries fewer examples, always the same ones, and shrinks nothing;
* only ``tests/mechanisms`` is there: what only a wrapper's test would notice counts as unnoticed.

Left out of the score are mutants that change nothing that can be observed, listed with the reason in
``tools/mutation_equivalent.txt``, and those of which only the prose of a message is another. A mutant that has not been
run when the time is up is told as such and counts for nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "mutation"
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.txt")
PACKAGE = "llmprod.mechanisms."

CONFIG = """
[tool.pytest]
minversion = "9.0"
pythonpath = ["."]
addopts = ["--import-mode=importlib", "-p", "no:looptime_plugin", "-p", "no:cacheprovider", "-p", "no:llmprod"]
filterwarnings = ["error"]

[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/llmprod/mechanisms/*.py"]
pytest_add_cli_args_test_selection = ["tests/mechanisms"]
use_git_change_detection = false
track_dependencies = false
timeout_multiplier = 8.0
timeout_constant = 2.0
"""

CONFTEST = '''
"""Fewer examples, the same ones each time, none shrunk, so that a mutant takes no more than seconds."""

from hypothesis import HealthCheck, Phase, settings

_QUICK = {
    "max_examples": 25, "database": None, "derandomize": True, "deadline": None,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("mutation", **_QUICK)
settings.load_profile("mutation")


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item.cls, "settings"):
            item.cls.settings = settings(item.cls.settings, **_QUICK)
        own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
        if own is not None:
            item.obj._hypothesis_internal_use_settings = settings(own, **_QUICK)
'''


def prepare() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    (BUILD / "tests").mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", BUILD / "src", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "mechanisms", BUILD / "tests" / "mechanisms", ignore=ignore)
    (BUILD / "pyproject.toml").write_text(CONFIG)
    (BUILD / "tests" / "conftest.py").write_text(CONFTEST)
    for path in (BUILD / "src" / "llmprod" / "mechanisms").glob("*.py"):
        path.write_text(without_property_decorators(path.read_text()))


def without_property_decorators(source: str) -> str:
    """Write ``@property`` above a function as ``name = property(name)`` below it."""
    lines = source.splitlines()
    edits: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and [ast.unparse(one) for one in node.decorator_list] == ["property"]:
            indent = " " * node.col_offset
            edits.append(
                (node.decorator_list[0].lineno, node.end_lineno or 0, f"{indent}{node.name} = property({node.name})")
            )
    for first, last, below in sorted(edits, reverse=True):
        lines.insert(last, below)
        del lines[first - 1]
    return "\n".join(lines) + "\n"


def run(names: list[str], *, jobs: int, seconds: float) -> bool:
    """Run mutmut; tell whether it came to its end in time."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    log = BUILD / "mutmut.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=BUILD, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return False
    if code:
        raise SystemExit(
            f"mutmut failed ({code}): {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        )
    return True


STATUS = {
    0: "survived",
    5: "no tests",
    33: "no tests",
    34: "skipped",
    35: "suspicious",
    36: "timeout",
    24: "timeout",
    152: "timeout",
}
CAUGHT = {"killed", "timeout"}


def results() -> dict[str, str]:
    """Status by mutant."""
    found: dict[str, str] = {}
    for meta in sorted((BUILD / "mutants" / "src" / "llmprod" / "mechanisms").glob("*.py.meta")):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            found[name] = "not run" if code is None else STATUS.get(code, "killed")
    return found


def equivalent() -> dict[str, str]:
    """Mutants that change nothing, with the reason: lines of ``module: - before / + after: reason``."""
    told: dict[str, str] = {}
    if EQUIVALENT.exists():
        for line in EQUIVALENT.read_text().splitlines():
            if line and not line.startswith("#"):
                change, _, reason = line.rpartition(" # ")
                told[change.strip()] = reason
    return told


def differences(names: list[str]) -> dict[str, str]:
    """Each mutant in one line: module, function, and the lines that changed; stable where its number is not."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    told: dict[str, str] = {}
    with contextlib.chdir(BUILD):
        for name in names:
            module, _, rest = name.removeprefix(PACKAGE).partition(".")
            shown = get_diff_for_mutant(name, path=Path("src/llmprod/mechanisms") / f"{module}.py")
            changed = [line for line in shown.splitlines() if re.match(r"[-+](?![-+])", line)]
            place = rest.partition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
            told[name] = f"{module}.{place}: " + " ".join(f"{line[0]} {line[1:].strip()}" for line in changed)
    return told


def of_words_alone(change: str) -> bool:
    """Only the prose of a message differs, its field being the same: no test holds the library to its words."""
    before, _, after = change.partition(" + ")
    before = before.partition("- ")[2]
    refused = _refusal(before), _refusal(after)
    if refused[0] is not None and refused[0] == refused[1]:
        return True
    if _TEXT.sub('""', before) != _TEXT.sub('""', after):
        return False
    return any(
        " " in one.strip('frb"') and one != other
        for one, other in zip(*map(_TEXT.findall, (before, after)), strict=False)
    )


def _refusal(line: str) -> tuple[str, int] | None:
    """The field that a line refuses an argument by, and with how many words."""
    try:
        (statement,) = ast.parse(line).body
    except (SyntaxError, ValueError):
        return None
    call = statement.exc if isinstance(statement, ast.Raise) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "InvalidArgument" or not call.args:
        return None
    return ast.unparse(call.args[0]), len(call.args)


_TEXT = re.compile(r'[frb]*"[^"]*"')


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="names of mechanisms (default: all)")
    parser.add_argument("--again", action="store_true", help="report on the last run, without another")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after this time (default 20)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.json")
    options = parser.parse_args()
    began = time.monotonic()
    if not options.again:
        prepare()
    whole = options.again or run(
        [f"{PACKAGE}{name}.*" for name in options.modules], jobs=options.jobs, seconds=options.minutes * 60
    )
    found = results()
    if options.modules:
        found = {
            name: status
            for name, status in found.items()
            if name.removeprefix(PACKAGE).split(".")[0] in options.modules
        }
    known = equivalent()
    unnoticed = differences([name for name, status in found.items() if status not in CAUGHT and status != "not run"])
    left_out = {name for name, change in unnoticed.items() if change in known or of_words_alone(change)}
    survivors = [(found[name], change, name) for name, change in unnoticed.items() if name not in left_out]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, status in found.items():
        module = name.removeprefix(PACKAGE).split(".")[0]
        counts[module]["equivalent" if name in left_out else status] += 1
    table = {module: _score(count) for module, count in sorted(counts.items())}
    told = {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "complete": whole,
        "overall": _score(sum(counts.values(), Counter())),
        "modules": table,
        "survivors": [f"{status}: {change}" for status, change, _ in survivors],
    }
    for status, change, name in survivors:
        print(f"{status}: {change}    [{name}]")
    for module, row in {**table, "overall": told["overall"]}.items():
        print(f"{module:24} {row}")
    if not options.modules:
        options.json.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return 0


def _score(count: Counter[str]) -> dict[str, float | int]:
    caught = sum(count[status] for status in CAUGHT)
    unnoticed = sum(number for status, number in count.items() if status not in {*CAUGHT, "equivalent", "not run"})
    return {
        "mutants": count.total(),
        "caught": caught,
        "unnoticed": unnoticed,
        "equivalent": count["equivalent"],
        "not_run": count["not run"],
        "score": round(caught / (caught + unnoticed), 3) if caught + unnoticed else 0.0,
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""The project's frame: what the repository contains, and what a built package does."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILT = {"build", "dist", "site", "__pycache__"}

# Put together here, so that this file does not contain what it looks for.
PLACES = [f"/{folder}/" for folder in ("work", "opt", "root", "home")]
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("npmjs", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
]
NAMES = ["-".join(parts) for parts in (("farm", "studio"), ("noreply.r", "seed"))]
FORBIDDEN = re.compile(
    "|".join([rf"(?<![\w.~-]){re.escape(place)}" for place in PLACES] + [re.escape(name) for name in HOSTS + NAMES])
)


def files() -> list[Path]:
    """The repository's files, tracked or about to be; without git, those that no build left behind."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        found = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        found = list(walk(ROOT))
    return [path for path in found if path.is_file()]


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in BUILT and (not path.name.startswith(".") or path.name == ".ci"):
                yield from walk(path)
        else:
            yield path


def text_of(path: Path) -> str:
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8")


def test_no_file_names_a_workplace_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path in files()
        for text in [text_of(path)]
        for match in FORBIDDEN.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", [f"cd {PLACES[0]}x", f"'{PLACES[1]}x'", f"https://{HOSTS[0]}/x", NAMES[0]])
def test_what_is_looked_for_is_found(text: str) -> None:
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("text", ["docs/work/x", "./work/x", "~/work/x", "the net/work"])
def test_relative_paths_are_not_taken_for_absolute_ones(text: str) -> None:
    assert not FORBIDDEN.search(text)


def test_the_walk_without_git_sees_the_same_files() -> None:
    seen = {path.relative_to(ROOT).as_posix() for path in walk(ROOT)}
    assert {"pyproject.toml", "Makefile", ".ci/run", "src/llmprod/py.typed", "tests/test_frame.py"} <= seen
    assert not any(name.startswith((".git/", ".venv", "site/")) for name in seen)


def test_the_version_stands_in_one_place() -> None:
    version = PROJECT["version"]
    repeated = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        if re.search(rf"""["']{re.escape(version)}["']""", path.read_text(encoding="utf-8"))
    ]
    assert not repeated
    assert importlib.metadata.version("llmprod") == version


def test_the_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in changelog


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"llmprod-{PROJECT['version']}.dist-info/"
    assert "llmprod/py.typed" in package
    assert package == {name for name in wheel.namelist() if not name.startswith(info)}
    assert f"{info}licenses/LICENSE" in wheel.namelist()


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "src" / "llmprod").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_only_what_a_call_needs_is_required() -> None:
    # tzdata is read by zoneinfo, where the system has no time zones of its own.
    required = {re.match(r"[\w.-]+", need)[0] for need in PROJECT["dependencies"]} - {"tzdata"}
    imported = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert required <= set(re.findall(r"^\s*(?:import|from) (\w+)", imported, re.MULTILINE))


def at_once(tree: ast.Module) -> Iterator[str]:
    """Names of what a module imports as it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def test_what_is_imported_at_once_is_required() -> None:
    """The tests' environment has more packages than a user's: an import that works here may fail there."""
    required = {re.match(r"[\w.-]+", need)[0] for need in PROJECT["dependencies"]}
    ours = {"llmprod", "pydantic_core", *sys.stdlib_module_names}  # pydantic-core is the other half of pydantic
    source = ROOT / "src" / "llmprod"
    found = {
        f"{path.relative_to(source)}: {name}"
        for path in source.rglob("*.py")
        if path.relative_to(source).parts[0] != "testing"  # has an extra of its own
        for name in at_once(ast.parse(path.read_text(encoding="utf-8")))
        if name not in required | ours
    }
    assert not found


def test_scripts_are_executable() -> None:
    scripts = [path for path in files() if text_of(path).startswith("#!")]
    assert {ROOT / ".ci" / "run", ROOT / "tools" / "venv.sh"} <= set(scripts)
    assert [str(path) for path in scripts if not path.stat().st_mode & 0o111] == []

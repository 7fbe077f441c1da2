"""Every Python block of the documentation runs.

The blocks of a page run in their order, in one namespace, in a process of their own that reaches no network but
loopback and has no API keys. `await` at the top level works, as in a notebook. A block fenced as ```python {.notest}
is compiled but not run; that is for blocks that need a real provider, and such a block must name one.

As a program, this file runs one page: `python tests/docs/test_snippets.py docs/index.md`.
"""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TIMEOUT_S = 270
FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
# What may follow the language; anything else the site would show as running text.
OPTIONS = re.compile(r"""(\{[^{}]*\}|((title|hl_lines|linenums)="[^"]*"\s*)*)""")
# What a block has to contain for `notest` to be true of it: a real provider's model string or class, or an SDK.
NEEDS_A_PROVIDER = re.compile(
    r"\b(openai|anthropic|google|gemini|azure|openrouter|ollama|vllm|tgi|trtllm|llamacpp)[a-z-]*\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Block:
    """One fenced block of Python: its code, the line of its first line of code, and whether it is to run."""

    code: str
    line: int
    runs: bool


def blocks_of(text: str) -> list[Block]:
    """Find the Python blocks of a page, those inside lists, admonitions and tabs too."""
    blocks: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        start = number
        closing = re.compile(rf"^[ \t]*{re.escape(opening['ticks'])}{re.escape(opening['ticks'][0])}*[ \t]*$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if number == len(lines):
            raise ValueError(f"the block opened on line {start} is never closed")
        language, _, options = opening["info"].strip().partition(" ")
        if not OPTIONS.fullmatch(options.strip()):
            raise ValueError(f'line {start}: the site does not understand {options!r}; write {{.notest}} or title="…"')
        if language in {"python", "py"}:
            code = textwrap.dedent("\n".join(lines[start:number])) + "\n"
            blocks.append(Block(code=code, line=start + 1, runs=".notest" not in options.strip("{} ").split()))
        number += 1
    return blocks


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: let no socket leave this machine, and no other name than this machine's be looked up."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host not in {None, "", "localhost", "::1"} and not str(host).startswith("127."):
        raise PermissionError(f"documentation is run without network, and this block wants to reach {host}")


def run_page(path: Path) -> None:
    """Run a page's blocks in this process. Tracebacks show the page and the line in it."""
    warnings.simplefilter("error")
    sys.addaudithook(refuse_network)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks_of(path.read_text(encoding="utf-8")):
            source = "\n" * (block.line - 1) + block.code
            code = compile(source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if not block.runs:
                if not NEEDS_A_PROVIDER.search(block.code):
                    raise ValueError(f"{path.name}, line {block.line}: marked notest, but needs no real provider")
            elif code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, namespace))
            else:
                exec(code, namespace)


def run_in_process_of_its_own(path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a page as a program: without keys and proxies, in a folder where it may leave files."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith(("_API_KEY", "_PROXY", "_TOKEN")) and not name.startswith("COV_")
    }
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment |= {"PYTHONPATH": search, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-X", "dev", __file__, str(path)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
    raise SystemExit

import pytest  # noqa: E402 — a page runs without the test tools

from tests.side_by_side import side_by_side  # noqa: E402

Run = Callable[[Path], subprocess.CompletedProcess[str] | None]


@pytest.fixture(scope="module")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """How a page ran; None for a page of prose."""

    def run(path: Path, cwd: Path) -> subprocess.CompletedProcess[str] | None:
        prose = not any(blocks_of(path.read_text(encoding="utf-8")))
        return None if prose else run_in_process_of_its_own(path, cwd)

    yield from side_by_side(request, tmp_path_factory, test_blocks_run, run)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_run(path: Path, ran: Run) -> None:
    done = ran(path)
    assert done is None or done.returncode == 0, f"{path.relative_to(ROOT)} failed:\n{done.stdout}\n{done.stderr}"


PAGE = """\
# A page

```python title="first"
answer = 41
```

=== "in a tab"

    ```python
    import asyncio

    await asyncio.sleep(0)
    answer += 1
    ```

```console
$ this is not Python
```

````markdown
```python
raise AssertionError("an example of a block is no block")
```
````

```python {.notest}
Client("openai:some-model").generate("hello")
```

```python
assert answer == 42, answer
```
"""


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_blocks_are_found_where_they_stand() -> None:
    assert [(block.line, block.runs) for block in blocks_of(PAGE)] == [(4, True), (10, True), (27, False), (31, True)]
    assert blocks_of(PAGE)[1].code.startswith("import asyncio\n")


def test_blocks_of_a_page_share_one_namespace(tmp_path: Path) -> None:
    done = run_in_process_of_its_own(page(tmp_path, PAGE), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("text\n\n```python\nx = 1\nx.y\n```\n", 'page.md", line 5', id="error-names-the-line-of-the-page"),
        pytest.param("```python\nx = 1\n", "never closed", id="unclosed"),
        pytest.param("```python notest\nx = 1\n```\n", "does not understand", id="option-the-site-cannot-read"),
        pytest.param("```python {.notest}\nopenai: =\n```\n", "SyntaxError", id="notest-is-compiled"),
        pytest.param("```python {.notest}\nx = 1\n```\n", "needs no real provider", id="notest-needs-a-reason"),
        pytest.param(
            "```python\nimport socket\nsocket.create_connection(('192.0.2.1', 80))\n```\n",
            "run without network",
            id="no-network",
        ),
        pytest.param("```python\nimport warnings\nwarnings.warn('w')\n```\n", "UserWarning", id="warning-is-an-error"),
    ],
)
def test_a_wrong_page_fails(tmp_path: Path, text: str, message: str) -> None:
    done = run_in_process_of_its_own(page(tmp_path, text), tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


def test_loopback_is_reachable(tmp_path: Path) -> None:
    text = "```python\nimport socket\nwith socket.create_server(('127.0.0.1', 0)) as server:\n"
    text += "    socket.create_connection(('localhost', server.getsockname()[1])).close()\n```\n"
    done = run_in_process_of_its_own(page(tmp_path, text), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a real one")
    text = "```python\nimport os\nassert 'OPENAI_API_KEY' not in os.environ\n```\n"
    done = run_in_process_of_its_own(page(tmp_path, text), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

"""Docstrings name code as ``:class:`llmprod.Retry```; the site shows that as a link where the name is public."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
_SURFACE = Path(__file__).resolve().parents[1] / "src" / "llmprod" / "__init__.py"


class Roles(griffe.Extension):
    """Turns reStructuredText roles into Markdown."""

    def __init__(self) -> None:
        tree = ast.parse(_SURFACE.read_text(encoding="utf-8"))
        self._public = {
            alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(self._markdown, obj.docstring.value)

    def _markdown(self, role: re.Match[str]) -> str:
        name = role[1].removeprefix("llmprod.")
        if name.partition(".")[0] in self._public:
            return f"[`{name}`][llmprod.{name}]"
        last = name.rpartition(".")[2]
        return f"[`{last}`][llmprod.{last}]" if last in self._public else f"`{last}`"

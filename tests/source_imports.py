"""The project's modules and what each imports, read from their source."""

from __future__ import annotations

import ast

from bases import ROOT


def imports(source: str, modules: set[str]) -> set[str]:
    """Modules of ours that a source text imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & modules) or {node.module}
    return found & modules


def sources() -> dict[str, str]:
    """Every module of ours outside the tests, by its dotted name."""
    files = [*ROOT.glob("*.py"), *(file for package in ROOT.glob("*/__init__.py")
                                   for file in package.parent.rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"):
            file.read_text() for file in files}

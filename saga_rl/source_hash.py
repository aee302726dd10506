"""A hash of what code does, not of how it is laid out or where it lies: comments, docstrings, formatting and imports do
not change it."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

_SKIP = ("kind", "type_comment", "type_params", "ctx")
"""Fields that say nothing about behaviour here, or that exist in some Python versions only."""


def _canonical(node: Any) -> str:
    """`ast.dump` by our own rule, because its output differs between Python versions."""
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if name in _SKIP or value is None or value == []:
                continue
            if name == "body" and isinstance(value, list):
                value = [s for s in value if not (_is_docstring(s) or isinstance(s, ast.Import | ast.ImportFrom))]
            parts.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)


def _is_docstring(statement: ast.stmt) -> bool:
    """A bare string, wherever it stands: of a module, a function, or a constant."""
    return (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str))


def code_hash(*sources: str) -> str:
    """Hex SHA-256 over the syntax trees of Python sources, in order."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(_canonical(ast.parse(source)).encode())
    return digest.hexdigest()

"""How large the package is, at any commits: files, lines, longest and median file, public names.

    python benchmarks/house.py [COMMIT ...]

Without a commit: HEAD. Read from git, so nothing is checked out. Public names: what a module of `saga_rl` defines at
its top level without a leading underscore; imported names do not count.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import PurePosixPath

from saga_rl.report.tables import markdown

PACKAGE = "saga_rl"


def git(*words: str) -> str:
    """Return what git says; it says itself what is wrong."""
    done = subprocess.run(["git", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(2)
    return done.stdout


def sources(commit: str) -> dict[str, str]:
    """Return the text of every Python file of the package at `commit`, by path."""
    paths = [p for p in git("ls-tree", "-r", "--name-only", commit, PACKAGE).splitlines() if p.endswith(".py")]
    return {p: git("show", f"{commit}:{p}") for p in paths}


def public_names(text: str) -> set[str]:
    """Return the names that a module defines for others."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {n for n in names if not n.startswith("_")}


def row(commit: str) -> list[str]:
    """Return one row of the table."""
    texts = sources(commit)
    lines = {p: t.count("\n") for p, t in texts.items()}
    longest = max(lines, key=lambda p: lines[p])
    folders = Counter(str(PurePosixPath(p).parent) for p in texts)
    fullest, most = folders.most_common(1)[0]
    return [git("rev-parse", "--short", commit).strip(), str(len(texts)), f"{sum(lines.values()):,}",
            f"{statistics.median(lines.values()):.0f}", f"{lines[longest]} ({longest})", str(len(folders)),
            f"{most} ({fullest})", f"{sum(len(public_names(t)) for t in texts.values()):,}"]


if __name__ == "__main__":
    print(markdown(("commit", "files", "lines", "median file", "longest file", "folders", "most files in a folder",
                    "public names"), [row(c) for c in sys.argv[1:] or ["HEAD"]]))

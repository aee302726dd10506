"""What a person types works from what is checked in: targets, pins, licence, and no stray words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*args: str, **kw) -> subprocess.CompletedProcess:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *args], capture_output=True, text=True, env=clean, timeout=120, **kw)


def test_help_lists_every_target():
    out = make("help", cwd=ROOT).stdout
    for target in ("setup", "demo", "test", "lint", "docs", "bench"):
        assert f"make {target}" in out


def test_an_old_python_is_refused_with_the_way_out(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "overrides.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    out = make("setup", f"PYTHON={old}", cwd=tmp_path)
    assert out.returncode != 0
    assert "Python 3.11" in out.stderr and "PYTHON=" in out.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_does_nothing_when_nothing_changed(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "overrides.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    assert make("-q", "setup", cwd=tmp_path).returncode == 0
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert make("-q", "setup", cwd=tmp_path).returncode == 1


def test_the_constraints_pin_every_dependency_and_are_what_is_installed():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)
    assert all("+" not in v for v in pins.values()), "a local version cannot be had elsewhere"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in ("train", "serve-cpu", "dev", "docs"):
        wanted += project["optional-dependencies"][extra]
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned"
        assert metadata.version(name).split("+")[0] == pins[name]


def test_the_core_imports_without_torch_vllm_or_matplotlib():
    code = ("import sys; sys.modules.update(dict.fromkeys(('torch', 'vllm', 'matplotlib', 'minari', 'wandb')));"
            "import saga_rl.cli.main, saga_rl.replay.run, saga_rl.report.tables, saga_rl.report.html")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr


def test_the_licence_is_apache_and_shipped():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and "APPENDIX" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and "LICENSE" in project["license-files"]


def test_documents_link_only_to_what_exists():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_ci_script_runs_lint_and_tests_and_can_be_executed():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "make lint && make docs && make oldest && make vllm && make test;" in text
    assert "last-failed" not in text and "lastfailed" not in text

"""The scripts of training/ as on a command line, but in this process: what they load is loaded once."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from saga_rl.learn.script import run_script

TRAINING = Path(__file__).resolve().parents[1] / "training"


def script(name: str) -> ModuleType:
    """The module of training/`name`.py."""
    spec = importlib.util.spec_from_file_location(f"training_{name}", TRAINING / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python training/NAME.py ARGUMENTS`, by the function that the script itself ends with."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    here, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(cwd or here)
    try:
        with patch.object(sys, "argv", [f"{name}.py", *arguments]), contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(err):
            try:
                run_script(script(name).main)
            except SystemExit as e:
                status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    finally:
        os.chdir(here)
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess([name, *arguments], status, out.getvalue(), err.getvalue())

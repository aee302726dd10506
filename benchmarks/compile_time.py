"""What compiling the simulator costs, once on each machine, with our `njit` and with numba's own.

    python benchmarks/compile_time.py [--out DIR]

Compiles the closed loop in a process with an empty cache, twice: as it is, and with numba's decorator, which compiles a
function again for each width of a whole number and each constant. Prints processor seconds and their ratio; DIR gets
`compile_time.json`. Takes some minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.errors import run_user_command
from saga_rl.files import check_target, write_json
from saga_rl.provenance import provenance

ONE = """
import sys, time
import saga_rl.njit as ours
if sys.argv[1] == "numba":
    import numba
    ours.njit = numba.njit
from saga_rl.experiments.pool import warm

began = time.process_time()
warm(False)
print(time.process_time() - began)
"""


def one(which: str) -> float:
    """Compile in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, "-c", ONE, which], env={"SAGA_RL_CACHE": cache, "PATH": ""}, check=True,
                              stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main(out: Annotated[Path | None, typer.Option(help="Folder for compile_time.json.")] = None) -> None:
    """Compare what compiling costs with our decorator and with numba's."""
    target = None if out is None else out / "compile_time.json"
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_target(target)
    figures = {which: one(which) for which in ("ours", "numba")}
    table = Table("decorator", "processor seconds", "of numba's", title="the closed loop, compiled once")
    for which, seconds in figures.items():
        table.add_row(which, f"{seconds:.0f}", f"{seconds / figures['numba']:.2f}")
    Console().print(table)
    if target is not None:
        write_json(target, {"cpu_s": figures, "provenance": provenance(seed=None, trace=None)})


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))

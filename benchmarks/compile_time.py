"""What compiling the simulator costs, once on each machine, with our `njit` and with numba's own.

    python benchmarks/compile_time.py [--out DIR]

Compiles the closed loop in a process with an empty cache, twice: as it is, and with `saga_rl.njit` doing what numba's
decorator does (a version for each width of a whole number and each constant, and an entry for C code in all of them).
Prints processor seconds, compiled versions and their ratio; DIR gets `compile_time.json`. Takes some minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.errors import run_user_command
from saga_rl.files import check_target, write_json
from saga_rl.provenance import provenance

ONE = """
import json, sys, time
import saga_rl.njit as ours
from numba.core import event
if sys.argv[1] == "numba":
    import numba
    ours.njit = numba.njit
from saga_rl.experiments.pool import warm

class Count(event.Listener):
    versions = 0
    def on_start(self, e): self.versions += 1
    def on_end(self, e): pass

count, began = Count(), time.process_time()
event.register("numba:compile", count)
warm(False)
print(json.dumps({"cpu_s": time.process_time() - began, "versions": count.versions}))
"""


def one(which: str) -> dict[str, Any]:
    """Compile in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, "-c", ONE, which], env={"SAGA_RL_CACHE": cache, "PATH": ""}, check=True,
                              stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main(out: Annotated[Path | None, typer.Option(help="Folder for compile_time.json.")] = None) -> None:
    """Compare what compiling costs with our decorator and with numba's."""
    target = None if out is None else out / "compile_time.json"
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_target(target)
    figures = {which: one(which) for which in ("ours", "numba")}
    table = Table(title="the closed loop, compiled once")
    for column in ("decorator", "processor seconds", "versions", "of numba's"):
        table.add_column(column, justify="left" if column == "decorator" else "right")
    for which, f in figures.items():
        table.add_row(which, f"{f['cpu_s']:.0f}", str(f["versions"]), f"{f['cpu_s'] / figures['numba']['cpu_s']:.2f}")
    Console().print(table)
    if target is not None:
        write_json(target, figures | {"provenance": provenance(seed=None, trace=None)})


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))

"""Write the sessions of a named workload's part to a trace file, so that whatever takes files can be trained on them.

`protocol.py` tests on the part `test`; what is trained on the part `train` of the same workload never saw its sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from saga_rl.errors import UserError
from saga_rl.files import check_target


def main(
    name: Annotated[str, Argument(help="Workload, as in docs/how-to/evaluate.md.")],
    out: Annotated[Path, Option("--out", "-o", help="Trace file to write (.parquet or .jsonl).")],
    part: Annotated[str, Option(help="train, validation or test.")] = "train",
    data: Annotated[str, Option(help="Folder of recorded collections, for weka, katas and mooncake.")] = "",
) -> None:
    """Write a part of a named workload to a trace file."""
    from saga_rl.aeg.io import write_trace
    from saga_rl.learn.judge.workloads import workload

    if data and not Path(data).is_dir():
        raise UserError(data, "is no folder", "name the folder of recorded collections after --data")
    check_target(out)
    trace = workload(name, data=data or None).split(part)
    write_trace(trace, out)
    Console().print(f"{out}: {trace.n_sessions:,} sessions, {trace.n_steps:,} steps", highlight=False)

"""A server under load for hours, and under faults: does memory grow, are blocks lost, does any request fail?

    python benchmarks/soak.py [--scene hours --scene killed ...] [--hours 8] [--time-scale 32] [--per-min 10]
        [--engines 2] [--policy auto] [--seed 1] [--out runs/soak]

Real vLLM servers on emulated devices, one a scene, invariants walked after each step. `hours`: `--hours` of the
device's time, of which `--time-scale` pass in a real one, `--per-min` sessions in a minute of it. The other scenes are
faults under load (`soak_kit/scenes.py`), a minute each. Prints a table of all scenes; OUT gets `soak.json`, `soak.md`
and the servers' logs. The exit status is 1 if a request failed that had not begun to answer, or a block was lost.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from soak_kit import hours as hours_kit
from soak_kit.load import ANSWERED, BROKEN, LEFT, UNBEGUN
from soak_kit.scenes import SCENES
from typer import Option

from saga_rl.errors import UserError, unknown_name
from saga_rl.files import write_json
from saga_rl.learn.script import check_range, run_script
from saga_rl.provenance import provenance
from saga_rl.report.tables import markdown

HOURS = "hours"
COLUMNS = ("scene", "fault", "requests", "answered", "failed unbegun", "broken", "left by client", "sent again",
           "not conserved")


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A scene's row of the table."""
    c = row["counts"]
    fault = "; ".join(row.get("said", ())) or f"{row['hours']:.1f} h"
    return [name, fault, *(f"{c[k]:,}" for k in ("requests", ANSWERED, UNBEGUN, BROKEN, LEFT, "sent again")),
            "; ".join(row["not conserved"]) or "none"]


def memory_cells(row: dict[str, Any]) -> list[list[str]]:
    return [[n, f"{m['half']:.1f}", f"{m['end']:.1f}", f"{m['per_hour']:+.2f}"] for n, m in row["memory"].items()]


def show(console: Console, title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main(
    scene: Annotated[list[str] | None, Option(help=f"{HOURS}, {', '.join(SCENES)}; all unless given.")] = None,
    hours: Annotated[float, Option(help="Of the device's time, in the scene of that name.")] = 8.0,
    time_scale: Annotated[float, Option(help="Seconds of the device in a real one, there.")] = 32.0,
    per_min: Annotated[float, Option(help="Sessions in a minute of the device's, there.")] = 10.0,
    engines: Annotated[int, Option(help="There.")] = 2,
    policy: Annotated[str, Option(help="Preset.")] = "auto",
    seed: Annotated[int, Option(help="Of the load and the faults.")] = 1,
    out: Annotated[Path, Option(help="Folder for figures and logs.")] = Path("runs/soak"),
) -> None:
    """Serve under load and faults, and count."""
    check_range("--engines", engines, 1, 64)
    for what, value in (("--hours", hours), ("--time-scale", time_scale), ("--per-min", per_min)):
        if not value > 0:
            raise UserError(what, f"is {value:g}", "give a number above 0")
    names = scene or [HOURS, *SCENES]
    for name in names:
        if name not in (HOURS, *SCENES):
            raise unknown_name("scene", name, [HOURS, *SCENES])
    out.mkdir(parents=True, exist_ok=True)
    console, rows = Console(width=160), {}
    for name in names:
        console.print(f"scene {name}", highlight=False)
        rows[name] = hours_kit.run(out / name, hours=hours, scale=time_scale, per_min=per_min, policy=policy,
                                   engines=engines, seed=seed) if name == HOURS else SCENES[name](
                                       out / name, seed, policy)
        write_json(out / "soak.json", {"measured": True, "policy": policy, "time_scale": time_scale, "rows": rows,
                                       "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
                                       "provenance": provenance(seed=seed, trace=None)})
        report(out, rows, console)
    sys.exit(any(r["counts"][UNBEGUN] or r["not conserved"] for r in rows.values()))


def report(out: Path, rows: dict[str, Any], console: Console) -> None:
    """Print the tables so far, and write them to soak.md."""
    text = [cells(n, r) for n, r in rows.items()]
    show(console, "requests", list(COLUMNS), text)
    md = markdown(COLUMNS, text) + "\n"
    if HOURS in rows:
        r = rows[HOURS]
        head = ["process", "MiB at half time", "MiB at the end", "MiB an hour"]
        show(console, "resident memory", head, memory_cells(r))
        facts = (f"{r['cores']:.2f} cores used; sessions began {r['late_p99_ms']:.0f} ms late at P99; an answer took "
                 f"{r['answer_median_s']:.1f} s of the device's (median; P99 {r['answer_p99_s']:.0f} s)")
        console.print(facts, highlight=False)
        md += f"\n{markdown(head, memory_cells(r))}\n\n{facts}\n"
    (out / "soak.md").write_text(md)


if __name__ == "__main__":
    run_script(main)

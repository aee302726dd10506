"""What `saga-rl aeg` measures, over several workloads and notions of an agent type, side by side.

    python benchmarks/aeg/accuracy.py [--data DIR] [--theta 0.7] [--out DIR]

Where a trace has several tenants, also: the one with most steps, then the second, as a change of habits. Prints tables,
writes `accuracy.json` and `accuracy-WORKLOAD.svg` (agent types by the finest notion that the trace allows).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from workloads import workloads

from saga_rl.aeg.inference.picture import draw
from saga_rl.aeg.inference.stream import TYPES
from saga_rl.aeg.trace import Trace
from saga_rl.cli.aeg import measure
from saga_rl.errors import run_user_command
from saga_rl.files import check_target, write_json
from saga_rl.provenance import provenance

Row = Callable[[dict[str, Any]], Any]


def _of(part: str, *keys: str) -> Row:
    def read(tier: dict[str, Any]) -> Any:
        value = tier[part]
        for key in keys:
            value = value and value[key]
        return value

    return read


TABLES: dict[str, tuple[tuple[str, str, Row], ...]] = {
    "next tool": (
        ("of", "{:,}", _of("next_tool", "n")), ("right", "{:.3f}", _of("next_tool", "accuracy")),
        ("sure, share", "{:.3f}", _of("next_tool", "coverage")),
        ("sure, right", "{:.3f}", _of("next_tool", "accuracy_at_theta")),
        ("most frequent", "{:.3f}", _of("next_tool", "majority")),
        ("same again", "{:.3f}", _of("next_tool", "same_tool_again")),
        ("before a last step", "{:.3f}", _of("next_tool", "accuracy_before_a_last_step")),
        ("elsewhere", "{:.3f}", _of("next_tool", "accuracy_elsewhere"))),
    "gaps, ends and observations": (
        ("<= P50", "{:.3f}", _of("gap", "share_within", "p50")),
        ("<= P90", "{:.3f}", _of("gap", "share_within", "p90")),
        ("<= P95", "{:.3f}", _of("gap", "share_within", "p95")), ("PIT error", "{:.3f}", _of("gap", "largest_error")),
        ("last steps", "{:.4f}", _of("end", "share")), ("Brier", "{:.4f}", _of("end", "brier")),
        ("of the share", "{:.4f}", _of("end", "brier_of_share")),
        ("obs. error", "{:.2f}", _of("observation", "by_tool", "median_relative_error")),
        ("all tools", "{:.2f}", _of("observation", "all_tools", "median_relative_error"))),
}


def show(results: list[dict[str, Any]], console: Console) -> None:
    """Ends presumed, cold and warm; agent types by each notion that tells more than one apart from the session's."""
    for title, columns in TABLES.items():
        table = Table(title=f"{title}; ends presumed", title_justify="left")
        for column in ("workload", "agent type by", "tier", "steps", *(c for c, _, _ in columns)):
            table.add_column(column, justify="left" if column in ("workload", "agent type by", "tier") else "right")
        for r in results:
            for tier in ("cold", "warm"):
                part = r["arms"]["presumed"][tier]
                if part["steps"]:
                    values = ((form, read(part)) for _, form, read in columns)
                    table.add_row(r["name"], f"{r['types']} ({r['agent_types']})", tier, f"{part['steps']:,}",
                                  *("-" if v is None else form.format(v) for form, v in values))
        console.print(table)
    table = Table(title=f"gaps {results[0]['slow']:g} x as long from the middle on: returns until P95 is within 10 %",
                  title_justify="left")
    for column in ("workload", "tool", "P95 before, s", "after, s", "returns", "of"):
        table.add_column(column, justify="left" if column in ("workload", "tool") else "right")
    for r in results:
        if r["types"] == "session":
            for tool, row in r["drift"]["slow"]["p95"].items():
                table.add_row(r["name"], tool, f"{row['before_s']:.3g}", f"{row['level_s']:.3g}",
                              "never" if row["returns"] is None else str(row["returns"]), f"{row['returns_after']:,}")
    console.print(table)
    for r in results:
        row = r["drift"].get("then", {}).get("next_tool")
        if row:
            back = "never" if row["steps"] is None else f"after {row['steps']:,}"
            console.print(f"{r['name']}, types by {r['types']}: {row['steps_after']:,} steps of {r['then']} follow. "
                          f"Next tool right: {row['before']:.3f} before, {row['first_run']:.3f} at first (100 steps); "
                          f"tables without a past reach {row['level']:.3f}, these {row['later']:.3f}, and are within "
                          f"10 % of it {back} steps", highlight=False)


def tenants_apart(trace: Trace) -> tuple[Trace, Trace] | None:
    """The sessions of the two tenants with most steps: what a change from one habit to another looks like."""
    by_tenant = np.bincount(trace.sessions.tenant[trace.steps.session], minlength=len(trace.tenants))
    if len(by_tenant) < 2:
        return None
    first, second = (int(k) for k in np.argsort(-by_tenant, kind="stable")[:2])
    parts = [trace.select(np.flatnonzero(trace.sessions.tenant == k), trace.tenants[k]) for k in (first, second)]
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real traces: adds katas and weka")
    parser.add_argument("--theta", type=float, default=0.7, help="confidence of an edge (0.7)")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    check_target(args.out / "accuracy.json")
    results: list[dict[str, Any]] = []
    with Console(stderr=True).status("reading") as status:
        for name, trace in workloads(args.data):
            finest = None
            for types in TYPES:
                status.update(f"{name}, agent types by {types}")
                result = measure(trace, theta=args.theta, types=types) | {"name": name}
                if types == "session" or result["agent_types"] > len(trace.agent_types):
                    results.append(result)
                    finest = result
                    parts = tenants_apart(trace)
                    if parts:
                        follows = measure(parts[0], theta=args.theta, types=types, then=parts[1])
                        result["drift"]["then"], result["then"] = follows["drift"]["then"], parts[1].meta.name
            if finest:
                draw(finest, args.out / f"accuracy-{name}.svg")
    write_json(args.out / "accuracy.json", {"workloads": results, "provenance": provenance(seed=0, trace=None)})
    show(results, Console(width=None if sys.stdout.isatty() else 170))


if __name__ == "__main__":
    run_user_command(main)

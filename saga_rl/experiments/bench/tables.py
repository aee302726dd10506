"""The result as rows of text, for a terminal, a page and markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from saga_rl.experiments.bench.arms import STOCK

HEAD = ("arm", "completion", "of stock", "P95", "of stock", "first token", "P95", "again", "cached", "a minute",
        "of stock", "runs")
TENANT_HEAD = ("tenant", "arm", "completion", "P95", "first token", "P95", "again")
NOTE = ("completion: mean seconds from a session's start to its last answer, tools included. first token: from when a "
        "request could be sent. again: prompt tokens computed that an unlimited cache would have had, thousands a run. "
        "cached: of the prompts. of stock: mean over repeats over stock's, in brackets a 95 % bootstrap interval of "
        "paired sessions; one that holds 1 shows nothing.")


def rows(arms: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells as `HEAD` names them."""
    return [[name, _n(a.get("tct_mean_s"), 1), _r(name, a["of_stock"]), _n(a.get("tct_p95_s"), 1),
             _r(name, a["of_stock_p95"]), _n(a.get("ttft_mean_s"), 2), _n(a.get("ttft_p95_s"), 1),
             _k(a.get("recomputed_tokens")), _percent(a.get("hit_share")),
             _n(a.get("throughput_sessions_per_min"), 2), _r(name, a["of_stock_throughput"]),
             str(a["repeats"]) + (f" ({a['failed_runs']} failed)" if a["failed_runs"] else "")]
            for name, a in arms.items()]


def tenant_rows(arms: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells as `TENANT_HEAD` names them; none where there is one tenant."""
    tenants = sorted({t for a in arms.values() for t in a["tenants"]})
    if len(tenants) < 2:
        return []
    return [[t, name, _n(f.get("tct_mean_s"), 1), _n(f.get("tct_p95_s"), 1), _n(f.get("ttft_mean_s"), 2),
             _n(f.get("ttft_p95_s"), 1), _k(f.get("recomputed_tokens"))]
            for t in tenants for name, a in arms.items() if (f := a["tenants"].get(t))]


def _n(x: float | None, digits: int) -> str:
    return "-" if x is None else f"{x:,.{digits}f}"


def _k(x: float | None) -> str:
    return "-" if x is None else f"{x / 1000:,.0f}"


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{x:.1%}"


def _r(arm: str, r: Mapping[str, float | None]) -> str:
    if arm == STOCK:
        return "1"
    if r["mean"] is None:
        return "-"
    return f"{r['mean']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] is not None else "")


def title(result: Mapping[str, Any]) -> str:
    """What the figures are of, `emulated` first."""
    source = result["provenance"]
    kind = f"EMULATED devices ({source['profile']})" if source["device"] == "emulated" else "real devices"
    return f"saga-rl bench: measured on {kind}"


def table(head: Sequence[str], cells: Sequence[Sequence[str]], heading: str) -> Table:
    """For a terminal."""
    out = Table(title=heading, title_justify="left", padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        out.add_column(name, justify="left" if i == 0 or name == "arm" else "right", no_wrap=True)
    for row in cells:
        out.add_row(*row)
    return out


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """For a page in a repository."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
                      *("| " + " | ".join(row) + " |" for row in cells)])

"""The result as rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_rl.experiments.bench.arms import STOCK
from saga_rl.report.tables import interval, or_dash

SECONDS = "{:,.1f}"
HEAD = ("arm", "completion", "of stock", "P95", "of stock", "first token", "P95", "again", "cached", "a minute",
        "of stock", "runs")
TENANT_HEAD = ("tenant", "arm", "completion", "P95", "first token", "P95", "again")
NOTE = ("completion: mean seconds from a session's start to its last answer, tools included. first token: from when a "
        "request could be sent. again: prompt tokens computed that an unlimited cache would have had, thousands a run. "
        "cached: of the prompts. of stock: mean over repeats over stock's, in brackets a 95 % bootstrap interval of "
        "paired sessions; one that holds 1 shows nothing.")


def rows(arms: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells as `HEAD` names them."""
    return [[name, or_dash(a.get("tct_mean_s"), SECONDS), _r(name, a["of_stock"]), or_dash(a.get("tct_p95_s"), SECONDS),
             _r(name, a["of_stock_p95"]), or_dash(a.get("ttft_mean_s"), "{:,.2f}"),
             or_dash(a.get("ttft_p95_s"), SECONDS), or_dash(a.get("recomputed_tokens"), "{:,.0f}", 1e-3),
             or_dash(a.get("hit_share"), "{:.1%}"), or_dash(a.get("throughput_sessions_per_min"), "{:,.2f}"),
             _r(name, a["of_stock_throughput"]),
             str(a["repeats"]) + (f" ({a['failed_runs']} failed)" if a["failed_runs"] else "")]
            for name, a in arms.items()]


def tenant_rows(arms: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells as `TENANT_HEAD` names them; none where there is one tenant."""
    tenants = sorted({t for a in arms.values() for t in a["tenants"]})
    if len(tenants) < 2:
        return []
    return [[t, name, or_dash(f.get("tct_mean_s"), SECONDS), or_dash(f.get("tct_p95_s"), SECONDS),
             or_dash(f.get("ttft_mean_s"), "{:,.2f}"), or_dash(f.get("ttft_p95_s"), SECONDS),
             or_dash(f.get("recomputed_tokens"), "{:,.0f}", 1e-3)]
            for t in tenants for name, a in arms.items() if (f := a["tenants"].get(t))]


def _r(arm: str, r: Mapping[str, float | None]) -> str:
    return "1" if arm == STOCK else interval(r["mean"], r["low"], r["high"])


def title(result: Mapping[str, Any]) -> str:
    """What the figures are of, `emulated` first."""
    source = result["provenance"]
    kind = f"EMULATED devices ({source['profile']})" if source["device"] == "emulated" else "real devices"
    return f"saga-rl bench: {'played in virtual time' if source.get('virtual') else 'measured'} on {kind}"

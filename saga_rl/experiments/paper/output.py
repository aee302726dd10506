"""What a reproduction leaves: `result.json`, `tables.md`, `completion.svg`, one page, and tables on screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.experiments.paper import values as paper
from saga_rl.experiments.paper.arms import arm_of
from saga_rl.experiments.paper.judge import AGREES, HIGHER, LOWER, OPEN, RULE
from saga_rl.experiments.paper.run import Outcome
from saga_rl.experiments.paper.tables import TABLES
from saga_rl.files import atomic, write_json
from saga_rl.provenance import provenance
from saga_rl.report.html import Page
from saga_rl.report.pictures import forest
from saga_rl.report.style import PALETTE, dress, new_figure, svg
from saga_rl.report.tables import interval, markdown, terminal

HEADER = ("", "paper", "ours", "verdict")
ARMS_SHOWN = ("vllm", "vllm-uncached", "sglang", "llumnix", "kvflow", "saga-written", "saga-read", "saga", "likely",
              "auto", "breadth-first")


def write_all(o: Outcome, out: Path, console: Console) -> None:
    """Every file of the result, whole or not at all, and the tables."""
    about = provenance(seed=0, trace=None, code_sha256=o.code, profiles=list(o.settings.profiles), kind="simulated",
                       paper=paper.SOURCE)
    result = {"points": o.points, "tables": o.rows, "rule": RULE, "seeds": o.settings.seeds,
              "quick": o.settings.quick, "provenance": about}
    write_json(out / "result.json", result)
    with atomic(out / "tables.md") as tmp:
        tmp.write_text("\n".join(_markdown(o)), encoding="utf-8")
    page = Page("SAGA's tables, reproduced in the simulator", about)
    page.text(f"For readers of the paper ({paper.SOURCE}). Each row stands beside the paper's own value. {RULE}."
              " In the first table, met: our mean is at least as good as what the paper claims.")
    for profile in o.settings.profiles:
        page.heading(f"The cluster: {paper.WORKERS} workers of {profile}")
        page.text(_point_text(o, profile))
        if "completion" in o.settings.tables:
            picture = svg(draw(o, profile))
            with atomic(out / f"completion-{profile}.svg") as tmp:
                tmp.write_bytes(picture)
            page.picture(picture, "Completion time over vLLM's: ours with intervals, crosses are the paper's")
        for name in o.settings.tables:
            page.text(f"{name}: {TABLES[name].title}")
            page.table(HEADER, rows_of(o, profile, name))
    page.heading("What stands for what")
    page.table(("arm", "is"), [(name, arm_of(name).says) for name in ARMS_SHOWN])
    page.write(out / "index.html")
    _show(o, console)
    console.print(f"page: {out / 'index.html'}", markup=False, soft_wrap=True)


def rows_of(o: Outcome, profile: str, name: str) -> list[list[str]]:
    """The rows of one table as text."""
    return [[r["row"], f"{r['paper']:.2f}", "" if r["value"] is None else interval(r["value"], r["low"], r["high"]),
             r["verdict"] + (f": {r['why']}" if r["why"] else "")] for r in o.rows[profile][name]]


def _point_text(o: Outcome, profile: str) -> str:
    if not o.points[profile]:
        return "No table here wants a chosen memory pressure."
    places = [f"{w}: {p['alive']} alive, {p['lru_over_belady']:.2f} (paper {p['paper']:.2f})"
              for w, p in o.points[profile].items()]
    return ("Memory pressure: so many sessions alive on a worker that LRU over Bélády is nearest the paper's. "
            + "; ".join(places) + ".")


def count(o: Outcome) -> dict[str, int]:
    """Rows by verdict, but the headline's, which are met or not."""
    every = [r["verdict"] for tables in o.rows.values() for name, rows in tables.items() if name != "headline"
             for r in rows]
    return {v: every.count(v) for v in (AGREES, LOWER, HIGHER, OPEN)}


def _markdown(o: Outcome) -> list[str]:
    out = []
    for profile in o.settings.profiles:
        out += [f"## {profile}", "", _point_text(o, profile), ""]
        for name in o.settings.tables:
            out += [f"**{name}**: {TABLES[name].title}", "", markdown(HEADER, rows_of(o, profile, name)), ""]
    return [*out, ", ".join(f"{v}: {n}" for v, n in count(o).items()), ""]


def draw(o: Outcome, profile: str) -> Any:
    """Completion times over vLLM's: intervals of ours, the paper's values as crosses."""
    rows = [r for r in o.rows[profile]["completion"] if r["value"] is not None]
    figure = new_figure(8.4, 0.32 * len(rows) + 1.2)
    axes = figure.subplots()
    forest(axes, [r["row"] for r in rows], [(r["value"], r["low"], r["high"]) for r in rows], PALETTE[:1] * len(rows),
           8)
    axes.plot([r["paper"] for r in rows], range(len(rows)), "x", color=PALETTE[1], markersize=6)
    dress(axes, f"{profile}: left of the line is faster than vLLM", "completion time over vLLM's", "")
    return figure


def _show(o: Outcome, console: Console) -> None:
    for profile in o.settings.profiles:
        console.print(f"{profile}. {_point_text(o, profile)}", markup=False, soft_wrap=True)
        for name in o.settings.tables:
            console.print(terminal(HEADER, rows_of(o, profile, name), f"{name}: {TABLES[name].title}",
                                   left=("verdict",)))
    console.print(", ".join(f"{v}: {n}" for v, n in count(o).items()) + f" (all rows but the headline's). {RULE}.",
                  markup=False, soft_wrap=True, highlight=False)

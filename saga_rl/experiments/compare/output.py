"""What an experiment leaves behind: cells.parquet, summary.json, four pictures, index.html, and tables on screen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from saga_rl.experiments.compare import pictures, tables
from saga_rl.experiments.compare.page import write_page
from saga_rl.experiments.compare.run import Outcome
from saga_rl.experiments.compare.settings import FIRST_SEED
from saga_rl.experiments.compare.summary import summarise
from saga_rl.files import atomic, write_json
from saga_rl.provenance import provenance
from saga_rl.report.style import svg
from saga_rl.report.tables import terminal

PICTURES = ("capacity.svg", "load-mean.svg", "load-p95.svg", "load-curves.svg", "fairness.svg")


def write_all(o: Outcome, out: Path, console: Console) -> None:
    """Every file of the result, whole or not at all, and the tables."""
    summary = summarise(o)
    files = o.plan.digests
    summary["provenance"] = provenance(seed=FIRST_SEED, trace=None, code_sha256=o.plan.code, trace_files_sha256=files,
                                       profile=o.plan.s.profile)
    write_cells(o, out / "cells.parquet")
    write_json(out / "summary.json", summary)
    drawn = draw(summary)
    for name in PICTURES:
        if name in drawn:
            with atomic(out / name) as tmp:
                tmp.write_bytes(drawn[name])
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier run that had this part
    write_page(summary, drawn, out / "index.html")
    show(summary, console)
    console.print(f"page: {out / 'index.html'}", markup=False, soft_wrap=True)


def draw(summary: dict[str, Any]) -> dict[str, bytes]:
    """File name -> SVG of every picture that there is something to show on."""
    figures = {}
    if any(not r["low_pressure"] and r["vs_belady"] for r in summary["eviction"]):
        figures["capacity.svg"] = pictures.over_belady(summary)
    if any(r["role"] not in ("reference", "stock") for r in summary["load"]):
        figures["load-mean.svg"] = pictures.over_stock(summary, "mean_vs_stock")
        figures["load-p95.svg"] = pictures.over_stock(summary, "p95_vs_stock")
    if summary["load"]:
        figures["load-curves.svg"] = pictures.against_load(summary)
    if summary["fairness"]:
        figures["fairness.svg"] = pictures.fairness(summary)
    return {name: svg(figure) for name, figure in figures.items()}


def write_cells(o: Outcome, path: Path) -> None:
    """One row a reported cell: what it is, its figures, and `cpu_s`, what it took of one core; nested values as JSON.
    """
    rows: list[dict[str, Any]] = []
    for key, cell in o.cells.items():
        if key in o.final:
            spec = {k: v if isinstance(v, int | float | str) else json.dumps(v, sort_keys=True)
                    for k, v in cell.spec.items()}
            figures = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in o.final[key].items()}
            rows.append({"part": key[0], "key": cell.key, **spec, **figures, "cpu_s": o.seconds[cell.key]})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with atomic(path) as tmp:
        pq.write_table(table, tmp, compression="zstd")


def show(summary: dict[str, Any], console: Console) -> None:
    """The overview tables: everything else stands on the page."""
    wide = console if console.is_terminal else Console(width=150, file=console.file)
    marks = "+ better, - worse, = no difference shown, ? too few pairs"
    if summary["eviction"]:
        wide.print(_terminal(f"eviction at P1: tokens computed again / Bélády; against lru: {marks}",
                             *tables.eviction_overview(summary)))
    for load in dict.fromkeys(r["load"] for r in summary["load"]):
        wide.print(_terminal(f"load {load:g}: mean completion time / stock: {marks}",
                             *tables.load_overview(summary, load)))
    for trace, load in dict.fromkeys((r["trace"], r["load"]) for r in summary["fairness"]):
        header, rows = tables.fairness_table(summary, trace, load)
        keep = [i for i, name in enumerate(header) if name not in tables.PAGE_ONLY]
        wide.print(_terminal(f"fairness: {trace}, load {load:g}", [header[i] for i in keep],
                             [[row[i] for i in keep] for row in rows]))
    for line in summary["left_out"]:
        wide.print(f"left out: {line}", markup=False)


def _terminal(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return terminal(header, rows, title, ("arm", "constraints"), min_width=78)

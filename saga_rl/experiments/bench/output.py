"""What a measurement leaves behind: result.json, one page, and tables on screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.experiments.bench import pictures, tables
from saga_rl.experiments.bench.arms import INFINITE
from saga_rl.experiments.bench.judge import judge
from saga_rl.experiments.bench.plan import Plan, described
from saga_rl.experiments.bench.record import Runs, runs_of, starts_of
from saga_rl.experiments.journal import Journal
from saga_rl.files import write_json
from saga_rl.provenance import commit
from saga_rl.report.html import Page
from saga_rl.report.pictures import shares
from saga_rl.report.style import png
from saga_rl.report.tables import terminal

RESULT, PAGE = "result.json", "index.html"


def result_of(plan: Plan, journal: Journal) -> dict[str, Any]:
    """The value of result.json. Raises `UserError` where nothing was measured yet."""
    s, runs, starts = plan.settings, runs_of(journal), starts_of(journal)
    if not runs:
        raise UserError(journal.path, "has no run yet", "leave out --report")
    last = starts[-1]
    commits = sorted({start["commit"] for start in starts})
    return {
        "arms": judge([a.name for a in s.arms], s.repeats, runs, s.seed),
        "complete": all((a.name, r) in runs for a in s.arms for r in range(s.repeats)),
        "busy_runs": 0 if s.virtual else sum(1 for run in runs.values() if run["load"] > run.get("cores", run["load"])),
        "trace_quality": {name: rest.shares for name, rest in plan.material.rests_on.items()},
        "settings": {**plan.head().what, "repeats": s.repeats, "says": {a.name: a.says for a in s.arms}},
        "provenance": {k: v for k, v in last.items() if k not in ("kind", "load", "trace_sha256")} | {
            "commits": commits, "report_commit": commit(), "trace_sha256": list(plan.digests),
            "traces": [Path(t).name for t in s.traces], "weights": plan.weights}}


def report(plan: Plan, journal: Journal, folder: Path, console: Console) -> None:
    """Write result.json and the page, and print the tables."""
    result = result_of(plan, journal)
    write_json(folder / RESULT, result)
    runs = runs_of(journal)
    write_page(plan, runs, result, folder / PAGE)
    wide = console if console.is_terminal else Console(width=160, file=console.file)
    wide.print(terminal(tables.HEAD, tables.rows(result["arms"]), tables.title(result), no_wrap=True))
    if cells := tables.tenant_rows(result["arms"]):
        wide.print(terminal(tables.TENANT_HEAD, cells, f"{tables.title(result)}, by tenant", ("arm",),
                            no_wrap=True))
    wide.print(tables.NOTE, markup=False, highlight=False)
    for warning in (busy(result, len(runs)), *doubts(plan)):
        if warning:
            wide.print(warning, style="yellow", highlight=False)
    if not result["complete"]:
        wide.print("runs are missing: the same command goes on", style="yellow")
    wide.print(f"page: {folder / PAGE}", markup=False, soft_wrap=True, highlight=False)


def busy(result: dict[str, Any], runs: int) -> str:
    """A sentence where the machine was too busy for its figures to be quoted."""
    n = result["busy_runs"]
    return "" if not n else (f"{n} of {runs} runs ended at a load above the machine's cores: waiting for a core is in "
                             "their figures")


def doubts(plan: Plan) -> list[str]:
    """A sentence for each trace whose completion times rest on what was not recorded."""
    return [f"{name}: {rest.doubts}" for name, rest in plan.material.rests_on.items() if rest.doubts]


def write_page(plan: Plan, runs: Runs, result: dict[str, Any], path: Path) -> None:
    """The one page, self-contained."""
    arms, s = result["arms"], plan.settings
    emulated = s.emulate is not None
    kind = "virtual time" if s.virtual else "measured, emulated devices" if emulated else "measured"
    page = Page(tables.title(result), result["provenance"] | {"settings": result["settings"]})
    if emulated:
        device = result["provenance"]
        real = "schedulers and KV managers are real and no server runs" if s.virtual else (
            "servers, schedulers and KV managers are real")
        page.text(f"Every figure here is of EMULATED devices{' in virtual time' if s.virtual else ''}: vLLM's {real}, "
                  f"and each step takes as long as the cost profile {device['profile']} ({device['profile_kind']}; "
                  f"{device['gpu']}) says. No model was computed. Seconds are the device's.")
    for sentence in described(plan):
        page.text(sentence, small=True)
    for warning in (busy(result, len(runs)), *doubts(plan)):
        if warning:
            page.text(warning)
    page.heading("Against stock vLLM")
    page.picture(png(pictures.of_stock(arms, kind)), f"Ratio of mean completion time to stock's with 95 % intervals "
                 f"({kind}). A dot is one repeat; an interval that holds 1 shows nothing.")
    page.table(tables.HEAD, tables.rows(arms))
    page.text(tables.NOTE, small=True)
    page.table(("arm", "what it is"), [[name, result["settings"]["says"][name]] for name in arms])
    page.heading("Completion")
    page.picture(png(shares(_seconds(plan, runs, list(arms)), kind)),
                 f"Sessions of all repeats ({kind}).")
    page.heading("First token, and tokens computed again")
    page.picture(png(pictures.bars(arms, kind)), f"Means over repeats ({kind}).")
    held = {name: h for name in arms if name != INFINITE and (run := runs.get((name, 0)))
            and (h := run.get("held")) and h["time_s"]}
    if held and plan.pool:
        page.heading("KV by session over time")
        capacity = s.engines * (plan.pool + s.cpu_tokens)
        page.picture(png(pictures.kv(held, capacity, kind)),
                     "First repeat. What each session held at least, as its requests tell: what a step found cached "
                     "had stayed since the step before it. Colours repeat; a text that sessions share counts for each. "
                     "The line: all pools"
                     + (" and CPU tiers (stock has none)" if s.cpu_tokens else "") + f" ({kind}).")
    if cells := tables.tenant_rows(arms):
        page.heading("By tenant")
        page.text(f"Seconds and thousand tokens, {kind}.", small=True)
        page.table(tables.TENANT_HEAD, cells)
    page.write(path)


def _seconds(plan: Plan, runs: Runs, arms: list[str]) -> dict[str, list[float]]:
    return {arm: [t for r in range(plan.settings.repeats) if (run := runs.get((arm, r))) and not run["failed"]
                  for t in run["tct_s"].values()] for arm in arms}

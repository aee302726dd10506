"""The commands `saga-rl trace ...`: make, import, look at, check, split and scale traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from saga_rl.errors import UserError
from saga_rl.files import write_json

if TYPE_CHECKING:
    from saga_rl.aeg.trace import Trace

app = typer.Typer(no_args_is_help=True, help="Make, import, check, look at and split traces of AI agents' LLM calls.")
OUT = typer.Option(..., "--out", "-o", help="The trace file to write (Parquet).")
SEED = typer.Option(0, help="The same seed gives the same trace.")


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _written(trace: Trace, out: Path) -> None:
    from saga_rl.aeg.io import write_trace

    write_trace(trace, out)
    _say(f"{out}: {trace.n_sessions:,} sessions, {trace.n_steps:,} steps, "
         f"{int(trace.steps.prompt_tokens.sum()):,} prompt tokens")


@app.command("generate")
def generate_command(
    name: str = typer.Argument(..., help="Workload: burstgpt, coding, hetero, shift, swe-bench, webarena."),
    out: Path = OUT,
    seed: int = SEED,
    sessions: int | None = typer.Option(None, help="Sessions; the workload's own number unless given."),
    rate_per_min: float | None = typer.Option(None, help="Poisson arrivals a minute, all tenants together."),
    max_context: int | None = typer.Option(None, help="Tokens of context at which an agent compacts (131072)."),
    hitl_share: float | None = typer.Option(None, help="Share of tool calls after which a human is waited for (0)."),
    deadline_per_step_s: float | None = typer.Option(
        None, help="Give each session a deadline: its gaps and this many seconds a step after its arrival."),
    period_s: float | None = typer.Option(None, help="shift: seconds that a mix and its rate last (1800)."),
    phases: int | None = typer.Option(None, help="shift: mixes before the first comes again (4)."),
    unattended_share: float | None = typer.Option(None, help="coding: share of sessions that no human attends (.5)."),
) -> None:
    """Write a synthetic workload: with the figures of the SAGA paper, of kinds of agents that end in different ways
    (hetero), of coding agents with sub-agents (coding), or of mixes that change (shift)."""
    from saga_rl.aeg.generators import generate

    own = {k: v for k, v in {"period_s": period_s, "phases": phases,
                            "unattended_share": unattended_share}.items() if v is not None}
    _written(generate(name, seed, sessions=sessions, rate_per_min=rate_per_min, max_context=max_context,
                      hitl_share=hitl_share, deadline_per_step_s=deadline_per_step_s, **own), out)


@app.command("import")
def import_command(
    fmt: str = typer.Argument(..., metavar="FORMAT", help="Format: claude-code, jsonl, katas, mooncake, weka."),
    path: Path = typer.Argument(..., help="File (for claude-code also a folder) to read; .gz is read as it is."),
    out: Path = OUT,
    rate_per_min: float | None = typer.Option(
        None, help="Lay arrivals out anew, as a Poisson stream; else the recorded ones (weka has none: 8)."),
    seed: int | None = typer.Option(None, help="Seed of laid-out arrivals (0)."),
    limit: int | None = typer.Option(None, help="Read only the first N sessions (mooncake: requests)."),
    hash_block_tokens: int | None = typer.Option(None, help="jsonl: tokens that one of hash_ids stands for (16)."),
    tenant: str | None = typer.Option(None, help="claude-code: the tenant to file the sessions under (default)."),
) -> None:
    """Turn recorded traffic into a trace. What is left out is counted and printed."""
    from saga_rl.aeg.importers import import_trace

    err = Console(stderr=True)
    bar = Progress(TextColumn("importing"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
                   console=err, transient=True, disable=not err.is_terminal)  # in a log it would leave an empty line
    task = bar.add_task("importing", total=None)
    with bar:
        trace = import_trace(fmt, path, rate_per_min=rate_per_min, seed=seed, limit=limit, tenant=tenant,
                             hash_block_tokens=hash_block_tokens,
                             progress=lambda done, total: bar.update(task, completed=done, total=total))
    _written(trace, out)
    for what, counts in (("left out", trace.meta.dropped), ("assumed", trace.meta.notes.get("mended", {}))):
        for reason, n in counts.items():
            _say(f"  {what}: {n:,} {reason.replace('_', ' ')}")


@app.command("stats")
def stats_command(
    file: Path = typer.Argument(..., help="A trace file."),
    json_out: Path | None = typer.Option(None, "--json", help="Also write the figures to this file."),
) -> None:
    """Print what a trace holds: counts, quantiles, gaps by tool, and the share of prompts that a cache could serve."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.stats import stats

    figures = stats(read_trace(file))
    if json_out is not None:
        write_json(json_out, figures)
    console = Console()
    plain = Table("figure", "value", title=f"{figures['name']} ({figures['source']})", title_justify="left")
    for key, value in figures.items():
        if not isinstance(value, dict) and key not in ("name", "source"):
            plain.add_row(key.replace("_", " "), _shown(value))
    for key in ("tenants", "agent_types"):
        plain.add_row(key.replace("_", " "), ", ".join(f"{k}: {n:,}" for k, n in list(figures[key].items())[:12]))
    console.print(plain)
    spread = Table("distribution", "n", "mean", "p5", "p50", "p95", "p99", "max")
    rows: dict[str, Any] = {k: figures[k] for k in ("steps_per_session", "prompt_tokens", "output_tokens",
                                                    "context_tokens", "appended_tokens", "tool_s_all", "think_s")}
    rows |= {f"tool_s {k}": v for k, v in sorted(figures["tool_s"].items(), key=lambda kv: -kv[1]["calls"])[:12]}
    for name, q in rows.items():
        if q:
            spread.add_row(name.replace("_", " "), _shown(q.get("calls", "")),
                           *(_shown(q[k]) for k in ("mean", "p5", "p50", "p95", "p99", "max")))
    console.print(spread)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else ("-" if value is None else str(value))


@app.command("validate")
def validate_command(
    file: Path = typer.Argument(..., help="A trace file."),
    model_len: int | None = typer.Option(None, min=1, help="Also check that every context fits this model length."),
    kv_tokens: int | None = typer.Option(None, min=1, help="Also check that every step fits a KV pool of this many."),
) -> None:
    """Check a trace; the first problem is named with session, step and field, and the exit status is 2."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.validate import check_fits

    trace = read_trace(file)
    try:
        check_fits(trace, model_len, kv_tokens)
    except UserError as e:
        raise UserError(file, f"{e.where} {e.cause}", e.mend) from None
    _say(f"{file}: valid, {trace.n_sessions:,} sessions, {trace.n_steps:,} steps")


@app.command("split")
def split_command(
    file: Path = typer.Argument(..., help="A trace file."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the parts, PART.parquet each; made if need be."),
    fractions: str = typer.Option("train=.7,val=.15,test=.15", help="Shares of the sessions, PART=SHARE,..."),
    seed: int = SEED,
) -> None:
    """Split by group of sessions, so that no part has seen another's content."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.split import split

    parts = split(read_trace(file), _fractions(fractions), seed)
    if not out.is_dir():
        if out.exists() or not out.parent.is_dir():
            raise UserError(out, "is no folder, and cannot be made one", "name a folder in a folder that exists")
        out.mkdir()
    for name, part in parts.items():
        _written(part, out / f"{name}.parquet")


def _fractions(text: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for item in text.split(","):
        name, eq, value = item.strip().partition("=")
        try:
            share = float(value)
        except ValueError:
            share = float("nan")
        if not eq or share != share or name in out:
            raise UserError("--fractions", f"{item!r} is not a new PART=SHARE",
                            "write for example train=.7,val=.15,test=.15")
        out[name] = share
    return out


@app.command("scale")
def scale_command(
    file: Path = typer.Argument(..., help="A trace file."),
    out: Path = OUT,
    factor: float = typer.Option(..., help="Every length is multiplied by this."),
    max_context: int | None = typer.Option(None, help="Refuse if a context is longer than this afterwards."),
    time_factor: float = typer.Option(1.0, help="Every time is multiplied by this."),
) -> None:
    """Scale lengths (and times) so that long sessions fit a small model; nothing is cut off."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.scale import scale_lengths

    _written(scale_lengths(read_trace(file), factor, max_context, time_factor), out)


def register(parent: typer.Typer) -> None:
    """Add `trace` to the program."""
    parent.add_typer(app, name="trace")

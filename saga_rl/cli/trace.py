"""The commands `saga-rl trace ...`: make, import, look at, check, split and scale traces."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from saga_rl.errors import UserError
from saga_rl.files import check_target, write_json

if TYPE_CHECKING:
    from saga_rl.aeg.importers.reading.left_out import LeftOut
    from saga_rl.aeg.trace import Trace

app = typer.Typer(no_args_is_help=True, help="Make, import, check, look at and split traces of AI agents' LLM calls.")
OUT = typer.Option(..., "--out", "-o", help="The trace file to write (Parquet).")
FORMATS = ("azure, bailian, burstgpt, chats, claude-code, codex, copilot-2026, dynamo, gemini-cli, jsonl, katas, "
           "langfuse, litellm, lmcache, mooncake, opencode, openhands, otel-genai, swe-agent, tracelab, "
           "vllm-multi-turn, weka")
TABLE_ROWS = 20
SEED = typer.Option(0, help="The same seed gives the same trace.")


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _written(trace: Trace, out: Path) -> None:
    from saga_rl.aeg.io import write_trace

    write_trace(trace, out)
    _report(trace, out)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A SIGTERM ends like Ctrl-C, so that what is half-written is removed."""
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(trace: Trace, out: Path) -> None:
    _say(f"{out}: {trace.n_sessions:,} sessions, {trace.n_steps:,} steps, "
         f"{int(trace.steps.prompt_tokens.sum()):,} prompt tokens")


@app.command("generate")
def generate_command(
    name: str = typer.Argument(..., help="Workload: burstgpt, coding, hetero, retry, shift, swe-bench, "
                                              "tree-of-thought, webarena."),
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
    branches: int | None = typer.Option(None, help="tree-of-thought: agents that go on from one context (4)."),
    keep: int | None = typer.Option(None, help="tree-of-thought: agents of a level that go on (2)."),
    levels: int | None = typer.Option(None, help="tree-of-thought: most levels of a session (4)."),
    fail_share: float | None = typer.Option(None, help="retry: share of tool calls that fail (.3)."),
    fail_again_share: float | None = typer.Option(None, help="retry: share of calls after a failed one that fail, too "
                                                  "(.6)."),
    attempts: int | None = typer.Option(None, help="retry: failed calls after which the agent goes back to before the "
                                        "first of them (3)."),
) -> None:
    """Write a synthetic workload: with the figures of the SAGA paper, of kinds of agents that end in different ways
    (hetero), of coding agents with sub-agents (coding), of mixes that change (shift), of agents that branch and join
    (tree-of-thought), or whose tools fail (retry)."""
    from saga_rl.aeg.generators import generate

    own = {k: v for k, v in {
        "period_s": period_s, "phases": phases, "unattended_share": unattended_share, "branches": branches,
        "keep": keep, "levels": levels, "fail_share": fail_share, "fail_again_share": fail_again_share,
        "attempts": attempts}.items() if v is not None}
    _written(generate(name, seed, sessions=sessions, rate_per_min=rate_per_min, max_context=max_context,
                      hitl_share=hitl_share, deadline_per_step_s=deadline_per_step_s, **own), out)


@app.command("import")
def import_command(
    words: list[str] = typer.Argument(..., metavar="PATH", help="Files, folders or patterns to read, "
                                      "plain, .gz or .zst. Their format is found by content."),
    out: Path = OUT,
    fmt: str | None = typer.Option(None, "--format", help="Read them as: " + FORMATS + "."),
    rate_per_min: float | None = typer.Option(
        None, help="Lay arrivals out anew, as a Poisson stream; else the recorded ones (8 where there are none)."),
    seed: int | None = typer.Option(None, help="Seed of laid-out arrivals (0)."),
    limit: int | None = typer.Option(None, help="Read only the first N sessions (of formats of requests: requests)."),
    strict: bool = typer.Option(False, "--strict", help="Refuse the first record that cannot be read."),
    lenient: bool = typer.Option(False, "--lenient", help="Leave out any share of records that cannot be read, not "
                                                          "only a tenth."),
    hash_block_tokens: int | None = typer.Option(None, help="jsonl, mooncake, bailian: tokens that one of hash_ids "
                                                            "stands for (jsonl: 16; else found from the lengths)."),
    tenant: str | None = typer.Option(None, help="Agents' own histories: the tenant to file them under (default)."),
    tokenizer: str | None = typer.Option(None, help="Formats with text: a tokenizer.json or a folder that holds one; "
                                                    "else 4 characters a token."),
) -> None:
    """Turn recorded traffic into a trace. What is left out, what is assumed and what was recorded is printed."""
    from saga_rl.aeg.importers import DAMAGED, imported
    from saga_rl.aeg.importers.registry import format_named
    from saga_rl.aeg.io import write_trace
    from saga_rl.aeg.quality import sentence

    err = Console(stderr=True)
    if fmt is None and len(words) > 1 and not Path(words[0]).exists() and words[0].replace("-", "").isalnum():
        fmt, words = words[0], words[1:]
    if fmt is not None:
        format_named(fmt)
    check_target(out)
    bar = Progress(TextColumn("importing"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
                   console=err, transient=True, disable=not err.is_terminal)  # in a log it would leave an empty line
    task = bar.add_task("importing", total=None)
    with bar, _terminated_as_interrupted():
        done = imported(fmt, words if len(words) > 1 else words[0], rate_per_min=rate_per_min, seed=seed, limit=limit,
                        tenant=tenant, hash_block_tokens=hash_block_tokens, tokenizer=tokenizer, strict=strict or None,
                        lenient=lenient or None,
                        progress=lambda done, total: bar.update(task, completed=done, total=total))
        write_trace(done.trace, out)
    _report(done.trace, out)
    _say(f"  format: {done.format.name}{'' if fmt else ' (found by content)'}")
    for what, counts in (("left out", done.trace.meta.dropped), ("assumed", done.trace.meta.notes.get("mended", {}))):
        for reason, n in counts.items():
            if not reason.startswith(DAMAGED):
                _say(f"  {what}: {n:,} {reason.replace('_', ' ')}")
    _say(f"  quality: {sentence(done.trace)}")
    if done.left.rows:
        _show_left_out(done.left, Path(words[0]) if len(words) == 1 else None)


def _show_left_out(left: LeftOut, named: Path | None) -> None:
    """named: the one path that was given; of a folder, files are called by what comes below it."""
    table = Table(Column("file", overflow="fold"), "first line", "how many", Column("cause", overflow="fold"),
                  title="records that could not be read and were left out", title_justify="left")
    for (file, cause), (n, line) in list(left.rows.items())[:TABLE_ROWS]:
        below = named is not None and named.is_dir() and Path(file).is_relative_to(named)
        table.add_row(escape(str(Path(file).relative_to(named)) if below and named else file), str(line), f"{n:,}",
                      escape(cause))
    if len(left.rows) > TABLE_ROWS:
        table.add_row("...", "", "", f"{len(left.rows) - TABLE_ROWS:,} further files and causes")
    Console().print(table)


@app.command("stats")
def stats_command(
    file: Path = typer.Argument(..., help="A trace file."),
    json_out: Path | None = typer.Option(None, "--json", help="Also write the figures to this file."),
) -> None:
    """Print what a trace holds: counts, quantiles, gaps by tool, and the share of prompts that a cache could serve."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.quality import sentence
    from saga_rl.aeg.stats import stats

    trace = read_trace(file)
    figures = stats(trace)
    if json_out is not None:
        write_json(json_out, figures)
    console = Console()
    plain = Table("figure", "value", title=f"{figures['name']} ({figures['source']})", title_justify="left")
    elsewhere = ("name", "source", "quality", "think_s")  # of these the last two are dicts or nothing
    for key, value in figures.items():
        if not isinstance(value, dict) and key not in elsewhere:
            plain.add_row(key.replace("_", " "), _shown(value))
    for key in ("tenants", "agent_types"):
        plain.add_row(key.replace("_", " "), ", ".join(f"{k}: {n:,}" for k, n in list(figures[key].items())[:12]))
    plain.add_row("quality", sentence(trace))
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

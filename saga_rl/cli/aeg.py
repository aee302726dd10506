"""`saga-rl aeg`: how well the agents' graphs are inferred from a trace's request stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.errors import UserError
from saga_rl.files import check_target, write_json
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.provenance import provenance

if TYPE_CHECKING:
    from saga_rl.aeg.trace import Trace

ARMS = {"hinted": True, "presumed": False}
"""How a chain's end is known: the client says it, or silence is taken for it."""


def measure(trace: Trace, *, theta: float = 0.7, types: str = "session", expiry_s: float = EXPIRY_S, slow: float = 4.0,
            then: Trace | None = None, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """JSON-ready: `arms` (hinted, presumed ends) -> tier -> scores (`infer_score.score`); `drift`: `adaptation` to gaps
    `slow` times as long from the middle on, and to the trace `then` after this one. Raises `UserError`."""
    from saga_rl.aeg.inference.drift import adaptation
    from saga_rl.aeg.inference.predict import predictions
    from saga_rl.aeg.inference.score import score
    from saga_rl.aeg.inference.stream import joined, slowed, stream

    if not 0.0 < theta <= 1.0:
        raise UserError("--theta", f"is {theta:g}", "give a confidence above 0 and at most 1")
    for name, value in (("--expiry-s", expiry_s), ("--slow", slow)):
        if not 0.0 < value < math.inf:
            raise UserError(name, f"is {value:g}", "give a finite number above 0")
    if trace.n_steps == 0:
        raise UserError("the trace", "holds no step", "give one with at least one call")
    s = stream(trace, types)
    arms = {}
    for arm, hints in ARMS.items():
        say(f"{trace.n_steps:,} steps, ends {arm}")
        arms[arm] = score(s, predictions(s, hints=hints, expiry_s=expiry_s)[0], theta)
    say("a change in the middle")
    drift = {"slow": adaptation(*slowed(s, slow))}
    if then is not None:
        drift["then"] = adaptation(*joined(s, stream(then, types)))
    return {"name": trace.meta.name, "source": trace.meta.source, "sessions": trace.n_sessions, "steps": trace.n_steps,
            "chains": len(s.session), "agent_types": len(s.types), "tools": len(s.tools), "types": types,
            "theta": theta, "expiry_s": expiry_s, "slow": slow,
            "then": None if then is None else then.meta.name, "arms": arms, "drift": drift}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a person reads of `measure`'s result."""
    return [_scores(result), _drift(result)]


def _scores(result: dict[str, Any]) -> Table:
    table = Table(title=f"AEG inference on {result['name']}: {result['steps']:,} steps, {result['chains']:,} chains, "
                        f"{result['agent_types']:,} agent types", title_justify="left",
                  caption="cold: of the agent type fewer than 30 chains are known to have ended. hinted, presumed: how "
                          "an end is known.", caption_justify="left")
    columns = [(arm, tier) for arm in result["arms"] for tier in ("cold", "warm")]
    table.add_column("figure", no_wrap=True)
    for arm, tier in columns:
        table.add_column(f"{arm}\n{tier}", justify="right")
    theta = result["theta"]
    for name, part, key, form in (
            ("steps", None, "steps", "{:,}"),
            ("next tool right", "next_tool", "accuracy", "{:.3f}"),
            (f"  sure (>= {theta:g}), share", "next_tool", "coverage", "{:.3f}"),
            ("  right where sure", "next_tool", "accuracy_at_theta", "{:.3f}"),
            ("  the most frequent one", "next_tool", "majority", "{:.3f}"),
            ("  the same one again", "next_tool", "same_tool_again", "{:.3f}"),
            ("gaps within predicted P50", "gap", "p50", "{:.3f}"),
            ("gaps within predicted P90", "gap", "p90", "{:.3f}"),
            ("gaps within predicted P95", "gap", "p95", "{:.3f}"),
            ("  largest calibration error", "gap", "largest_error", "{:.3f}"),
            ("last steps, share", "end", "share", "{:.4f}"),
            ("  Brier score", "end", "brier", "{:.4f}"),
            ("  Brier score of the share", "end", "brier_of_share", "{:.4f}"),
            ("observation, relative error", "by_tool", "median_relative_error", "{:.2f}"),
            ("  by the mean of all tools", "all_tools", "median_relative_error", "{:.2f}")):
        cells = []
        for arm, tier in columns:
            cell: Any = result["arms"][arm][tier]
            if part in ("by_tool", "all_tools"):
                cell = cell["observation"] and cell["observation"][part]
            elif part:
                cell = cell[part]
            if cell and key in ("p50", "p90", "p95"):
                cell = cell["share_within"]
            value = cell[key] if cell else None
            cells.append("-" if value is None else form.format(value))
        table.add_row(name, *cells)
    return table


def _drift(result: dict[str, Any]) -> Table:
    table = Table(title="after a change: how many returns (steps) until within 10 % of the level without a past",
                  title_justify="left")
    for column in ("change", "what", "before", "level after", "until back", "of"):
        table.add_column(column, justify="left" if column in ("change", "what") else "right")
    for change, figures in result["drift"].items():
        label = f"gaps x {result['slow']:g}" if change == "slow" else f"then {result['then']}"
        for name, r in figures["p95"].items():
            table.add_row(label, f"P95 after {name}", f"{r['before_s']:.3g} s", f"{r['level_s']:.3g} s",
                          _count(r["returns"]), f"{r['returns_after']:,} returns")
        r = figures["next_tool"]
        if r and change != "slow":  # slower tools are the same tools
            table.add_row(label, "next tool right", f"{r['before']:.3f}", f"{r['level']:.3f}", _count(r["steps"]),
                          f"{r['steps_after']:,} steps")
    return table


def _count(n: int | None) -> str:
    return "never" if n is None else f"{n:,}"


def _aeg(
    trace: Annotated[Path, typer.Argument(help="A trace file (see `saga-rl trace`).")],
    theta: Annotated[float, typer.Option(help="Confidence from which a predicted next tool counts as an edge.")] = 0.7,
    types: Annotated[str, typer.Option(help="What counts as an agent type: session, agent, text.")] = "session",
    expiry_s: Annotated[float, typer.Option(help="Silence after which a chain is presumed to have ended.")] = EXPIRY_S,
    slow: Annotated[float, typer.Option(help="Drift: gaps last so many times as long from the middle on.")] = 4.0,
    then: Annotated[Path | None, typer.Option(help="Drift: a second trace that follows this one.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them to this file (SVG).")] = None,
) -> None:
    """Measure what is inferred of agents' behaviour online: next tools, times, ends; cold, warm, and after a change."""
    from saga_rl.aeg.inference.picture import draw
    from saga_rl.aeg.io import read_trace

    check_target(json_out)
    check_target(plot)
    with Console(stderr=True).status("reading; the first run compiles for a minute") as status:
        result = measure(read_trace(trace), theta=theta, types=types, expiry_s=expiry_s, slow=slow,
                         then=read_trace(then) if then else None, say=status.update)
    if json_out is not None:
        write_json(json_out, {**result, "provenance": provenance(seed=None, trace=trace)})
    if plot is not None:
        draw(result, plot)
    Console().print(*tables(result))


def register(app: typer.Typer) -> None:
    """Add the command `aeg`."""
    app.command("aeg")(_aeg)

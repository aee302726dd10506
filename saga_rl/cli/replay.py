"""`saga-rl replay TRACE --url URL`: drive an OpenAI-compatible server with a trace and report what was measured."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.files import check_target, write_json
from saga_rl.provenance import provenance


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(replay)


def replay(
    trace: Path = typer.Argument(..., help="Trace file (saga-rl trace generate | import)."),
    url: str = typer.Option(..., help="Address of an OpenAI-compatible server."),
    speed: float = typer.Option(1.0, help="Divides arrivals, tool times and think times."),
    model: str | None = typer.Option(None, help="Model to ask for; default: the first that the server serves."),
    concurrency: int | None = typer.Option(
        None, min=1, help="Sessions at a time; default: sessions start at their arrival times."),
    max_sessions: int | None = typer.Option(None, min=1, help="Play only the first sessions."),
    hints: bool = typer.Option(
        True, help="Send session_id and the saga hints; servers that refuse unknown fields need --no-hints."),
    agentic_context: bool = typer.Option(
        False, "--agentic-context", help="Name sessions and sub-agents in vLLM Router's vllm_xargs.agentic_context; "
                                         "send no hints of ours."),
    ends: bool = typer.Option(True, help="Tell an agent's last request (saga_final)."),
    next_tool: bool = typer.Option(True, help="Tell the tool that an answer will call (saga_next_tool)."),
    salt: str = typer.Option("", help="Replays with different salts share no cached block."),
    block_tokens: int | None = typer.Option(
        None, min=1, help="The server's KV block size, to tell first-time tokens from tokens computed again; default: "
                          "what the server says, else 16."),
    api_key: str | None = typer.Option(None, envvar="OPENAI_API_KEY", help="Bearer token."),
    json_out: Path | None = typer.Option(None, "--json", help="Write the figures here."),
    record_trace: Path | None = typer.Option(None, help="Write the trace with the measured times here."),
) -> None:
    """Drive an OpenAI-compatible server with a trace, closed loop, tool waits included."""
    import asyncio

    import numpy as np

    from saga_rl.aeg.io import read_trace, write_trace
    from saga_rl.aeg.quality import doubts
    from saga_rl.replay.run import progress_bar, recorded_trace, run_replay, summary

    if agentic_context and not hints:
        raise UserError("--agentic-context", "names sessions, and --no-hints says that nobody does", "leave one out")
    if not speed > 0:
        raise UserError("--speed", f"{speed} is not above 0", "1 plays in real time, 10 ten times as fast")
    check_target(json_out)
    check_target(record_trace)
    loaded = read_trace(trace)
    if max_sessions is not None and max_sessions < loaded.n_sessions:
        loaded = loaded.select(np.arange(max_sessions))
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        result, measured = asyncio.run(run_replay(
            loaded, url, model=model, speed=speed, concurrency=concurrency, api_key=api_key, hints=hints, ends=ends,
            next_tool=next_tool, salt=salt, block_tokens=block_tokens, agentic_context=agentic_context,
            progress=progress))
    result["provenance"] = provenance(seed=None, trace=trace, url=url, speed=speed, concurrency=concurrency)
    if json_out is not None:
        write_json(json_out, result)
    if record_trace is not None:
        write_trace(recorded_trace(loaded, measured, url, speed), record_trace)
    Console().print(summary(result))
    if doubt := doubts(loaded):
        console.print(f"{trace.name}: {doubt}", style="yellow", markup=False, soft_wrap=True)
    if result["filled_outputs"]:
        console.print(f"note: {result['filled_outputs']} answers came without token ids; later prompts continue "
                      "with filler, so their cached tokens are a lower bound", style="yellow")
    for line in result["errors"]:
        console.print(f"failed: {line}", style="red", markup=False)
    if result["sessions_failed"]:
        raise typer.Exit(1)

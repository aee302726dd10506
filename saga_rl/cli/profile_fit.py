"""`saga-rl profile fit URL`: fit the simulator's cost profile to a running server."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from saga_rl.cli.profile import app
from saga_rl.files import check_target


def register(program: typer.Typer) -> None:
    """Add `fit` to `saga-rl profile`, which the program has."""
    app.command("fit")(fit_command)


def fit_command(
    url: str = typer.Argument(..., help="Address of a running OpenAI-compatible server, otherwise idle."),
    out: Path = typer.Option(..., "-o", "--out", help="Write the profile here (JSON)."),
    kv_tokens: int = typer.Option(..., min=1, help="KV pool of one engine, tokens, as the server logs it."),
    engines: int = typer.Option(1, min=1, help="Data-parallel size of the server."),
    max_batched_tokens: int = typer.Option(2048, min=1, help="The server's --max-num-batched-tokens."),
    max_num_seqs: int = typer.Option(16, min=1, help="The server's --max-num-seqs, if it is less than 16."),
    model: str | None = typer.Option(None, help="Model to ask for; default: the first served."),
    repeats: int = typer.Option(2, min=1, help="Times each situation is run; the least time counts."),
    api_key: str | None = typer.Option(None, envvar="OPENAI_API_KEY", help="Key of the server."),
) -> None:
    """Fit the simulator's cost profile to a running server."""
    import asyncio

    from saga_rl.replay.calibrate import LEFT_OUT, measure, profile_from
    from saga_rl.sim.cost.fit import error_table

    check_target(out)
    out_console, err = Console(), Console(stderr=True, highlight=False)
    batches = [b for b in (1, 4, 16) if b <= max_num_seqs]
    with err.status("calibrating") as status:
        def say(text: str) -> None:
            if text.startswith(LEFT_OUT):
                err.print(text, markup=False, style="yellow")
            else:
                status.update(text)

        samples = asyncio.run(measure(url, engines=engines, model=model, max_batched_tokens=max_batched_tokens,
                                      repeats=repeats, api_key=api_key, batches=batches, kv_tokens=kv_tokens, say=say))
    profile = profile_from(samples, out.stem, kv_tokens, max_batched_tokens, url=url)
    profile.save(out)
    out_console.print(error_table(f"{out.stem}: error of the fit", profile.provenance["error_by_region"]))
    out_console.print(f"{out}: root mean square relative error {profile.provenance['relative_error_rms']:.1%} "
                      f"over {len(samples)} situations", soft_wrap=True)

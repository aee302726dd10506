"""Commands of the runtime: `serve`, `merge-recording` and `replay`. vLLM is imported only when one runs."""

from __future__ import annotations

from pathlib import Path

import typer

from saga_rl.errors import UserError
from saga_rl.runtime.replay import replay_command


def register(app: typer.Typer) -> None:
    """Add the runtime's commands to `app`."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    app.command(name="merge-recording")(merge_recording)
    replay_command(app)


def serve(
    ctx: typer.Context,
    model: str = typer.Argument(help="Model name or folder, as `vllm serve` takes it. All other vLLM flags follow it."),
    policy: str = typer.Option("saga+", help="lru, saga, saga+, a checkpoint's folder, or stock (vLLM, no hooks)."),
    record: Path | None = typer.Option(None, help="Write everything served to this trace file (Parquet) at exit."),
    expiry_s: float = typer.Option(300.0, help="Presume that a session silent for so many seconds has ended."),
    metrics: Path | None = typer.Option(None, help="Folder for the counters of engines and router (JSON)."),
    allow_untested: bool = typer.Option(False, help="Try a vLLM version outside the tested range."),
) -> None:
    """Serve MODEL with vLLM's OpenAI server under a scheduling policy."""
    from saga_rl.runtime.config import SagaConfig, read_config
    from saga_rl.runtime.serve import serve as run

    if model.startswith("-"):
        raise UserError("serve", f"got the flag {model} where the model should stand",
                        "write `saga-rl serve MODEL --policy NAME [vLLM flags]`")
    config = SagaConfig(policy=policy, record=str(record) if record else None, expiry_s=expiry_s,
                        metrics=str(metrics.resolve()) if metrics else None, allow_untested=allow_untested)
    read_config({"saga": config.as_dict()})
    run(model, list(ctx.args), config)


def merge_recording(
    journals: Path = typer.Argument(help="The folder FILE.journal that `serve --record FILE` left behind."),
    out: Path = typer.Option(..., "--output", "-o", help="Trace file to write."),
    keep: bool = typer.Option(False, help="Keep the journals."),
) -> None:
    """Make one trace of the journals that a crashed or killed server left behind."""
    from saga_rl.runtime.recording import merge

    trace = merge(journals, out, keep)
    typer.echo(f"{out}: {trace.n_sessions} sessions, {trace.n_steps} steps")

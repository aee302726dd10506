"""`saga-rl serve`. vLLM is imported only when it runs."""

from __future__ import annotations

from pathlib import Path

import typer

from saga_rl.errors import UserError
from saga_rl.policies.parameters import DEFAULT_PRESET, EXPIRY_S


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def serve(
    ctx: typer.Context,
    model: str | None = typer.Argument(None, help="Model name or folder, as `vllm serve` takes it. All other vLLM "
                                       "flags follow it."),
    ray: Path | None = typer.Option(None, metavar="FILE", help="In place of MODEL: serve what this file of Ray Serve "
                                    "says, with our scheduler and router filled in."),
    policy: str = typer.Option(DEFAULT_PRESET, help="auto (safe to install: acts where memory is short), likely, saga+ "
                               "(clients say when a session ends), saga, lru, a checkpoint's folder, or stock (vLLM, "
                               "no hooks)."),
    record: Path | None = typer.Option(None, help="Write everything served to this trace file (Parquet) at exit."),
    expiry_s: float = typer.Option(EXPIRY_S, help="Presume that a session silent for so many seconds has ended."),
    metrics: Path | None = typer.Option(None, help="Folder for the counters of engines and router (JSON)."),
    statistics: Path | None = typer.Option(
        None, help="Folder in which engines keep over restarts what they learned of tools and agent types."),
    events: bool = typer.Option(False, help="Structured logs: one JSON line an event on standard error."),
    service_gap: float | None = typer.Option(
        None, help="Constraint: service of tenants that wait lies at most about so many tokens apart."),
    kv_floor: list[str] = typer.Option(
        [], metavar="[TENANT=]SHARE", help="Constraint: share of each engine's KV that other tenants leave to it, such "
        "as team-a=0.2; without a name, to every tenant not named. May be repeated."),
    afs_preempt: float | None = typer.Option(
        None, help="Constraint: a request that has waited for so many seconds makes one of a tenant with a lower Agent "
        "Fair Share yield; SAGA has 0.5."),
    allow_untested: bool = typer.Option(False, help="Try a vLLM version outside the tested range."),
    lazy_offload: bool = typer.Option(False, "--lazy-offload", help="With vLLM's --kv-offloading-size: CPU memory "
                                      "holds what the GPU is about to lose, and nothing twice."),
    emulate: str | None = typer.Option(
        None, metavar="PROFILE", help="Serve without a GPU: a cost profile says how long each step takes "
        "(`saga-rl profile list`). Answers mean nothing."),
    time_scale: float | None = typer.Option(
        None, help="With --emulate: seconds of the device in one real second [default: 1]."),
    kv_tokens: int | None = typer.Option(None, help="With --emulate: the KV pool, tokens [default: the profile's]."),
) -> None:
    """Serve MODEL with vLLM's OpenAI server under a scheduling policy."""
    from saga_rl.runtime.config.emulated import Settings, checked
    from saga_rl.runtime.config.settings import STOCK, SagaConfig, read_config, read_floors
    from saga_rl.runtime.launch.lazy_offload import lazily
    from saga_rl.runtime.launch.serve import serve as run
    from saga_rl.runtime.ray import serve_file

    if (model is None) == (ray is None):
        raise UserError("serve", "wants a model, or --ray FILE" if model is None else "got a model and --ray",
                        "write `saga-rl serve MODEL [vLLM flags]`, or `saga-rl serve --ray FILE`")
    if model is not None and model.startswith("-"):
        raise UserError("serve", f"got the flag {model} where the model should stand",
                        "write `saga-rl serve MODEL --policy NAME [vLLM flags]`")
    config = SagaConfig(policy=policy, record=str(record) if record else None, expiry_s=expiry_s,
                        metrics=str(metrics.resolve()) if metrics else None, service_gap_tokens=service_gap,
                        kv_floors=read_floors(kv_floor), afs_preempt_s=afs_preempt, events=events,
                        statistics=str(statistics.resolve()) if statistics else None, allow_untested=allow_untested)
    read_config({"saga": config.as_dict()})
    for flag, value in (("--time-scale", time_scale), ("--kv-tokens", kv_tokens)):
        if value is not None and emulate is None:
            raise UserError(flag, "is given without --emulate", "add --emulate PROFILE, or leave it out")
    device = None if emulate is None else Settings(emulate, 1.0 if time_scale is None else time_scale, kv_tokens)
    if model is not None:
        run(model, lazily(ctx.args, policy == STOCK) if lazy_offload else list(ctx.args), config, device)
        return
    if lazy_offload:
        raise UserError("--lazy-offload", "is for one server, and Ray's file says what its engines do",
                        "name the connector under engine_kwargs.kv_transfer_config")
    if ctx.args:
        raise UserError(f"flag {ctx.args[0]}", "is vLLM's, and under Ray they stand in the file",
                        "write it under engine_kwargs")
    if record is not None:
        raise UserError("--record", "writes one server's trace, and Ray starts several",
                        "name a folder of its own under additional_config.saga.record of each model")
    assert ray is not None
    serve_file.run(ray, config, None if device is None else checked(device))

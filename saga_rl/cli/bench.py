"""`saga-rl bench`: the options. Whatever is heavy is imported when the command runs."""

from __future__ import annotations

import difflib
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import EXIT_INTERRUPTED, UserError
from saga_rl.policies.parameters import EXPIRY_S


def _bench(
    ctx: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="TRACE... [VLLM FLAGS]", help="Trace files; of several, each is "
                                               "a tenant with an even share. vLLM's flags stand last.")],
    out: Annotated[Path, typer.Option(help="Folder of the measurement: made, or resumed where it left off.")],
    arms: Annotated[str, typer.Option(help="Commas between: stock, stock+tier, stock+lazy, sticky, priority, "
                                      "router, router-program, saga, saga+, likely, auto, a checkpoint's folder, "
                                      "infinite. Default: all of the named ones.")] = "",
    emulate: Annotated[str | None, typer.Option(metavar="PROFILE", help="Without a GPU: a cost profile says how long "
                                                "each step takes (`saga-rl profile list`).")] = None,
    model: Annotated[str | None, typer.Option(help="Model name or folder; with --emulate a folder or shape, default: "
                                              "the profile's.")] = None,
    profile: Annotated[str | None, typer.Option(help="Cost profile of real devices, for --load and router-program.")]
    = None,
    engines: Annotated[int, typer.Option(help="Engines of each arm.")] = 2,
    kv_tokens: Annotated[int | None, typer.Option(help="KV pool of one engine, tokens; default: the profile's.")]
    = None,
    cpu_tokens: Annotated[int, typer.Option(help="CPU tier of one engine, KV tokens: of all arms but stock and "
                                            "infinite; stock+tier is vLLM's own. 0 = none.")] = 0,
    lazy_offload: Annotated[bool, typer.Option("--lazy-offload", help="Under our policies the tier holds what the GPU "
                                               "is about to lose, as `serve --lazy-offload`.")] = False,
    window: Annotated[int | None, typer.Option(help="Longest context, tokens; default: the model's.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sessions alive at once.")] = None,
    load: Annotated[float | None, typer.Option(help="Instead: as many as want so many times the KV of all pools.")]
    = None,
    repeats: Annotated[int, typer.Option(help="Of every arm; sessions are drawn anew for each.")] = 3,
    sessions: Annotated[int | None, typer.Option(help="Sessions of a run; default: all.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="MIN-MAX", help="Only sessions of so many steps.")] = None,
    longest_wait_s: Annotated[float | None, typer.Option(help="Only sessions whose tools take no longer in all.")]
    = None,
    drop_long: Annotated[bool, typer.Option(help="Leave out sessions that fit the window or the pool not.")] = False,
    ends: Annotated[bool, typer.Option(help="Clients say which request is an agent's last.")] = False,
    time_scale: Annotated[float, typer.Option(help="With --emulate: device seconds in one real second.")] = 1.0,
    virtual: Annotated[bool, typer.Option("--virtual", help="With --emulate: vLLM's schedulers in virtual time, no "
                                          "servers; figures do not depend on this machine's speed.")] = False,
    expiry_s: Annotated[float, typer.Option(help="Silence after which our servers presume a session to be over.")]
    = EXPIRY_S,
    agentx: Annotated[bool, typer.Option(help="AgentX's protocol: a salt a user (nothing is shared between sessions), "
                                         "a first call of as many as are alive, a quiet time, then the run.")] = False,
    quiet_s: Annotated[float, typer.Option(help="Of --agentx, seconds.")] = 10.0,
    at_once: Annotated[int | None, typer.Option(min=1, help="Kinds of servers up at once; default: what memory "
                                                "allows, 1 on real ones; runs of --virtual.")] = None,
    ray: Ray = "",
    seed: Annotated[int, typer.Option(help="Of the sessions drawn and the order of arms.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run, and end.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Show what the folder has; nothing is run.")] = False,
    fresh: Annotated[bool, typer.Option(help="Begin anew; what the folder holds is moved aside.")] = False,
) -> None:
    """Compare ways of serving the same sessions on real vLLM servers, with or without GPUs (docs/how-to/bench.md)."""
    from saga_rl.experiments.bench.arms import chosen
    from saga_rl.experiments.bench.run import run
    from saga_rl.experiments.bench.settings import Settings
    from saga_rl.experiments.place import place

    traces, flags = _split([*words, *ctx.args], [p for param in ctx.command.params for p in param.opts])
    settings = Settings(
        chosen(arms, cpu_tokens > 0, virtual), tuple(traces), emulate, model, profile, engines, kv_tokens, cpu_tokens,
        window, concurrency, load, repeats, sessions, _range(steps), longest_wait_s, drop_long, ends, time_scale,
        expiry_s, seed, agentx, quiet_s, tuple(flags), virtual, lazy_offload)
    if ray and not virtual:
        raise UserError("--ray", "is given without --virtual", "add --virtual: servers run on this machine only")
    if ray and at_once is not None:
        raise UserError("--ray and --at-once", "are both given", "give one of the two")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with place(at_once or 0, "" if plan or report else ray, out) as chosen_place:
            run(settings, out, chosen_place or None, plan, report, fresh)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: finished runs are kept in {out}, the same command goes on from there", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _split(words: list[str], ours: list[str]) -> tuple[list[str], list[str]]:
    """Traces, and vLLM's flags after them. Raises `UserError` for a flag that is one of ours, misspelled."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    for word in words[first:]:
        near = difflib.get_close_matches(word.partition("=")[0], ours, n=1, cutoff=0.85)
        if word.startswith("--") and near:
            raise UserError(word, "is no option of saga-rl bench", f"did you mean {near[0]}?")
    if not first:
        raise UserError("TRACE", "is missing", "name a trace file first; vLLM's flags stand last")
    return words[:first], words[first:]


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, dash, high = text.partition("-")
    if not dash or not low.isdigit() or not high.isdigit() or not 1 <= int(low) <= int(high):
        raise UserError("--steps", f"is {text!r}", "write two numbers, such as 4-40")
    return int(low), int(high)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_bench)

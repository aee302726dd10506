"""`saga-rl learn`: a policy for one's own traffic, in one command."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import EXIT_INTERRUPTED, UserError, unknown_name
from saga_rl.policies.parameters import DEFAULT_PROFILE, EXPIRY_S

if TYPE_CHECKING:
    from saga_rl.learn.own.settings import Settings

PACKAGES = ("cma", "matplotlib")
SMALL = "Of a search, for tests."


def _learn(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE", help="A trace file, or files, folders or patterns "
                                                 "that `saga-rl trace import` knows by their content.")],
    out: Annotated[Path, typer.Option(help="Folder for the policy, its card and its page; made if absent. The same "
                                      "command goes on there after a stop.")],
    quick: Annotated[bool, typer.Option("--quick", help="A shorter search, meant for ten minutes on two idle cores, "
                                        "not an hour.")] = False,
    profile: Annotated[str | None, typer.Option(help="Cost profile of your engines (`saga-rl profile list`), or the "
                                                "file that `saga-rl profile fit` wrote; default: h100-llama3-70b-tp4."
                                                )] = None,
    server: Annotated[str, typer.Option(help="Address of your server, idle, in the place of --profile: its costs are "
                                        "measured in minutes; what it says of pool, window and engines holds where no "
                                        "flag says otherwise.")] = "",
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key of that server.")] = None,
    workers: Annotated[int, typer.Option(help="Engines that share the traffic; 0 = the server's, else 1.")] = 0,
    kv_tokens: Annotated[int, typer.Option(help="KV pool of one engine, tokens; 0 = the profile's.")] = 0,
    cpu_tokens: Annotated[int, typer.Option(help="CPU memory for KV beside one engine, tokens, used as vLLM's "
                                            "offloading does; 0 = none.")] = 0,
    lazy_offload: Annotated[bool, typer.Option("--lazy-offload", help="With --cpu-tokens: our policies use it as "
                                               "`saga-rl serve --lazy-offload` does, vLLM as it is in its own way.")]
    = False,
    window: Annotated[int, typer.Option(help="Longest context of your model, tokens; 0 = the profile's model's if it "
                                        "is known, else the pool. Longer sessions are left out and counted.")] = 0,
    population: Annotated[int, typer.Option(help="Sessions alive at once on all engines; 0 = as many as make vLLM take "
                                            "twice the time of infinite memory.")] = 0,
    load: Annotated[float, typer.Option(help="Open arrivals in the place of a population, so many times as fast as in "
                                        "the trace.")] = 0.0,
    ends: Annotated[bool, typer.Option("--ends/--no-ends", help="Clients say which request is a session's last.")]
    = False,
    expiry_s: Annotated[float, typer.Option(help="As the server's --expiry-s.")] = EXPIRY_S,
    max_num_seqs: Annotated[int, typer.Option(help="As the server's.")] = 256,
    max_batched_tokens: Annotated[int, typer.Option(help="As the server's --max-num-batched-tokens; 0 = the "
                                                    "profile's.")] = 0,
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on where there is no pressure.")] = False,
    seed: Annotated[int, typer.Option(help="The policy follows from it.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes; 0 = one a core.")] = 0,
    ray: Ray = "",
    wandb: Annotated[str, typer.Option(help="disabled, offline (written below --out) or online.")] = "offline",
    project: Annotated[str, typer.Option(help="W&B project.")] = "saga-rl",
    generations: Annotated[int, typer.Option(help=SMALL, hidden=True)] = 0,
    candidates: Annotated[int, typer.Option(help=SMALL, hidden=True)] = 0,
    checks: Annotated[int, typer.Option(help=SMALL, hidden=True)] = 0,
    arrangements: Annotated[int, typer.Option(help=SMALL, hidden=True)] = 0,
    starts: Annotated[int, typer.Option(help=SMALL, hidden=True)] = 0,
) -> None:
    """Learn a policy from a trace of your traffic, in one command (docs/how-to/learn.md).

    Searches, judges on sessions that the search never saw, and writes what was found, or the safe default if that is as
    good, with a page that says what you gain and where you lose."""
    from saga_rl.learn.own.settings import FULL, QUICK, Settings
    from saga_rl.learn.tracking import MODES

    small = {"generations": generations, "candidates": candidates, "checks": checks, "arrangements": arrangements,
             "starts": starts}
    given = {k: v for k, v in small.items() if v}
    spending = replace(QUICK if quick else FULL, **given, **({"llm_steps": 0} if generations else {}))
    s = Settings(profile=DEFAULT_PROFILE if profile is None else profile, workers=workers or 1, kv_tokens=kv_tokens,
                 cpu_tokens=cpu_tokens, lazy_offload=lazy_offload, window=window, population=population, load=load,
                 ends=ends, expiry_s=expiry_s, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens,
                 seed=seed, anyway=anyway, spending=spending)
    for option, value, least in (("--workers", workers, 0), ("--kv-tokens", kv_tokens, 0), ("--window", window, 0),
                                 ("--population", population, 0), ("--load", load, 0), ("--seed", seed, 0),
                                 ("--jobs", jobs, 0), ("--cpu-tokens", cpu_tokens, 0),
                                 ("--max-num-seqs", max_num_seqs, 1), ("--max-batched-tokens", max_batched_tokens, 0)):
        if not (math.isfinite(value) and value >= least):
            raise UserError(option, f"is {value:g}", f"give {least} or more")
    if server and profile is not None:
        raise UserError("--server and --profile", "are both given", "give one of the two")
    if lazy_offload and not cpu_tokens:
        raise UserError("--lazy-offload", "has no memory to use", "give --cpu-tokens too")
    if population and load:
        raise UserError("--population and --load", "are both given", "give one of the two")
    if wandb not in MODES:
        raise unknown_name("--wandb mode", wandb, MODES)
    for package in (*PACKAGES, *(("wandb",) if wandb != "disabled" else ())):
        if find_spec(package) is None:
            raise UserError(f"the package {package}", "is not installed", "install the extra saga-rl[train]" + (
                " or pass --wandb disabled" if package == "wandb" else ""))
    err = Console(stderr=True)
    if server:
        from saga_rl.experiments.journal import state_of
        from saga_rl.learn.own.material import files_of
        from saga_rl.learn.own.run import KIND
        from saga_rl.learn.own.server import settings_of

        files_of(traces)  # says what is wrong before a server is asked
        state_of(out, KIND)
        s = settings_of(s, server.rstrip("/"), out, api_key, workers,
                        lambda text: err.print(text, markup=False, highlight=False, soft_wrap=True))
    _run(traces, s, out, jobs or len(os.sched_getaffinity(0)), ray, wandb, project)


def _run(traces: list[Path], s: Settings, out: Path, jobs: int, ray: str, wandb: str, project: str) -> None:
    from saga_rl.experiments.place import place
    from saga_rl.learn.own.output import write_all
    from saga_rl.learn.own.run import run
    from saga_rl.learn.own.world import config_of
    from saga_rl.sim.config import SimConfig
    from saga_rl.sim.cost.profile import load_profile

    given = config_of(s, s.population)
    SimConfig(profile=load_profile(given.pop("profile")), **given)  # says what is wrong before anything is read
    err = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with place(jobs, ray, out) as chosen:
            outcome = run(traces, s, out, chosen, err, wandb, project)
    except KeyboardInterrupt:
        err.print(f"interrupted: what is finished is kept in {out}, the same command goes on from there" if out.exists()
                  else "interrupted: nothing was written", markup=False, soft_wrap=True)
        sys.exit(EXIT_INTERRUPTED)
    write_all(outcome, out, Console())


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("learn")(_learn)

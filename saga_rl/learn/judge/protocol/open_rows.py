"""Rows of the open loop: how far eviction is from Belady, and where a checkpoint trained on A stands on B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saga_rl.experiments.cell import Result
from saga_rl.learn.judge.protocol.bench import Bench, Place, usable, with_infinite
from saga_rl.learn.judge.protocol.figures import Figure, paired, share
from saga_rl.learn.judge.protocol.settings import TARGETS
from saga_rl.learn.judge.sessions import DEFINED
from saga_rl.policies.learned.checkpoint import load_parts
from saga_rl.policies.presets import PRESETS
from saga_rl.sim.openloop.bound import LOW_PRESSURE

MADE = ("swe", "burst", "web", "swe-hitl", "web-hitl", "hetero", "coding")
HITL = ("swe-hitl", "web-hitl")
ENDS, RETURNS = "ends-known", "returns-known"
"""Told who comes back, not when, and when, not who: what is left to Belady is what the other knowledge is worth."""


def _pressed(runs: Sequence[Result]) -> NDArray[np.bool_]:
    """Arrangements in which Belady computes enough again to divide by."""
    return np.array([r["belady"] >= LOW_PRESSURE * r["first_time"] and r["belady"] > 0 for r in runs])


def _again(runs: Sequence[Result], spec: str) -> list[float]:
    return [max(float(r["recomputed"][spec]), 1.0) for r in runs]


def _belady(runs: Sequence[Result]) -> list[float]:
    return [max(float(r["belady"]), 1.0) for r in runs]


def eviction(b: Bench) -> list[Figure]:
    """Tokens computed again over Belady's at P1; for recorded traces also how much of the gap is closed."""
    ours = b.s.eviction_spec()
    names = b.s.named(*MADE, *b.s.recorded)
    if not ours or not names:
        return []
    tuned = b.tune_evictions(names)
    runs = b.open("eviction", names, {n: [*dict.fromkeys(tuned[n].values()), ours, ENDS, RETURNS] for n in names})
    out = []

    def over_belady(what: str, which: list[str], specs: list[str], target: float | None) -> Figure:
        return paired("eviction", what, [_again(runs[n], x) for n, x in zip(which, specs, strict=True)],
                      [_belady(runs[n]) for n in which], [_pressed(runs[n]) for n in which], target)

    groups = {n: [n] for n in names if n not in HITL}
    if all(n in names for n in HITL):
        groups["hitl"] = list(HITL)
    for what, which in groups.items():
        out.append(over_belady(f"{what}: tokens computed again / Belady", which, [ours] * len(which),
                               TARGETS.get(f"eviction/{what}")))
        out.append(over_belady(f"{what}: the heuristic that was best in training", which,
                               [tuned[n]["best"] for n in which], None))
        out.append(over_belady(f"{what}: lru", which, [tuned[n]["lru"] for n in which], None))
        out.append(over_belady(f"{what}: an oracle of ends", which, [ENDS] * len(which), None))
        out.append(over_belady(f"{what}: an oracle of return times", which, [RETURNS] * len(which), None))
        if what in b.s.recorded:
            out.append(share("eviction", f"{what}: gap from the best heuristic to Belady closed",
                             [_again(runs[what], ours)], [_again(runs[what], tuned[what]["best"])],
                             [_belady(runs[what])], [_pressed(runs[what])], TARGETS["eviction/recorded"]))
    return out


def transfer(b: Bench) -> list[Figure]:
    """Every checkpoint of `transfer`, and the one under test, on every workload: eviction in open loop over Belady;
    the others in closed loop over preset `saga+`, ends hidden."""
    if not b.s.transfer:
        return []
    folders = [f for f in (*b.s.transfer, b.s.eviction, b.s.joint, b.s.hidden) if f and Path(f).is_dir()]
    decisions = {f: set(load_parts(f)) for f in dict.fromkeys(folders)}
    out = []
    evicting = [f for f, found in decisions.items() if "eviction" in found]
    names = b.s.named(*MADE, *b.s.recorded)
    if evicting and names:
        specs = [f"learned:{load_parts(f)['eviction'].folder}" for f in evicting]
        runs = b.open("transfer: eviction", names, dict.fromkeys(names, specs))
        out += [paired("transfer", f"{Path(f).name} on {n}: computed again / Belady", [_again(runs[n], spec)],
                       [_belady(runs[n])], [_pressed(runs[n])])
                for f, spec in zip(evicting, specs, strict=True) for n in names]
    others = [f for f, found in decisions.items() if found - {"eviction"}]
    places = [Place(n, workers=b.s.workers, hidden=True) for n in b.s.named(*MADE) if n in DEFINED]
    if others and places:
        arms = with_infinite(base=dict(PRESETS["saga+"])) | {f: {"set": f} for f in others}
        closed = b.measure("transfer: closed loop", dict.fromkeys(places, arms))
        out += [paired("transfer", f"{Path(f).name} on {p.workload}, ends hidden: mean TCT / saga+",
                       [closed[p, f]["tct_mean_s"]], [closed[p, "base"]["tct_mean_s"]], [usable(closed, p, f, "base")])
                for f in others for p in places]
    return out

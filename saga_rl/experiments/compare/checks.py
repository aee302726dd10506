"""Everything that can be wrong with what was asked for, found before anything is loaded, run or written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saga_rl.errors import UserError, unknown_name
from saga_rl.experiments.compare.settings import PARTS, Settings, constraints
from saga_rl.experiments.tuning import MOST
from saga_rl.policies.base import DECISIONS, Policy
from saga_rl.policies.presets import PRESETS, preset
from saga_rl.policies.registry import make, split_specs
from saga_rl.sim.cost.profile import load_profile

USES = {"--eviction": ("eviction", "load"), "--placement": ("load",), "--ordering": ("load", "fairness"),
        "--admission": ("load",), "--policy": ("eviction", "load"), "--capacities": ("eviction",),
        "--loads": ("load", "fairness"), "--product": ("load",), "--population": ("eviction",),
        "--workers": ("load", "fairness"), "--kv-tokens": ("load", "fairness"), "--gap": ("fairness",),
        "--floor": ("fairness",), "--afs-preempt-s": ("fairness",)}
"""Option -> the parts that it has a meaning for."""


def check_parts(parts: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The parts in order. `UserError` for an unknown one, or an option in `given` that none of them uses."""
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    chosen = tuple(p for p in PARTS if p in parts) or PARTS
    for option in given:
        if not set(USES.get(option, chosen)) & set(chosen):
            raise UserError(option, f"means nothing to part {', '.join(chosen)}",
                            f"leave it out, or add --part {USES[option][0]}")
    return chosen


def specs(options: Sequence[str]) -> tuple[str, ...]:
    """Policy specs of a repeated option, each of which may hold several with commas between; without repeats."""
    return tuple(dict.fromkeys(spec for option in options for spec in split_specs(option)))


def numbers(option: str, text: str, low: float) -> tuple[float, ...]:
    """Comma-separated finite numbers above `low`, ascending, without repeats."""
    out = []
    for item in filter(None, (x.strip() for x in text.split(","))):
        try:
            value = float(item)
        except ValueError:
            value = math.nan
        if not low < value < math.inf:
            raise UserError(option, f"{item!r} is no number above {low:g}", "write numbers with commas between")
        out.append(value)
    if not out:
        raise UserError(option, "names no number", "write numbers with commas between, or leave it out")
    return tuple(sorted(set(out)))


def check_settings(s: Settings) -> None:
    """Raise `UserError` for the first thing that cannot work, with the reason."""
    for option, value, least in (("--seeds", s.seeds, 1), ("--workers", s.workers, 1), ("--kv-tokens", s.kv_tokens, 0),
                                 ("--population", s.population, 1)):
        if value < least:
            raise UserError(option, f"is {value}", f"give {least} or more")
    if not 0 <= s.tune <= MOST:
        raise UserError("--tune", f"is {s.tune}", f"choose from 0 (no tuning) to {MOST} settings of each policy")
    load_profile(s.profile)
    for arguments in s.variants().values():
        constraints(arguments)
    made = {decision: [(spec, make(decision, spec)) for spec in s.specs.get(decision, ())] for decision in DECISIONS}
    for spec, policy in made["eviction"]:
        _check_eviction(spec, policy, s.parts)
    for decision in DECISIONS:
        for spec, policy in made[decision]:
            _check_workers(f"{decision} policy {spec!r}", policy, s)
    _check_choice(s)
    for name in s.presets:
        chosen = preset(name)
        _check_workers(f"--policy {name}", chosen.placement, s)
        if s.parts == ("eviction",) and name in PRESETS:
            raise UserError(f"--policy {name}", "is a preset of four policies, and part eviction compares evictions",
                            f"write --eviction {PRESETS[name]['eviction']}, or name a checkpoint's folder")


def _check_eviction(spec: str, policy: Policy, parts: Sequence[str]) -> None:
    if not policy.oracle:
        return
    what = f"eviction policy {spec!r}"
    if policy.name != "clairvoyant" and "load" in parts:
        raise UserError(what, "must know the future, which in part load depends on the policy itself",
                        "leave it out: part eviction always holds it, as the bound" if policy.name == "belady"
                        else "compare it in --part eviction alone")
    if policy.name == "belady":
        raise UserError(what, "is the bound that every point of part eviction is divided by", "leave it out")
    if policy.name == "clairvoyant" and "eviction" in parts:
        raise UserError(what, "knows when sessions return by the clock, and part eviction plays a fixed order of "
                        "requests, where Belady is the policy that knows the future", "add --part load, without "
                        "--part eviction")


def _check_workers(what: str, policy: Policy, s: Settings) -> None:
    if policy.steals and s.workers == 1 and "load" in s.parts:
        raise UserError(what, "steals work from other workers, and with --workers 1 there is none",
                        "give --workers 2 or more, or a placement that does not steal")


def _check_choice(s: Settings) -> None:
    if s.specs.get("placement") and s.workers == 1:
        raise UserError("--placement", "has nothing to choose from with --workers 1", "give --workers 2 or more")


def check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise UserError("--jobs", f"is {jobs}", "give 1 process or more")


def check_data(path: Path | None, traces: Sequence[Path]) -> None:
    """TRACE files have to be there and be no folders; their content is read later."""
    from saga_rl.files import must_exist

    for trace in traces:
        must_exist(trace)
    if path is not None and traces:
        raise UserError("--data", "adds recorded traces to the generated ones, and TRACE files replace those",
                        "give one of the two")


def with_specs(s: Settings, options: dict[str, Sequence[str]]) -> Settings:
    """`s` with the decisions' options parsed."""
    return replace(s, specs={decision: specs(options.get(decision) or ()) for decision in DECISIONS})

"""Which policies the load part compares: stock, one factor at a time around it, presets, and picked combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from saga_rl.experiments.compare.settings import STOCK, Settings
from saga_rl.policies.base import DECISIONS, Decision
from saga_rl.policies.presets import PRESETS
from saga_rl.policies.registry import make, names

if TYPE_CHECKING:
    from saga_rl.policies.learned.checkpoint import Checkpoint

BASE = PRESETS[STOCK]
LOAD_EVICTIONS = ("lru-protect", "wa-lru", "youngest", "clairvoyant")
"""Evictions of the load part, where they are a third lever; part eviction compares them all."""
EXTRA = {"placement": ("saga:theta=0.8",)}
"""SAGA as published, beside the tuned one."""
PAIRS: tuple[dict[str, str], ...] = (
    {"eviction": "youngest", "admission": "reserve-older"},
    {"eviction": "youngest", "ordering": "session-fcfs", "admission": "reserve-older"},
    {"ordering": "session-fcfs", "admission": "grow"}, {"ordering": "dlpm", "admission": "pause-resume"})
"""Policies that are meant to go together (their own pages say so), each in its tuned setting."""
PICKS = (("placement", "ordering"), ("placement", "admission"), ("ordering", "admission"),
         ("placement", "ordering", "admission"), ("eviction", "placement", "ordering", "admission"))


@dataclass(frozen=True)
class Arm:
    """What runs together. role: `stock`, a decision (one factor), `preset`, `checkpoint`, `picked` or `product`.

    name: the same for all traces; `policies`: spec by decision, or `{"set": FOLDER, "sha256": ...}`."""

    role: str
    name: str
    policies: dict[str, str]

    @property
    def label(self) -> str:
        return f"{self.role}: {self.name}"


def evictions(s: Settings) -> list[str]:
    """The specs of part eviction: all that are registered, less oracles and what needs a folder, or the user's."""
    chosen = list(s.specs.get("eviction", ()))
    if not chosen:
        chosen = [n for n in names("eviction") if n != "learned" and not make("eviction", n).oracle]
    return chosen + [f"learned:{parts['eviction'].folder}" for parts in map(_parts, checkpoints(s))
                     if "eviction" in parts]


def decision_specs(s: Settings, decision: str) -> list[str]:
    """The specs of one decision of the load part, stock's left out: those that the user named, or all that are
    registered. Where he named policies of other decisions alone, none; a product still takes all."""
    chosen = list(s.specs.get(decision, ()))
    if not chosen:
        if (decision == "placement" and s.workers == 1) or (_narrowed(s) and not s.product):
            return []
        known = [n for n in names(decision) if n != "learned" and (  # type: ignore[arg-type]
            decision == "eviction" or not make(decision, n).oracle)]  # type: ignore[arg-type]
        chosen = [n for n in known if decision != "eviction" or n in LOAD_EVICTIONS] + list(EXTRA.get(decision, ()))
    return [spec for spec in chosen if spec != BASE[decision]]


def checkpoints(s: Settings) -> list[str]:
    return [p for p in s.presets if p not in PRESETS]


def _parts(folder: str) -> dict[Decision, Checkpoint]:
    from saga_rl.policies.learned.checkpoint import load_parts

    return load_parts(folder)


def _checkpoint_arm(folder: str) -> Arm:
    from saga_rl.policies.learned.checkpoint import digest

    return Arm("checkpoint", Path(folder).name, {"set": folder, "sha256": digest(_parts(folder))})


def stock_arm() -> Arm:
    return Arm("stock", STOCK, dict(BASE))


def one_factor(s: Settings, chosen: Mapping[str, Mapping[str, str]]) -> list[Arm]:
    """Stock with one policy replaced. chosen: decision -> spec asked for -> the setting it runs with."""
    return [Arm(decision, spec, BASE | {decision: chosen.get(decision, {}).get(spec, spec)})
            for decision in DECISIONS for spec in decision_specs(s, decision)]


def fixed_arms(s: Settings) -> list[Arm]:
    """Presets (all, unless the user named some) and checkpoints."""
    wanted = [p for p in s.presets if p in PRESETS] or ([] if _narrowed(s) else list(PRESETS))
    return [Arm("preset", p, dict(PRESETS[p])) for p in wanted if p != STOCK] + [
        _checkpoint_arm(p) for p in checkpoints(s)]


def _narrowed(s: Settings) -> bool:
    """The user named policies, so what he did not name is not run."""
    return any(s.specs.values()) or bool(s.presets)


def known_pairs(s: Settings, chosen: Mapping[str, Mapping[str, str]]) -> list[Arm]:
    """`PAIRS`, unless the user named what to compare."""
    return [] if _narrowed(s) else [
        Arm("pair", " + ".join(pair.values()), BASE | {decision: chosen.get(decision, {}).get(spec, spec)
                                                       for decision, spec in pair.items()}) for pair in PAIRS]


def picked_arms(best: Mapping[str, str]) -> list[Arm]:
    """Combine the decisions' best single factors. best: decision -> spec; those without one are passed over."""
    return [Arm("picked", " + ".join(decisions), BASE | {decision: best[decision] for decision in decisions})
            for decisions in PICKS if all(decision in best for decision in decisions)]


def product_arms(s: Settings, chosen: Mapping[str, Mapping[str, str]]) -> list[Arm]:
    """Every placement x ordering x admission, stock's among them, under each eviction that the user named, or LRU."""
    def with_base(decision: str, specs: Sequence[str]) -> list[str]:
        return [BASE[decision], *(chosen.get(decision, {}).get(spec, spec) for spec in specs)]

    evictions = list(s.specs.get("eviction", ())) or [BASE["eviction"]]
    decisions = [evictions] + [with_base(decision, decision_specs(s, decision)) for decision in DECISIONS[1:]]
    out = []
    for specs in product(*decisions):
        policies: dict[str, str] = dict(zip(DECISIONS, specs, strict=True))
        if policies != BASE:
            out.append(Arm("product", " / ".join(specs), policies))
    return out


def orderings(s: Settings) -> list[str]:
    """Orderings of the fairness part, FCFS first: every other one is compared with it."""
    wanted = list(s.specs.get("ordering", ())) or [n for n in ("session-fcfs", "afs", "vtc", "dlpm")
                                                   if n in names("ordering")]
    return ["fcfs", *(n for n in wanted if n != "fcfs")]

"""From settings and prepared traces to cells, stage by stage: what is asked of each trace, and where it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saga_rl.experiments.cell import Cell, Result, make_cell
from saga_rl.experiments.compare import arms
from saga_rl.experiments.compare.arms import Arm
from saga_rl.experiments.compare.settings import MARGIN, PLAIN_BELOW, TRAIN_SEEDS, Settings, pool_tokens
from saga_rl.experiments.tuning import Choice, best, choose, settings_of
from saga_rl.policies.base import DECISIONS

Keyed = dict[tuple[Any, ...], Cell]


@dataclass
class Plan:
    """facts: of each trace, as `sources.load` gives them. digests: of their halves."""

    s: Settings
    facts: Mapping[str, Mapping[str, Any]]
    digests: dict[str, str]
    code: str

    def _cell(self, name: str, weight: float = 1.0, **spec: Any) -> Cell:
        f = self.facts[name]
        n = f["arranged_sessions"]
        return make_cell({"trace": name, "sessions": n, **spec}, self.code, self.digests[f"{name}-{spec['half']}"],
                         weight * n * f["steps"] / f["sessions"])

    def open_config(self, kv_tokens: int = 0) -> dict[str, Any]:
        config = {"workers": 1, "population": self.s.population, "profile": self.s.profile,
                  "end_hint": self.s.ends}
        return config | ({"kv_tokens": kv_tokens} if kv_tokens else {})

    def closed_config(self, name: str) -> dict[str, Any]:
        return {"workers": self.s.workers, "profile": self.s.profile, "end_hint": self.s.ends,
                "kv_tokens": pool_tokens(self.facts[name]["longest_context_tokens"], self.s.kv_tokens)}

    def fair(self, name: str) -> bool:
        """Whether the fairness part runs on a trace: one with several tenants. Those of recorded collections are
        workflows of one user, not customers."""
        f = self.facts[name]
        return "fairness" in self.s.parts and f["tenants"] > 1 and f["kind"] != "imported"

    def scouts(self) -> Keyed:
        """(trace, `pressure` or `sustain`) -> cell."""
        out: Keyed = {}
        common = {"half": "train", "seed": TRAIN_SEEDS[0], "seeds": list(TRAIN_SEEDS)}
        for name, f in self.facts.items():
            if "eviction" in self.s.parts:
                out[name, "pressure"] = self._cell(name, 50.0, kind="pressure", config=self.open_config(), least_tokens=
                                                   int(MARGIN * f["longest_context_tokens"]), **common)
            if "load" in self.s.parts or self.fair(name):
                out[name, "sustain"] = self._cell(name, 40.0, kind="sustain", config=self.closed_config(name), **common)
        return out

    def capacities(self, name: str, scouted: Mapping[tuple, Result]) -> dict[float, int]:
        """Multiple of P1's capacity -> KV tokens, in whole blocks, at least what the longest context needs; points
        that coincide are one. A capacity given in tokens has its multiple, too. Empty without a P1."""
        found = scouted.get((name, "pressure"))
        if found is None or found["capacity_tokens"] is None:
            return {}
        p1 = found["capacity_tokens"]
        least = int(MARGIN * self.facts[name]["longest_context_tokens"])
        sizes = set()
        for c in self.s.capacities:
            sizes.add(max(round(c * p1), least) // 16 * 16 if c < PLAIN_BELOW else int(c) // 16 * 16)
        return {round(kv / p1, 3): kv for kv in sorted(sizes)}

    def tuning(self, scouted: Mapping[tuple, Result]) -> Keyed:
        """(`open`, trace, spec, setting, seed) and (`closed`, trace, decision, spec, setting, seed) -> cell."""
        out: Keyed = {}
        if not self.s.tune:
            return out
        for name in self.facts:
            p1 = scouted.get((name, "pressure"), {}).get("capacity_tokens") or 0
            speed = scouted.get((name, "sustain"), {}).get("speed") or 0.0
            for seed in TRAIN_SEEDS:
                for spec in arms.evictions(self.s) if p1 else ():
                    tried = settings_of("eviction", spec, self.s.tune)
                    for setting in tried if len(tried) > 1 else ():
                        out["open", name, spec, setting, seed] = self._open(name, "train", seed, p1, setting)
                for decision in DECISIONS if speed and "load" in self.s.parts else ():
                    for spec in arms.decision_specs(self.s, decision):
                        for setting in settings_of(decision, spec, self.s.tune):
                            arm = Arm(decision, spec, arms.BASE | {decision: setting})
                            out["closed", name, decision, spec, setting, seed] = self._closed(
                                name, "train", seed, arm, speed * self.s.tune_load)
        return out

    def choose(self, tuned: Mapping[tuple, Result]) -> dict[tuple, Choice]:
        """(`open`, trace, spec) and (`closed`, trace, decision, spec) -> the setting with the least tokens computed
        again or mean completion time on training sessions."""
        return choose((tuple(key[:-2]), key[-2], max(r["recomputed_tokens"], 1) if key[0] == "open" else
                       r["tct_mean_s"]) for key, r in tuned.items())

    def _open(self, name: str, half: str, seed: int, kv: int, spec: str) -> Cell:
        return self._cell(name, 4.0, kind="open", half=half, seed=seed, config=self.open_config(kv), eviction=spec,
                          **_digest(spec))

    def _closed(self, name: str, half: str, seed: int, arm: Arm, speed: float, slo: bool = False,
                constraints: dict[str, Any] | None = None, infinite: bool = False) -> Cell:
        config = self.closed_config(name) | ({"constraints": constraints} if constraints else {})
        more = {"infinite": True} if infinite else {}
        return self._cell(name, 2.0 if slo else 1.0, kind="closed", half=half, seed=seed, config=config, speed=speed,
                          policies=arm.policies, slo=slo, **more)

    def arms(self, name: str, chosen: Mapping[tuple, Choice]) -> list[Arm]:
        """The load part's arms for one trace, stock first, each set of policies once."""
        by_decision: dict[str, dict[str, str]] = {}
        for decision in DECISIONS:
            by_decision[decision] = {
                key[3]: c.spec for key, c in chosen.items() if key[:3] == ("closed", name, decision)}
        if self.s.product:
            found = [arms.stock_arm(), *arms.product_arms(self.s, by_decision), *arms.fixed_arms(self.s)]
        else:
            found = [arms.stock_arm(), *arms.one_factor(self.s, by_decision), *arms.fixed_arms(self.s),
                     *arms.known_pairs(self.s, by_decision), *arms.picked_arms(self._bests(name, chosen))]
        return list({a.label: a for a in found}.values())

    def _bests(self, name: str, chosen: Mapping[tuple, Choice]) -> dict[str, str]:
        """Decision -> the setting that did best on training sessions, oracles aside."""
        out: dict[str, str] = {}
        for decision in DECISIONS:
            tried = {c.spec: c.tried[c.spec] for key, c in chosen.items()
                     if key[:3] == ("closed", name, decision) and key[3] != "clairvoyant"}
            if tried:
                out[decision] = best(tried)
        return out

    def final(self, scouted: Mapping[tuple, Result], chosen: Mapping[tuple, Choice]) -> Keyed:
        """The reported cells: (`eviction`, trace, capacity, spec, seed), (`load`, trace, load, arm's label or None for
        infinite memory, seed) and (`fairness`, trace, load, ordering, variant, seed)."""
        out: Keyed = {}
        for name in self.facts:
            for kv in self.capacities(name, scouted).values():
                for spec in arms.evictions(self.s):
                    setting = setting_of(chosen, ("open", name, spec))
                    for seed in self.s.test_seeds:
                        out["eviction", name, kv, spec, seed] = self._open(name, "test", seed, kv, setting)
            speed = scouted.get((name, "sustain"), {}).get("speed")
            if not speed:
                continue
            for load in self.s.loads if "load" in self.s.parts else ():
                for seed in self.s.test_seeds:
                    out["load", name, load, None, seed] = self._closed(name, "test", seed, arms.stock_arm(),
                                                                       speed * load, infinite=True)
                    for arm in self.arms(name, chosen):
                        out["load", name, load, arm.label, seed] = self._closed(name, "test", seed, arm, speed * load)
            for load in self.s.fair_loads if self.fair(name) else ():
                for order in arms.orderings(self.s):
                    arm = Arm("ordering", order, arms.BASE | {"ordering": order})
                    for variant, given in self.s.variants().items():
                        for seed in self.s.test_seeds:
                            out["fairness", name, load, order, variant, seed] = self._closed(
                                name, "test", seed, arm, speed * load, slo=True, constraints=given)
        return out


def setting_of(chosen: Mapping[tuple, Choice], what: tuple) -> str:
    """The setting that was chosen for `what`, whose last item is a spec; that spec where nothing was tuned."""
    found = chosen.get(what)
    return what[-1] if found is None else found.spec


def _digest(spec: str) -> dict[str, str]:
    """A checkpoint's content belongs to the cell."""
    if not spec.startswith("learned:"):
        return {}
    from saga_rl.policies.learned.checkpoint import load_checkpoint

    return {"sha256": load_checkpoint(spec.removeprefix("learned:")).sha256}

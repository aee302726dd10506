"""Rows of the closed loop: completion times, sustained load, placement, throughput, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from saga_rl.experiments.intervals import sound
from saga_rl.learn.judge.protocol.bench import Bench, Columns, Place, usable, with_infinite
from saga_rl.learn.judge.protocol.cells import LOADS
from saga_rl.learn.judge.protocol.figures import Figure, paired, share
from saga_rl.learn.judge.protocol.settings import (
    ORACLE,
    RESERVE,
    SAGA_PLACEMENTS,
    STOCK,
    TARGETS,
    Arm,
    limit_grid,
    reserve_grid,
)
from saga_rl.policies.presets import PRESETS

Runs = Mapping[tuple[Place, str], Columns]
MEAN, P95 = "tct_mean_s", "tct_p95_s"


def _against(row: str, what: str, runs: Runs, places: Sequence[Place], ours: str, theirs: str, key: str,
             target: float | None = None) -> Figure:
    """Collapsed runs of either arm leave their arrangement out; how often each did stands in `detail`."""
    good = {name: [usable(runs, p, name) for p in places] for name in (ours, theirs)}
    both = [x & y for x, y in zip(good[ours], good[theirs], strict=True)]
    return paired(row, what, [runs[p, ours][key] for p in places], [runs[p, theirs][key] for p in places], both,
                  target, detail={"collapsed": {name: int(sum((~x).sum() for x in good[name])) for name in good},
                                  "arrangements": sum(len(x) for x in both)})


def _references(row: str, runs: Runs, places: Sequence[Place], base: str, names: Mapping[str, str]) -> list[Figure]:
    """What others reach at the same places: heuristics, oracles and infinite memory, without targets."""
    return [_against(row, f"for comparison: {text}, mean TCT", runs, places, name, base, MEAN)
            for name, text in names.items()]


def stock(b: Bench) -> list[Figure]:
    """Closed population at P1, many workers, against LRU + FCFS + sticky."""
    places = [Place(n, workers=b.s.many_workers) for n in b.s.named("swe", "web")]
    if not b.s.joint or not places:
        return []
    literal = PRESETS["saga"] | {"eviction": "wa-lru-literal"}
    arms = with_infinite(ours=b.s.joint_arm(), stock=STOCK, saga=dict(PRESETS["saga"]), literal=literal,
                         plus=dict(PRESETS["saga+"]), likely=dict(PRESETS["likely"]), oracle=ORACLE)
    runs = b.measure("against stock", dict.fromkeys(places, arms))
    together = "geomean of " + " and ".join(p.workload for p in places)
    out = [_against("stock", f"{together}: mean TCT / stock", runs, places, "ours", "stock", MEAN,
                    TARGETS["stock/mean"]),
           _against("stock", f"{together}: P95 TCT / stock", runs, places, "ours", "stock", P95, TARGETS["stock/p95"])]
    out += [_against("stock", f"{p.workload}: mean TCT / stock", runs, [p], "ours", "stock", MEAN) for p in places]
    return out + _references("stock", runs, places, "stock", {
        "saga": "lazy SAGA", "literal": "SAGA as written", "plus": "preset saga+",
        "likely": "preset likely", "oracle": "an oracle of ends and gaps", "infinite": "infinite memory"})


def shifting(b: Bench) -> list[Figure]:
    """P3 against a fixed limit that was tuned on training sessions; and, where that limit may collapse, at the most
    load at which it does not."""
    places = [Place(n, "P3", b.s.workers) for n in b.s.named("shift")]
    if not b.s.joint or not places:
        return []
    limit = b.tune("fixed limit", places, limit_grid())
    out = _shifting(b, "P3", limit)
    calmer = [found for p in places if not survives(b, p, limit[p]) and (found := _calmer(b, p))]
    return out + (_shifting(b, ", ".join(f"P3 at {p.load:g} of its load" for p, _ in calmer), dict(calmer))
                  if calmer else [])


def _shifting(b: Bench, point: str, limit: Mapping[Place, Arm]) -> list[Figure]:
    """limit: the tuned one by place."""
    places = list(limit)
    runs = b.measure(f"shifting mixes, {point}", {p: with_infinite(
        ours=b.s.joint_arm(), limit=limit[p], stock=STOCK, plus=dict(PRESETS["saga+"]),
        likely=dict(PRESETS["likely"]), oracle=ORACLE) for p in places})
    out = [_against("shift", f"{point}: mean TCT / tuned fixed limit", runs, places, "ours", "limit", MEAN,
                    TARGETS["shift/mean"]),
           _against("shift", f"{point}: P95 TCT / tuned fixed limit", runs, places, "ours", "limit", P95,
                    TARGETS["shift/p95"])]
    return out + _references("shift", runs, places, "limit", {
        "stock": f"{point}, stock", "plus": f"{point}, preset saga+", "likely": f"{point}, preset likely",
        "oracle": f"{point}, an oracle of ends and gaps", "infinite": f"{point}, infinite memory"})


SURVIVAL_SEEDS, MARGIN = range(1, 11), 0.5
"""Arrangements of training sessions on which a limit must stay that far away from a collapse: one that just survives
there collapses on others."""
CALMER = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of P3's load: where a fixed limit that collapses there is looked at again."""


def survives(b: Bench, place: Place, arm: Arm) -> bool:
    """Whether the arm stays clear of a collapse on `SURVIVAL_SEEDS`, arrangements of the training sessions."""
    runs = b.measure("does it survive?", {place: with_infinite(arm=arm)}, "train", SURVIVAL_SEEDS)
    return bool(sound(np.array(runs[place, "arm"][MEAN]) / MARGIN, runs[place, "infinite"][MEAN]).all())


def _calmer(b: Bench, place: Place) -> tuple[Place, Arm] | None:
    """The most of `CALMER` at which the limit that is best there survives in training, and that limit."""
    for load in CALMER:
        p = replace(place, load=load)
        limit = b.tune("fixed limit", [p], limit_grid())[p]
        if survives(b, p, limit):
            return p, limit
    return None


AGENTS = ("weka", "katas")
"""Recorded collections that know their sessions."""


def hidden(b: Bench) -> list[Figure]:
    """Nobody says that a session ended, humans hold some up: against reserve-older, tuned on training sessions."""
    p1 = [Place(n, "P1", b.s.workers, hidden=True) for n in b.s.named("swe-hitl", "web-hitl", "hetero-hitl")]
    p3 = [Place(n, "P3", b.s.workers, hidden=True) for n in b.s.named("shift-hitl")]
    real = [Place(n, "P1", b.s.workers, hidden=True) for n in b.s.named("coding", *b.s.recorded) if n in (
        "coding", *AGENTS)]
    if not b.s.joint or not p1 + p3 + real:
        return []
    base, own = b.tune("reserve-older", p1 + p3 + real, reserve_grid()), dict(b.s.own)
    runs = b.measure("hidden ends", {p: with_infinite(
        ours=b.s.joint_arm(hidden=True), base=base[p], told=base[p] | {"ends_told": True}, oracle=ORACLE, plain=RESERVE,
        likely=dict(PRESETS["likely"]), **({"own": {"set": own[p.workload]}} if p.workload in own else {}))
        for p in p1 + p3 + real})
    out = []
    for name, places in (("P1", p1), ("P3", p3)):
        if not places:
            continue
        good = [usable(runs, p, "ours", "base", "oracle") for p in places]
        out += [_against("hidden", f"{name}: mean TCT / tuned reserve-older", runs, places, "ours", "base", MEAN,
                         TARGETS["hidden/mean"]),
                _against("hidden", f"{name}: P95 TCT / tuned reserve-older", runs, places, "ours", "base", P95,
                         TARGETS["hidden/p95"]),
                share("hidden", f"{name}: way to the oracle of ends and gaps", [runs[p, "ours"][MEAN] for p in places],
                      [runs[p, "base"][MEAN] for p in places], [runs[p, "oracle"][MEAN] for p in places], good,
                      TARGETS["hidden/share"])]
        if len(places) > 1:
            out += [_against("hidden", f"{name}, {p.workload}: mean TCT / tuned reserve-older", runs, [p], "ours",
                             "base", MEAN) for p in places]
        out += _references("hidden", runs, places, "base", {
            "plain": f"{name}, reserve-older untuned", "likely": f"{name}, preset likely",
            "told": f"{name}, the tuned one told of every end",
            "oracle": f"{name}, an oracle of ends and gaps", "infinite": f"{name}, infinite memory"})
    for p in real:
        out += _coding(runs, p)
    return out


def _coding(runs: Runs, p: Place) -> list[Figure]:
    """Coding agents, generated or recorded, with their ends hidden."""
    where, told = f"{'recorded ' if p.workload in AGENTS else ''}{p.workload}, P1", [("ours", "", "")]
    if (p, "own") in runs:
        told.append(("own", "", ", searched on its own training sessions"))
    told += [(name, "for comparison: ", f", {text}") for name, text in (
        ("plain", "reserve-older untuned"), ("likely", "preset likely"), ("oracle", "an oracle of ends and gaps"),
        ("infinite", "infinite memory"))]
    return [_against("hidden", f"{first}{where}{text}: {label} TCT / tuned reserve-older", runs, [p], name, "base", key)
            for name, first, text in told
            for key, label in ((MEAN, "mean"), (P95, "P95")) if key == MEAN or not first]


def sustain(b: Bench) -> list[Figure]:
    """The largest load with a mean TCT of at most 1.3 x infinite memory, over that of lazy SAGA."""
    places = [Place(n, "P2", b.s.workers) for n in b.s.named("swe", "web")]
    if not b.s.joint or not places:
        return []
    arms: dict[str, Arm] = {"ours": b.s.joint_arm(), "saga": dict(PRESETS["saga"]), "stock": STOCK,
                            "plus": dict(PRESETS["saga+"]), "likely": dict(PRESETS["likely"]), "oracle": ORACLE}
    runs = b.measure("sustained load", dict.fromkeys(places, arms), kind="sustain")

    def over(what: str, which: Sequence[Place], ours: str, theirs: str, target: float | None = None) -> Figure:
        good = [np.array(runs[p, ours]["at_all"], bool) & np.array(runs[p, theirs]["at_all"], bool)
                & np.array(runs[p, theirs]["limited"], bool) for p in which]
        open_end = sum(int(sum(not x for x in runs[p, ours]["limited"])) for p in which)
        found = paired("sustain", what, [runs[p, ours]["of_peak"] for p in which],
                      [runs[p, theirs]["of_peak"] for p in which], good, target, at_most=False, detail={
                          f"{n}, {p.workload}, of peak": runs[p, n]["of_peak"] for n in (ours, theirs) for p in which})
        at_least = f"a lower bound: nothing limited {open_end} runs up to {LOADS[-1]:.2f} of peak" if open_end else ""
        return replace(found, note="; ".join(filter(None, (found.note, at_least))))

    out = [over("sustained load / lazy SAGA, geomean", places, "ours", "saga", TARGETS["sustain"])]
    out += [over(f"{p.workload}: sustained load / lazy SAGA", [p], "ours", "saga") for p in places]
    return out + [over(f"for comparison: {text} / lazy SAGA", places, name, "saga") for name, text in (
        ("plus", "preset saga+"), ("likely", "preset likely"), ("oracle", "an oracle of ends and gaps"),
        ("stock", "stock"))]


def placement(b: Bench) -> list[Figure]:
    """Against SAGA's placement, retuned on training sessions; the others are those of `saga+` on both sides."""
    places = [Place(n, point, b.s.many_workers) for n in b.s.named("swe", "web") for point in ("P1", "P2")]
    if not b.s.placement or not places:
        return []
    rest = dict(PRESETS["saga+"])
    saga = b.tune("SAGA's placement", places, [rest | {"placement": x} for x in SAGA_PLACEMENTS])
    runs = b.measure("placement", {p: with_infinite(
        ours=rest | {"placement": b.s.placement_spec()}, saga=saga[p], sticky=rest | {"placement": "sticky"},
        least=rest | {"placement": "least-sessions"}, aware=rest | {"placement": "prefix-aware"}) for p in places})
    out = [_against("placement", "mean TCT / retuned SAGA placement, geomean of P1 and P2", runs, places, "ours",
                    "saga", MEAN, TARGETS["placement"])]
    out += [_against("placement", f"{p.workload}, {p.point}: mean TCT / retuned SAGA", runs, [p], "ours", "saga", MEAN)
            for p in places]
    return out + _references("placement", runs, places, "saga", {
        "sticky": "sticky", "least": "least-sessions", "aware": "prefix-aware", "infinite": "infinite memory"})


def throughput(b: Bench) -> list[Figure]:
    """The most sessions a minute over closed populations of half, once and twice P1's."""
    names = b.s.named("swe", "web")
    if not b.s.joint or not names:
        return []
    sizes = (0.5, 1.0, 2.0)
    arms: dict[str, Arm] = {"ours": b.s.joint_arm(), "stock": STOCK, "saga": dict(PRESETS["saga"]),
                            "literal": PRESETS["saga"] | {"eviction": "wa-lru-literal"}}
    places = {(n, x): Place(n, workers=b.s.workers, population=x) for n in names for x in sizes}
    runs = b.measure("peak throughput", dict.fromkeys(places.values(), arms))

    def peak(arm: str) -> list[np.ndarray]:
        return [np.max([runs[places[n, x], arm]["throughput_sessions_per_min"] for x in sizes], axis=0) for n in names]

    every = [np.ones(b.s.seeds, bool) for _ in names]
    return [paired("throughput", f"peak throughput{text}", peak(arm), peak("stock"), every, target, at_most=False)
            for arm, text, target in (("ours", " / stock", TARGETS["throughput"]),
                                      ("saga", ", lazy SAGA / stock", None),
                                      ("literal", ", SAGA as written / stock", None))]


def drift(b: Bench) -> list[Figure]:
    """Half-way the sessions become ones of a kind that nothing was trained on."""
    places = [Place(n, workers=b.s.workers, hidden=h) for n in b.s.named("drift") for h in (False, True)]
    if not b.s.joint or not places:
        return []
    runs = b.measure("drift", {p: with_infinite(
        ours=b.s.joint_arm(p.hidden), stock=STOCK, plus=dict(PRESETS["saga+"])) for p in places})
    out = []
    for p in places:
        ends = "ends hidden" if p.hidden else "ends told"
        for key, text in ((MEAN, "all"), ("first_half_s", "before the change"), ("second_half_s", "after it")):
            out += [_against("drift", f"{ends}, {text}: mean TCT / {other}", runs, [p], "ours", name, key)
                    for name, other in (("stock", "stock"), ("plus", "saga+"))]
    return out

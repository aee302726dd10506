"""The report: every row with its target beside it, as Markdown, JSON and a picture. Losses as plainly as gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saga_rl.experiments.compare.settings import P1_RANGE, SUSTAINED
from saga_rl.experiments.intervals import COLLAPSE, MIN_PAIRS
from saga_rl.files import atomic, write_json
from saga_rl.learn.judge.picture import protocol_picture
from saga_rl.learn.judge.protocol import closed_rows, open_rows
from saga_rl.learn.judge.protocol.bench import Bench
from saga_rl.learn.judge.protocol.cells import weights
from saga_rl.learn.judge.protocol.figures import Figure
from saga_rl.learn.judge.protocol.lab import Lab
from saga_rl.learn.judge.protocol.settings import TRAIN_SEEDS, Settings
from saga_rl.learn.judge.sessions import DEFINED
from saga_rl.learn.judge.workloads import workload
from saga_rl.report.tables import interval, or_dash
from saga_rl.report.tables import markdown as table
from saga_rl.sim.openloop.bound import LOW_PRESSURE

HEADER = ("figure", "value [95 %]", "target", "", "pairs", "collapsed", "note")
MAKERS: dict[str, tuple[str, Callable[[Bench], list[Figure]], tuple[str, ...]]] = {
    "eviction": ("Eviction in open loop, P1", open_rows.eviction, open_rows.MADE),
    "stock": ("Closed loop at P1 against stock (lru + fcfs + sticky)", closed_rows.stock, ("swe", "web")),
    "shift": ("Shifting mixes, P3, against a tuned fixed limit", closed_rows.shifting, ("shift",)),
    "hidden": ("Hidden ends and human gaps against tuned reserve-older", closed_rows.hidden,
               ("swe-hitl", "web-hitl", "hetero-hitl", "shift-hitl", "coding")),
    "sustain": ("Sustained load against lazy SAGA (more is better)", closed_rows.sustain, ("swe", "web")),
    "placement": ("Placement against retuned SAGA", closed_rows.placement, ("swe", "web")),
    "throughput": ("Peak throughput against stock (more is better)", closed_rows.throughput, ("swe", "web")),
    "transfer": ("Transfer: trained elsewhere", open_rows.transfer, open_rows.MADE),
    "drift": ("Drift to a kind of session that nothing was trained on", closed_rows.drift, ("drift",)),
}


def workloads_of(s: Settings) -> list[str]:
    """Every workload that the rows asked for need."""
    needed = [n for row in s.rows for n in MAKERS[row][2] if row != "transfer" or s.transfer]
    recorded = s.recorded if {"eviction", "transfer", "hidden"} & set(s.rows) else ()
    return s.named(*dict.fromkeys([*needed, *recorded]))


def evaluate(lab: Lab, s: Settings) -> dict[str, Any]:
    """Run what the journal lacks; the report as JSON, less provenance. Nothing in it depends on the clock."""
    bench = Bench(lab, s)
    points = lab.points({n: _points_of(n, s) for n in workloads_of(s)})
    figures = {row: MAKERS[row][1](bench) for row in s.rows}
    tested = {"arm": {"told": s.joint, "hidden": s.hidden, **dict(s.own)},
              "evictions": [s.eviction_spec(), s.placement_spec()]}
    return {
        "kind": "simulated", "under_test": {"eviction": s.eviction, "placement": s.placement, "joint": s.joint,
                                            "hidden": s.hidden,
                                            "transfer": list(s.transfer), "own": dict(s.own),
                                            "sha256": {"/".join(Path(k).parts[-2:]): v
                                                       for k, v in weights(tested).items()}},
        "settings": {"seeds": list(s.test_seeds), "training_seeds": list(TRAIN_SEEDS), "rounds": s.rounds,
                     "workers": s.workers, "many_workers": s.many_workers, "budget": s.budget, "tune": s.tune},
        "rules": {"collapse_factor": COLLAPSE, "least_pairs": MIN_PAIRS, "low_pressure_share": LOW_PRESSURE,
                  "p1_lru_over_belady": list(P1_RANGE), "sustained_factor": SUSTAINED},
        "points": points, "rows": {row: [f.as_json() for f in found] for row, found in figures.items()},
        "left_out": [row for row, found in figures.items() if not found], "tuning": bench.tuned, "runs": lab.runs}


def _points_of(name: str, s: Settings) -> list[str]:
    rates = {"shift": {"shift"}, "hidden": {"shift-hitl"}, "sustain": {"swe", "web"}, "placement": {"swe", "web"}}
    out = ["pressure"]
    if any(name in rates.get(row, ()) for row in s.rows):
        out.append("peak")
    return [*out, "sustained"] if "placement" in s.rows and name in rates["placement"] else out


def write(result: dict[str, Any], out: Path) -> None:
    """protocol.json, protocol.md and protocol.png in `out`."""
    write_json(out / "protocol.json", result)
    with atomic(out / "protocol.md") as tmp:
        tmp.write_text(markdown(result), encoding="utf-8")
    protocol_picture(result, out / "protocol.png")


def markdown(result: dict[str, Any]) -> str:
    """The whole report for people."""
    under, s = result["under_test"], result["settings"]
    lines = ["# Evaluation on test sessions (simulated)", "",
             f"Under test: eviction `{under['eviction'] or '-'}`, placement `{under['placement'] or '-'}`, "
             f"order and admission `{under['joint'] or '-'}`"
             + (f", where nobody announces ends `{under['hidden']}`" if under.get("hidden") else "") + ".", "",
             f"{len(s['seeds'])} arrangements of test sessions, the same for every policy; ratios are geometric means "
             "of pairs with 95 % bootstrap intervals over arrangements. A run whose mean completion time is over "
             f"{COLLAPSE:g} x that of infinite memory has collapsed: its arrangement is left out and counted. `met`: "
             "the whole interval reaches the target; `met on average`: the value does, the interval not wholly. "
             f"Fewer than {MIN_PAIRS} sound pairs: not quotable.", ""]
    if "provenance" in result:
        made = result["provenance"]
        lines += [f"Commit {made['commit']}, version {made['version']}; `python {' '.join(made['argv'])}`.", ""]
    for row, found in result["rows"].items():
        lines += [f"## {MAKERS[row][0]}", ""]
        if not found:
            lines += ["Left out: no checkpoint, no other folders, or no workload for it was given.", ""]
            continue
        lines += [table(HEADER, [cells(f) for f in found]), ""]
    return "\n".join([*lines, *_points(result), *_budgets(result), ""])


def cells(f: dict[str, Any]) -> list[str]:
    """A figure as cells of a table."""
    target = "" if f["target"] is None else f"{'<=' if f['at_most'] else '>='} {f['target']:.3g}"
    down = f["detail"].get("collapsed", {})
    return [f["what"], interval(f["value"], f["low"], f["high"], 3), target, f["status"], str(f["pairs"]),
            ", ".join(f"{name} {n}" for name, n in down.items() if n), f["note"]]


def _points(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, p in result["points"].items():
        at = p["pressure"]
        ratio = or_dash(at["lru_over_belady"], "{:.2f}")
        rates = [or_dash(p.get(k, {}).get("per_worker_per_min"), "{:.2f}") for k in ("peak", "sustained")]
        rows.append([name, str(at["population_per_worker"]), f"{at['kv_tokens']:,}",
                     ratio + ("" if at["in_range"] else " (out of range)"), f"{at['stock_over_infinite']:.2f}", *rates])
    return ["## Points", "", "Found on training sessions with stock (peak: with the best preset).", "",
            table(("workload", "sessions a worker", "KV tokens a worker", "LRU / Belady", "stock / infinite memory",
                   "peak, sessions a minute and worker", "stock sustains"), rows), ""]


def _budgets(result: dict[str, Any]) -> list[str]:
    if not result["tuning"]:
        return []
    rows = []
    for t in result["tuning"]:
        chosen = t["chosen"] if isinstance(t["chosen"], str) else ", ".join(f"{k} {v}" for k, v in t["chosen"].items())
        rows.append([t["what"], t["where"], str(t["settings"]), str(t["runs"]), chosen])
    return ["## What the baselines were tuned with", "", "On training sessions, each setting on the same "
            f"{len(TRAIN_SEEDS)} arrangements; least geometric mean wins.", "",
            table(("what", "where", "settings", "runs", "chosen"), rows)]


def known_workload(name: str, data: str) -> str:
    """`name`, if there is such a workload. Raises `UserError`."""
    return workload(name, data=data or None).name


def recorded(data: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The recorded collections of a data folder."""
    from saga_rl.learn.judge.workloads import workload_names

    return tuple(n for n in workload_names(Path(data) if data else None) if n not in DEFINED)

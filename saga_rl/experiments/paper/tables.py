"""Each table or figure of the paper: its rows, what the paper prints, and which runs stand for them.

A figure of ours is a ratio or a share, as the paper's is once it is written so: its cluster and ours differ in speed,
so seconds are never compared. `Row.value` takes the results of the row's runs, one seed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saga_rl.experiments.cell import Result, Spec
from saga_rl.experiments.paper import served as engines
from saga_rl.experiments.paper import values as paper

SWE, WEB, BURST = "swe-bench", "webarena", "burstgpt"
BOTH = (SWE, WEB)
NOT_SAID = "the paper gives the row and not the policy"
VLLM, UNCACHED = "vLLM 0.15.1, prefix caching and affinity", "vLLM 0.6.0, no prefix caching"
READINGS = (("SAGA, as written", "saga-written"), ("SAGA, our reading", "saga-read"))
Value = Callable[[Mapping[str, Result]], float | None]
Alive = Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """A figure. paper: its value there, as a ratio or share. runs: by name, what of a spec differs from the table's
    point; the seed is added. value: of their results. why: why there is no figure. claim: the paper claims it for
    itself, so it is asked whether it is reached; `less` says which way is better."""

    name: str
    paper: float
    runs: Mapping[str, Spec]
    value: Value
    why: str = ""
    claim: bool = False
    less: bool = True


@dataclass(frozen=True)
class Table:
    """title: what it shows; rows: once the point is known (sessions alive on a worker by workload), and for our own
    policies; wants: workloads whose point it needs."""

    title: str
    rows: Callable[[Alive, Sequence[str]], list[Row]]
    wants: tuple[str, ...] = (SWE,)


def _run(workload: str, arm: str, alive: int, **more: Any) -> Spec:
    return {"what": "closed", "workload": workload, "arm": arm, "alive": alive, "workers": paper.WORKERS, **more}


def at_pressure(workload: str, alive: int) -> Spec:
    """One worker's reference string with so many sessions alive."""
    return {"what": "belady", "workload": workload, "alive": alive, "workers": 1}


def over(key: str) -> Value:
    """`ours` over `base` in the figure `key`."""
    def value(runs: Mapping[str, Result]) -> float | None:
        mine, base = runs["ours"][key], runs["base"][key]
        return float(mine) / float(base) if mine and base else None

    return value


def own(key: str) -> Value:
    """The figure `key` of `ours`."""
    return lambda runs: runs["ours"][key]


def again(label: str) -> Value:
    """Tokens computed again over Bélády's under the eviction that `label` names."""
    return lambda runs: None if runs["ours"]["low_pressure"] else runs["ours"]["ratio"][label]


def _against(ours: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{name}, beside SAGA's", name) for name in ours]


def headline(alive: Alive, ours: Sequence[str]) -> list[Row]:
    """The five figures of the paper's abstract, by our policies."""
    def geomean(key: str) -> Value:
        def value(runs: Mapping[str, Result]) -> float | None:
            return math.exp(sum(math.log(runs[f"ours {w}"][key] / runs[f"vllm {w}"][key]) for w in BOTH) / len(BOTH))

        return value

    rows = []
    for arm in ours:
        runs = {f"{who} {w}": _run(w, name, alive[w]) for w in BOTH for who, name in (("ours", arm), ("vllm", "vllm"))}
        per_minute = paper.PER_MINUTE["SAGA"] / paper.PER_MINUTE["breadth-first batching"]
        rows += [
            Row(f"{arm}: completion time over vLLM's", 1 / paper.FASTER, runs, geomean("tct_mean_s"), claim=True),
            Row(f"{arm}: useful memory over vLLM's", paper.MORE_USEFUL, runs, geomean("useful_kv_share"), claim=True,
                less=False),
            Row(f"{arm}: tasks in time", paper.IN_TIME["SAGA"]["all"], {"ours": _burst(arm)}, own("slo_attainment"),
                claim=True, less=False),
            Row(f"{arm}: tasks a minute over breadth-first batching", per_minute,
                {"ours": _run(SWE, arm, alive[SWE]), "base": _run(SWE, "breadth-first", alive[SWE])},
                over("throughput_sessions_per_min"), claim=True, less=False)]
    rows += [Row(f"{w}: tokens again over Bélády's, {label}", paper.OVER_BELADY["WA-LRU"][BOTH.index(w)],
                 {"ours": at_pressure(w, alive[w])}, again(label), claim=True)
             for w in BOTH for label in ("bayes-tables (auto, likely)",)]
    return rows


def completion(alive: Alive, ours: Sequence[str]) -> list[Row]:
    stands = {UNCACHED: "vllm-uncached", "SGLang 0.5.8": "sglang", "Llumnix": "llumnix",
              "TensorRT-LLM with Scaffolding": "", "KVFlow": "kvflow"}
    why = {"TensorRT-LLM with Scaffolding": NOT_SAID}
    rows = []
    for column, workload in enumerate(BOTH):
        base, saga = paper.TCT_S[VLLM][column], paper.TCT_S["SAGA"][column]
        here = [(name, paper.TCT_S[name][column], arm) for name, arm in stands.items()]
        here += [(name, saga, arm) for name, arm in (*READINGS, ("SAGA, preset", "saga"), *_against(ours))]
        for name, seconds, arm in here:
            runs = {"ours": _run(workload, arm, alive[workload]), "base": _run(workload, "vllm", alive[workload])}
            rows.append(Row(f"{workload}: {name}", seconds / base, {} if name in why else runs, over("tct_mean_s"),
                            why.get(name, "")))
    return rows


def served(alive: Alive, ours: Sequence[str]) -> list[Row]:
    """SWE-bench on two workers, simulated and on vLLM's schedulers; arms that ask for no copies of KV."""
    small = {"workers": engines.WORKERS, "tasks": engines.ROUNDS * engines.WORKERS * alive[SWE], "served": True,
             "scale": engines.SCALE}
    base, saga = paper.TCT_S[VLLM][0], paper.TCT_S["SAGA"][0]
    arms = [(UNCACHED, paper.TCT_S[UNCACHED][0], "vllm-uncached"), ("SAGA, preset", saga, "saga")]
    rows = []
    for name, seconds, arm in (*arms, *((name, saga, arm) for name, arm in _against(ours))):
        for how, what in (("simulated", "closed"), ("on vLLM's scheduler", "played")):
            runs = {part: _run(SWE, a, alive[SWE], **small) | {"what": what} for part, a in (("ours", arm),
                                                                                            ("base", "vllm"))}
            why = engines.missing() if what == "played" else ""
            rows.append(Row(f"{name}, {how}", seconds / base, {} if why else runs, over("tct_mean_s"), why))
    return rows


def memory(alive: Alive, ours: Sequence[str]) -> list[Row]:
    arms = [("vLLM", "vllm"), *READINGS, *_against(ours)]
    return [Row(f"{workload}: {name}",
                paper.USEFUL_KV["vLLM, prefix caching and affinity" if arm == "vllm" else "SAGA"][column],
                {"ours": _run(workload, arm, alive[workload])}, own("useful_kv_share"))
            for column, workload in enumerate(BOTH) for name, arm in arms]


def belady(alive: Alive, ours: Sequence[str]) -> list[Row]:
    labels = (("LRU", "LRU"), ("prefix LRU", "prefix LRU"), ("WA-LRU", "WA-LRU"), ("WA-LRU as written", "WA-LRU"))
    return [Row(f"{workload}: {label}", paper.OVER_BELADY[of][column], {"ours": at_pressure(workload, alive[workload])},
                again(label))
            for column, workload in enumerate(BOTH) for label, of in labels]


def ablation(alive: Alive, ours: Sequence[str]) -> list[Row]:
    rows = []
    for name, whole in READINGS:
        reading = whole.removeprefix("saga-")
        for what, seconds in paper.ABLATION_S.items():
            if what == "SAGA":
                continue
            none = reading == "written" and what == "no TTL"
            runs = {"ours": _run(SWE, f"{reading}: {what}", alive[SWE]), "base": _run(SWE, whole, alive[SWE])}
            rows.append(Row(f"{name.removeprefix('SAGA, ')}: {what}", seconds / paper.ABLATION_S["SAGA"],
                            {} if none else runs, over("tct_mean_s"),
                            "without its TTL nothing of the literal eviction is left but LRU" if none else ""))
    return rows


def _burst(arm: str) -> Spec:
    """At .8 of the peak that SAGA reaches, with its preemption where the policy is SAGA's."""
    preempt = {"afs_preempt_s": 0.5} if arm == "saga-read" else {}
    return _run(BURST, arm, 0, slo=True, rate_of_peak=0.8, **preempt)


def in_time(alive: Alive, ours: Sequence[str]) -> list[Row]:
    arms = [("vLLM", "vLLM", "vllm"), ("SAGA, our reading", "SAGA", "saga-read"), *((n, "SAGA", n) for n in ours)]
    return [Row(f"{name}: {kind}", share, {"ours": _burst(arm)},
                own("slo_attainment" if kind == "all" else f"in_time_{kind}"))
            for name, system, arm in arms for kind, share in paper.IN_TIME[system].items()]


def overheads(alive: Alive, ours: Sequence[str]) -> list[Row]:
    why = {"AFS": "a column of the order's score, no stage of its own",
           "AEG construction": "tables that each request updates in place, no stage of its own",
           "migration": "no KV moves between our engines"}
    return [Row(f"{what}, ms", value, {} if what in why else {"ours": {"what": "overhead", "workers": paper.WORKERS}},
                own("mean_ms"), why.get(what, ""))
            for what, value in paper.OVERHEAD_MS.items()]


def spread(alive: Alive, ours: Sequence[str]) -> list[Row]:
    base = _run(SWE, "saga-read", alive[SWE], cv=1.0)
    return [Row(f"CV {cv:g}", seconds / paper.LATENCY_CV_S[1.0], {"ours": base | {"cv": cv}, "base": base},
                over("tct_mean_s"))
            for cv, seconds in paper.LATENCY_CV_S.items() if cv != 1.0]


def throughput(alive: Alive, ours: Sequence[str]) -> list[Row]:
    target = paper.PER_MINUTE["SAGA"] / paper.PER_MINUTE["breadth-first batching"]
    base = _run(SWE, "breadth-first", alive[SWE])
    return [Row(name, target, {"ours": _run(SWE, arm, alive[SWE]), "base": base}, over("throughput_sessions_per_min"))
            for name, arm in (*READINGS, *_against(ours))]


def scaling(alive: Alive, ours: Sequence[str]) -> list[Row]:
    each = paper.TASKS[SWE] // paper.WORKERS
    few, many = ({"workers": w, "tasks": each * w} for w in (2, paper.WORKERS))
    return [Row(name, paper.SCALING, {"ours": _run(SWE, arm, alive[SWE]) | many,
                                      "base": _run(SWE, arm, alive[SWE]) | few}, over("throughput_sessions_per_min"))
            for name, arm in READINGS]


def utilisation(alive: Alive, ours: Sequence[str]) -> list[Row]:
    def edge(n: int) -> Value:
        return lambda runs: runs["ours"]["busy"][n]

    arms = (("without stealing", "read: no stealing"), ("with stealing", "saga-read"))
    return [Row(f"{what}: {word} busy worker", paper.UTILISATION[what][n], {"ours": _run(SWE, arm, 0)}, edge(n))
            for what, arm in arms for n, word in enumerate(("least", "most"))]


TABLES: dict[str, Table] = {
    "headline": Table("the five figures of the abstract, by policies that ship", headline, BOTH),
    "completion": Table("task completion time, over vLLM's with prefix caching and affinity", completion, BOTH),
    "engines": Table("completion time over vLLM's, simulated and on vLLM's real scheduler in virtual time (SWE-bench "
                     "at a sixteenth, two workers)", served),
    "memory": Table("KV memory that holds useful cache, share", memory, BOTH),
    "belady": Table("tokens prefilled again, over Bélády's", belady, BOTH),
    "ablation": Table("completion time without a part, over SAGA's (SWE-bench)", ablation),
    "deadlines": Table("tasks done within 1.5 x their time alone, share (BurstGPT, .8 of the peak)", in_time, ()),
    "overhead": Table("time of a decision (wall time of this machine)", overheads, ()),
    "tool-latency": Table("completion time by spread of tool latency, over that at CV 1 (SWE-bench)", spread),
    "throughput": Table("tasks a minute, over breadth-first batching's (SWE-bench)", throughput),
    "scaling": Table("throughput of 64 GPUs over that of 8 (SWE-bench)", scaling),
    "utilisation": Table("share of time that a worker is busy, at the paper's 8 tasks a minute", utilisation, ())}
"""By the name that the command takes."""

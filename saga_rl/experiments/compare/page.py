"""The one page: pictures, tables, and what every point means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saga_rl.experiments.compare import tables
from saga_rl.experiments.compare.settings import P1_RANGE, P1_RATIO, SUSTAINED
from saga_rl.report.html import Page


def write_page(summary: Mapping[str, Any], drawn: Mapping[str, bytes], path: Path) -> None:
    """index.html, self-contained. drawn: SVG by file name."""
    page = Page("saga-rl compare", dict(summary["provenance"]), wide=True)
    seeds = len(summary["settings"]["seeds"])
    page.text("Everything here is simulated. Every figure compares policies on the same arrangements of the same "
              f"sessions ({seeds} of them, paired): a ratio is a geometric mean over arrangements with a 95 % "
              "bootstrap interval. A cost below 1 is better; `better` and `worse` are said only where the whole "
              "interval lies on one side of 1. Points and parameters were set on training sessions that no figure "
              "here is of.")
    page.heading("The traces")
    page.table(*tables.trace_table(summary))
    page.text("Endless cache: the share of all prompt tokens that a cache without limit would serve. An arrangement "
              "draws its sessions, and the gaps between arrivals, from the test half; where block ids say what "
              "sessions share, it takes consecutive sessions as they came.", small=True)
    if summary["eviction"]:
        _eviction(page, summary, drawn)
    if summary["load"]:
        _load(page, summary, drawn)
    if summary["fairness"]:
        _fairness(page, summary, drawn)
    header, rows = tables.tuning_table(summary)
    if rows:
        page.heading("What was tuned")
        page.text(f"Every policy with a parameter to tune got the same budget: {summary['settings']['tune']} settings, "
                  "each tried on the training sessions under three seeds. The setting with the fewest tokens computed "
                  "again (eviction, at P1) or the least mean completion time (load) is what the tables above show. "
                  "Presets run as they are.")
        page.folded("all choices", header, rows)
    page.heading("What was left out")
    for line in summary["left_out"] or ["Nothing beyond what the tables mark."]:
        page.text(line)
    page.write(path)


def _eviction(page: Page, summary: Mapping[str, Any], drawn: Mapping[str, bytes]) -> None:
    page.heading("Capacity sweep: eviction on a fixed order of requests, Bélády at 1")
    page.text("One engine serves a closed population of "
              f"{summary['settings']['population']} sessions under stock policies; its order of requests is recorded "
              "and replayed under every policy. What counts is the tokens that are computed again, over those of "
              "Bélády, who knows the future and whom no policy can beat. P1 is the capacity at which LRU, on training "
              f"sessions, computes nearest to {P1_RATIO:g} times as much again as Bélády (of a search between the "
              "longest context and what all live sessions hold); it counts as a pressure point if that lies between "
              f"{P1_RANGE[0]:g} and {P1_RANGE[1]:g}. The other capacities are multiples of it, but never less than 1.1 "
              "times the longest context.")
    if "capacity.svg" in drawn:
        page.picture(drawn["capacity.svg"], "Tokens computed again over Bélády's. Darker: larger capacity. Ringed: "
                 "nearest P1. Points of low pressure (Bélády computes under 1 % of first-time tokens again) are left "
                 "out.")
    for trace in dict.fromkeys(r["trace"] for r in summary["eviction"]):
        page.folded(f"{trace}: over Bélády, with intervals, and against LRU", *tables.eviction_table(summary, trace))


def _load(page: Page, summary: Mapping[str, Any], drawn: Mapping[str, bytes]) -> None:
    page.heading("Load sweep: placement, ordering, admission, in closed loop")
    page.text(f"{summary['settings']['workers']} workers; a session's next call comes when its tool returns, so "
              "policies change the arrivals. Load 1 is the arrival rate at which the stock arrangement (preset lru) "
              f"still completes sessions in {SUSTAINED:g} times the time that infinite memory takes, found on training "
              "sessions; where memory never limits it so (see `limited by`), in that many times what sessions take "
              "that come one by one. One factor at a time is replaced in stock; presets, policies that "
              "are meant to go together (pair) and combinations of what did best on training sessions (picked) stand "
              "beside it. A mean completion time above 5 times that of infinite memory is a "
              "collapse: such runs are counted, and left out of ratios.")
    if "load-mean.svg" in drawn:
        page.picture(drawn["load-mean.svg"], "Mean completion time over stock's, by trace and load. Blue: shorter. "
                 "Red: longer. Bold: the interval excludes 1. `collapse`: it collapses more often than stock; "
                 "`rescue`: less often. Empty: both collapse.")
        page.picture(drawn["load-p95.svg"], "The same for the P95 of completion times.")
    page.picture(drawn["load-curves.svg"], "Mean completion time over that of infinite memory. Dashed: collapse.")
    for trace, load in dict.fromkeys((r["trace"], r["load"]) for r in summary["load"]):
        page.folded(f"{trace}, load {load:g}", *tables.load_table(summary, trace, load))


def _fairness(page: Page, summary: Mapping[str, Any], drawn: Mapping[str, bytes]) -> None:
    page.heading("Fairness as a constraint")
    given = summary["settings"]["constraints"]["gap+floors+afs"]
    page.text("Orderings with and without constraints that no policy can override: gap = a service gap of "
              f"{given['service_gap_tokens']:,.0f} tokens between waiting tenants; floors = every tenant keeps "
              f"{given['kv_floors']['*']:.0%} of each pool; afs = SAGA's preemption after "
              f"{given['afs_preempt_s']:g} s. The gap shown is the largest of any seed, its bound the one that must "
              "hold whatever the policies do. Slowdown: completion time over that of the session alone. SLO: sessions "
              "done within 1.5 times that. "
              "Ratios are to fcfs without constraints.")
    page.picture(drawn["fairness.svg"], "Left: a dot a tenant. Right: the gap, and its bound where one is set.")
    for trace, load in dict.fromkeys((r["trace"], r["load"]) for r in summary["fairness"]):
        page.text(f"{trace}, load {load:g}")
        page.table(*tables.fairness_table(summary, trace, load))

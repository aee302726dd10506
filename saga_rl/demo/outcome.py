"""Show what the demo found: one table in the terminal, one page for somebody who has read nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console

from saga_rl.demo.ring import BEST, LEARNED, RIVAL, Outcome
from saga_rl.demo.settings import Settings
from saga_rl.experiments.bench import pictures
from saga_rl.experiments.bench.arms import STOCK
from saga_rl.report.html import Page
from saga_rl.report.pictures import shares
from saga_rl.report.style import png
from saga_rl.report.tables import or_dash, terminal

HEAD = ("served by", "task", "of stock", "P95", "TTFT", "again", "cached", "simulated")
NAMES = {STOCK: "stock vLLM", BEST: "auto (rules)", LEARNED: "learned here", RIVAL: "vLLM Router"}
KIND = "measured, emulated devices"
MOST_LAG = 1.15
"""Served over simulated mean completion of stock vLLM, above which the machine is said to have been too slow."""


def rows(outcome: Outcome) -> list[list[str]]:
    """Cells as `HEAD` names them."""
    base = outcome.arms[STOCK]["tct_mean_s"]
    return [[NAMES[name], _s(a["tct_mean_s"]), "1" if name == STOCK else _ratio(a["tct_mean_s"], base),
             _s(a["tct_p95_s"]), or_dash(a["ttft_mean_s"], "{:.1f} s"),
             or_dash(a["recomputed_tokens"], "{:.1f}M", 1e-6), or_dash(a["hit_share"], "{:.0%}"),
             _s(a["simulated_tct_mean_s"])]
            for name, a in outcome.arms.items()]


def _s(x: float | None) -> str:
    return or_dash(x, "{:.0f} s")


def _ratio(x: float | None, base: float | None) -> str:
    return "-" if x is None or not base else f"{x / base:.2f}"


def show(outcome: Outcome, console: Console) -> None:
    """The table, and in two sentences what it means."""
    f = outcome.facts
    table = terminal(HEAD, rows(outcome), f"{f['served']['sessions']} agent sessions on {f['cluster']['engines']} "
                     "EMULATED H100s", no_wrap=True, box=SIMPLE_HEAD, caption_justify="left",
                     caption="task: mean time to its end, tools included; P95: 95 of 100 took less; TTFT: time to the "
                     "first token; again: prompt tokens computed again; cached: of the prompts")
    console.print()
    console.print(table)
    for sentence in (_verdict(outcome), _caveat(f), _lag(outcome)):
        if sentence is None:
            continue
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _verdict(outcome: Outcome) -> str:
    """The result in one sentence, gain or loss."""
    times = {name: a["tct_mean_s"] for name, a in outcome.arms.items() if a["tct_mean_s"]}
    base, mine = times.get(STOCK), times.get(LEARNED)
    if not base or not mine:
        return "A run failed, so there is no verdict; the logs beside the report say why."
    change = 1 - mine / base
    best = min(times, key=times.__getitem__)
    said = (f"Under the policy that was learned here an agent's task took {mine:.0f} s on average, "
            + (f"{change:.0%} less than" if change > 0 else f"{-change:.0%} MORE than" if change < 0 else "as long as")
            + f" under stock vLLM ({base:.0f} s).")
    return said if best == LEARNED else f"{said} The shortest of all was {NAMES[best]} with {times[best]:.0f} s."


def _lag(outcome: Outcome) -> str | None:
    """A warning where this machine was too busy to keep the devices' time: then all arms look slower than they are."""
    stock = outcome.arms[STOCK]
    served, foretold = stock["tct_mean_s"], stock["simulated_tct_mean_s"]
    if not served or not foretold or served < MOST_LAG * foretold:
        return None
    return (f"This machine was too busy to keep the devices' time: under stock vLLM a task took {served:.0f} s, and "
            f"{foretold:.0f} s were to be expected. All figures are too high, and not alike; run the demo again when "
            "nothing else is running.")


def _caveat(f: dict[str, Any]) -> str:
    return ("One run of each on emulated devices: vLLM is real, the GPUs are not, and differences of a few percent are "
            "chance.")


def write_page(s: Settings, outcome: Outcome, path: Path) -> None:
    """The self-contained report."""
    f, arms = outcome.facts, {NAMES[name]: a for name, a in outcome.arms.items()}
    served, cluster, sessions = f["served"], f["cluster"], f["sessions"]
    page = Page("Do your agents finish sooner under another scheduler?", f["provenance"] | {
        "stage_seconds": f["stage_seconds"], "settings": {"time_scale": s.time_scale, "expiry_s": s.expiry_s,
                                                           **cluster}})
    page.text(_verdict(outcome))
    page.text(_caveat(f) + f" The devices imitate H100s that serve Llama 3.1 8B: each step of vLLM waits as long as a "
              f"profile of measured kernels says ({s.profile}). No model is computed.")
    if (lag := _lag(outcome)) is not None:
        page.text(lag)
    page.heading("What was compared")
    page.text("An AI agent calls a model, runs a tool, and calls the model again with a longer prompt. While the tool "
              "runs, the attention state of its prompt (the KV cache) lies idle in GPU memory. When memory is short, "
              "the server drops somebody's, and has to compute it again when that agent comes back. Which one to drop, "
              "whose request comes next, and whether to let one more agent in: a scheduling policy decides that.")
    page.text(f"{served['sessions']} sessions ({served['steps']} calls; source: {sessions['source']}) were played, "
              f"{cluster['alive']} at a time, against {cluster['engines']} engines with {cluster['kv_tokens']:,} "
              "tokens of KV cache each, once under each of these:")
    page.table(("served by", "what it is"), [[NAMES[name], says] for name, says in f["says"].items()])
    page.heading("What was found")
    page.table(HEAD, rows(outcome))
    page.text("task: mean time from a session's start to its last answer, tools included. P95: 95 of 100 "
              "sessions took less. TTFT, time to first token: how long a call waits for its answer to begin. again: "
              "prompt tokens that had been computed before and were lost. cached: share of all prompt tokens found in "
              "the cache. simulated: what our simulator says for the same sessions. Seconds are the devices'.",
              small=True)
    page.picture(png(shares({name: list(a["tct_s"].values()) for name, a in arms.items()}, KIND)),
                 f"Share of sessions done within a time ({KIND}).")
    capacity = cluster["engines"] * cluster["kv_tokens"]
    held = {NAMES[name]: h for name, h in outcome.held.items() if h["time_s"]}
    if held:
        page.picture(png(pictures.kv(held, capacity, KIND)),
                     "KV cache by session over time. A band that narrows was dropped and had to be computed again. The "
                     f"line is the memory there is ({KIND}).")
    page.heading("How it was learned")
    left = "; ".join(f"{n} {why}" for why, n in sessions["left_out"].items())
    page.text(f"Of {sessions['in_all']} sessions, {sessions['train']} were used to search a policy in the simulator, "
              f"{sessions['validation']} to choose the best found, and the {sessions['test']} others to judge: no "
              "session that was served had been seen." + (f" Left out: {left}." if left else ""))
    page.heading("What to do next")
    page.text("1. Serve your agents with `saga-rl serve MODEL --policy auto --record served.parquet` (rules, "
              "nothing to train) and record a day. 2. Search on the recording, as this demo did (docs/how-to/learn.md)."
              " 3. Measure before you switch: `saga-rl bench served.parquet --arms stock,auto,FOLDER --emulate "
              "PROFILE` for your GPUs, with repeats and intervals. The learned policy of this demo is in the folder "
              "learned, beside this page; it was made for this demo's sessions, not for yours.")
    page.write(path)

"""Show what the ring gave: one table in the terminal, one page with pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from saga_rl.demo.ring import STOCK, Outcome
from saga_rl.demo.settings import Settings
from saga_rl.provenance import provenance
from saga_rl.report import pictures
from saga_rl.report.html import Page
from saga_rl.report.style import png
from saga_rl.report.tables import comparison, comparison_header, comparison_rows

NAMES = {STOCK: "lru (stock)"}


def named(outcome: Outcome) -> dict:
    return {NAMES.get(k, k): v for k, v in outcome.arms.items()}


def show(s: Settings, outcome: Outcome, console: Console) -> None:
    """The table, and in a sentence what it is about."""
    served, cluster = outcome.facts["served"], outcome.facts["cluster"]
    title = (f"{served['sessions']} held-out sessions, {served['steps']} steps, lengths x {served['length_factor']:g}, "
             f"times x {served['time_factor']:g}; {cluster['engines']} vLLM engines x {cluster['kv_tokens']:,} KV "
             "tokens")
    console.print()
    console.print(comparison(named(outcome), title))
    error = cluster["profile"]["relative_error_rms"]
    console.print("One run of each, on this machine: differences of a few percent are noise. Simulated rows use costs "
                  f"fitted to these engines (relative error {error:.0%}; more means that something else kept the "
                  "machine busy).", style="dim", soft_wrap=True)


def write_page(s: Settings, outcome: Outcome, path: Path) -> None:
    """The self-contained report."""
    f, arms = outcome.facts, named(outcome)
    served, cluster = f["served"], f["cluster"]
    page = Page("saga-rl: the ring, once round", provenance(seed=s.seed, trace=s.at("served.parquet"),
                                                            stage_seconds=f["stage_seconds"], cluster=cluster))
    page.text(f"From {f['trace']['name']} ({f['trace']['source']}, {f['trace']['sessions']} sessions, of which a part "
              "was held out) an eviction policy was trained on recorded decisions and judged on held-out sessions in "
              "the simulator; then order, admission and eviction were searched together with the costs of these "
              "engines (checkpoint), and the held-out sessions served with real vLLM engines.")
    page.heading("Served by vLLM, and the same in the simulator")
    page.text(f"{served['sessions']} held-out sessions ({served['steps']} steps), {cluster['concurrency']} at a time, "
              f"on {cluster['engines']} engines of {cluster['kv_tokens']:,} KV tokens each, which the live sessions "
              f"oversubscribe {cluster['pressure']:g} times. Lengths are multiplied by {served['length_factor']:g} and "
              f"times by {served['time_factor']:g} to suit the model ({cluster['model']}).")
    page.table(comparison_header(STOCK), comparison_rows(arms))
    page.text("Measured: wall-clock time of real requests, one run of each policy on one machine. Simulated: the same "
              "sessions with costs fitted to these engines "
              f"(relative error {cluster['profile']['relative_error_rms']:.0%}). "
              "The baseline is lru, which evicts, orders and admits as stock vLLM does.", small=True)
    page.picture(png(pictures.completion_times({n: {k: list(m["tct_s"].values()) for k, m in by.items()}
                                                for n, by in arms.items()})),
                 "Share of sessions done within a time. Solid: measured on vLLM. Dashed: simulated.")
    page.heading("Tokens computed again, against capacity")
    page.picture(png(pictures.computed_again(outcome.evaluation["open_loop"])),
                 "Simulated, open loop: held-out sessions in their own lengths on one engine; every policy plays the "
                 "same requests. Bélády knows the future; no policy can be below it.")
    page.heading("Whose KV is in memory")
    page.picture(png(pictures.occupancy({NAMES.get(k, k): v for k, v in outcome.occupancy.items()},
                                        cluster["engines"] * cluster["kv_tokens"], cluster["block_tokens"])),
                 "Simulated, both engines together. A band that vanishes and returns was evicted and computed again.")
    page.heading("And back to a trace")
    page.text(f"The engines recorded what they served under the checkpoint: {f['recorded']['sessions']} sessions, "
              f"{f['recorded']['steps']} steps, read back, validated and simulated ({f['recorded']['source']}).")
    page.write(path)

"""The arm `own`: what a user does who trains on his own traffic. Costs of these engines, idle and under the traffic,
sessions that no run draws, a search from the shipped checkpoint on.

Two engines, an API server and the client share the cores here, so what an idle server is timed at is not what it takes
under load. Training sessions are played with infinite memory, and two numbers make the simulator agree with what was
seen: a factor on every cost (seconds between tokens), and seconds that a request takes besides (until its first token).
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gain_kit.engines import KEY, Server
from gain_kit.material import draw, stocks
from gain_kit.measure import Bench
from gain_kit.run import play
from gain_kit.settings import ARMS, INFINITE, TRAINED, Setup
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.demo.stages import Child
from saga_rl.policies.presets import preset
from saga_rl.runtime.calibrate import measure, profile_from
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost import CostProfile, load_profile

F64 = NDArray[np.float64]
SEARCH = Path(__file__).resolve().parents[2] / "training" / "search.py"
FRACTIONS = {"train": 0.6, "validation": 0.4}
COSTS = ("base_s", "per_prefill_token_s", "per_kv_token_s", "per_seq_s", "per_attn_s", "per_context_s")
FACTORS = (0.5, 8.0)
STEPS, LONGEST_GAPS_S = (3, 40), 1200.0
"""Limits on what is searched on: wider than those of runs, which are to be short, or too few sessions would be left."""
GENERATIONS, CANDIDATES, EPISODES, CHECKS = 100, 24, 3, 8


def calibrated(bench: Bench, repeats: int = 2) -> CostProfile:
    """`profile.json` in the bench's folder; where there is none, one stock server that is otherwise idle is timed
    first. Situations that do not fit its pool are left out and told."""
    kept = bench.folder / "profile.json"
    if kept.exists():
        return load_profile(str(kept))
    s, pool = bench.setup, bench.pools.whole
    with Server(s, "stock", bench.model, pool, bench.folder / "calibrate.log", bench.env, bench.extra) as server:
        server.ready()
        samples = asyncio.run(measure(
            server.url, engines=s.engines, max_batched_tokens=s.max_batched_tokens, repeats=repeats, kv_tokens=pool,
            api_key=KEY, batches=[n for n in (1, 4, 16) if n <= s.max_num_seqs],
            say=lambda text: bench.console.print(text, markup=False)))
    profile = profile_from(samples, "measured", pool, s.max_batched_tokens, model=bench.model.name)
    profile.save(kept)
    return profile


def own_sessions(setup: Setup, data: Path, cache: Path) -> dict[str, Trace]:
    """The sessions that no run draws, by part: all sources mixed, as they are in a run, split by group."""
    wider = replace(setup, steps=STEPS, longest_gaps_s=LONGEST_GAPS_S)
    return split(draw(stocks(wider, data, cache, TRAINED), wider, 0, whole=True), FRACTIONS, setup.seed)


def times(profile: CostProfile, factor: float) -> CostProfile:
    """Every cost so many times."""
    return replace(profile, batch_s=tuple(factor * x for x in profile.batch_s),
                   **{k: factor * getattr(profile, k) for k in COSTS})


def latencies(trace: Trace, ready_s: F64, first_token_s: F64, done_s: F64) -> tuple[float, float]:
    """Mean seconds until the first token, and from a token to the next."""
    more = trace.steps.output_tokens > 1
    between = (done_s - first_token_s)[more].sum() / (trace.steps.output_tokens[more] - 1).sum()
    return float((first_token_s - ready_s).mean()), float(between)


def under_load(setup: Setup, profile: CostProfile, trace: Trace, pool: int, seen: tuple[float, float]
               ) -> tuple[CostProfile, float]:
    """The profile with the factor at which the simulator's time between tokens is the one seen, and the seconds by
    which its first tokens come sooner than those seen. seen: `latencies` of `trace`, `pool` tokens an engine."""
    def simulated(factor: float) -> tuple[float, float]:
        config = SimConfig(workers=setup.engines, kv_tokens=pool, block_tokens=setup.block_tokens,
                           max_num_seqs=setup.max_num_seqs, max_batched_tokens=setup.max_batched_tokens,
                           profile=times(profile, factor), population=setup.alive, end_hint=setup.ends,
                           expiry_s=setup.expiry_s)
        steps = simulate(trace, config, preset("lru"), slo=False).steps
        return latencies(trace, steps["ready_s"], steps["first_token_s"], steps["done_s"])

    low, high = FACTORS
    for _ in range(20):
        mid = float(np.sqrt(low * high))
        low, high = (mid, high) if simulated(mid)[1] < seen[1] else (low, mid)
    request_s = max(seen[0] - simulated(high)[0], 0.0)
    loaded = times(profile, high)
    notes = profile.provenance | {"load_factor": high, "load_request_s": request_s}
    return replace(loaded, name=f"{profile.name}, loaded", provenance=notes), request_s


def search_command(setup: Setup, parts: dict[str, Path], pools: tuple[int, ...], profile: Path, out: Path) -> list[str]:
    """`training/search.py` on those sessions, at every pressure, on such engines; from the shipped checkpoint on."""
    hidden = "" if setup.ends else "@hidden"
    each = len(pools)
    return [sys.executable, "-u", str(SEARCH), *[f"{parts['train']}{hidden}"] * each,
            "--validation", ",".join([str(parts["validation"])] * each), "--kv-tokens", ",".join(map(str, pools)),
            "--workers", str(setup.engines), "--population", str(setup.alive // setup.engines),
            "--sessions", str(setup.sessions), "--profile", str(profile), "--block-tokens", str(setup.block_tokens),
            "--max-num-seqs", str(setup.max_num_seqs), "--max-batched-tokens", str(setup.max_batched_tokens),
            "--expiry-s", f"{setup.expiry_s:g}", "--beside", "placement=least-sessions",
            "--start", str(ARMS["checkpoint"].policy), "--generations", str(GENERATIONS), "--episodes", str(EPISODES),
            "--candidates", str(CANDIDATES), "--checks", str(CHECKS), "--seed", str(setup.seed), "--out", str(out),
            "--run-dir", str(out.parent), "--wandb", "disabled"]


def make_own(bench: Bench, data: Path, out: Path, console: Console) -> None:
    """The checkpoint of the arm `own`, unless it is there. Raises `StageFailed`, `UserError`."""
    if (out / "admission").is_dir():
        return
    folder, setup = out.parent, bench.setup
    folder.mkdir(parents=True, exist_ok=True)
    profile, parts = calibrated(bench), own_sessions(setup, data, bench.folder)
    if not (folder / "profile.json").exists():
        with Server(setup, INFINITE, bench.model, bench.pools.whole, folder / "load.log", bench.env, bench.extra
                    ) as server:
            server.ready()
            _, m = play(setup, INFINITE, parts["train"], server.url, "load/")
        seen = latencies(parts["train"], m.ready_s, m.first_token_s, m.done_s)
        under_load(setup, profile, parts["train"], bench.pools.whole, seen)[0].save(folder / "profile.json")
    told = load_profile(str(folder / "profile.json")).provenance
    request_s = float(told["load_request_s"])
    console.print(f"under load costs are {told['load_factor']:.2f} times those of idle engines (relative error "
                  f"{told['relative_error_rms']:.0%}), and a request takes {request_s:.3f} s besides", markup=False,
                  soft_wrap=True)
    files = {}
    for part, trace in parts.items():
        files[part] = folder / f"{part}.parquet"
        t = trace.steps
        write_trace(replace(trace, steps=replace(t, tool_s=t.tool_s + request_s)), files[part])
    command = search_command(setup, files, bench.pools.tokens, folder / "profile.json", out)
    log = folder / "search.log"
    with console.status(f"searching on sessions that no run draws; its log is {log}"), Child(
            "search", command, log) as child:
        if child.process.wait() != 0:
            raise child.failure(f"ended with status {child.process.returncode}")
    console.print(log.read_text().splitlines()[-1], markup=False, soft_wrap=True)

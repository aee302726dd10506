"""The arm `own`: what a user does who trains on his own traffic. Costs of these engines, sessions that no run draws, a
search from the shipped checkpoint on.

Two engines, an API server and the client share the cores here, so a request takes longer than the engines do for it.
Training sessions are played with infinite memory; what they take longer than simulated ones, every request takes alike.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from gain_kit.engines import KEY, Server
from gain_kit.material import draw, stocks
from gain_kit.measure import Bench
from gain_kit.run import play
from gain_kit.settings import ARMS, INFINITE, TRAINED, Setup
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.scale import delayed
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.demo.stages import Child
from saga_rl.files import write_json
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.runtime.calibrate import measure, profile_from
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost import CostProfile, load_profile

SEARCH = Path(__file__).resolve().parents[2] / "training" / "search.py"
FRACTIONS = {"train": 0.6, "validation": 0.4}
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


def request_seconds(setup: Setup, profile: CostProfile, trace: Trace, pool: int, tct_s: float) -> float:
    """What a request takes besides what engines do for it, s: with it the simulator has the mean completion time
    `tct_s` that was seen with `pool` tokens an engine. 0 where it has more without."""
    config = SimConfig(workers=setup.engines, kv_tokens=pool, block_tokens=setup.block_tokens,
                       max_num_seqs=setup.max_num_seqs, max_batched_tokens=setup.max_batched_tokens, profile=profile,
                       population=setup.alive, end_hint=setup.ends, expiry_s=setup.expiry_s)

    def simulated(request_s: float) -> float:
        found = simulate(delayed(trace, request_s), config, preset("lru"), slo=False).tct_s
        return float(found.mean()) + request_s  # the last answer is late, too

    low, high = 0.0, tct_s
    for _ in range(20):
        mid = (low + high) / 2
        low, high = (mid, high) if simulated(mid) < tct_s else (low, mid)
    return low


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
    loaded = folder / "loaded.json"
    if not loaded.exists():
        with Server(setup, INFINITE, bench.model, bench.pools.whole, folder / "loaded.log", bench.env, bench.extra
                    ) as server:
            server.ready()
            _, m = play(setup, INFINITE, parts["train"], server.url, "load/")
        tct_s = float(np.mean(m.end_s - m.start_s))
        write_json(loaded, {"tct_mean_s": tct_s, "request_s": request_seconds(
            setup, profile, parts["train"], bench.pools.whole, tct_s)} | provenance(seed=None, trace=None))
    request_s = float(json.loads(loaded.read_text())["request_s"])
    console.print(f"profile.json: relative error {profile.provenance['relative_error_rms']:.0%}; under load a request "
                  f"takes {request_s:.3f} s besides what the engines do for it", markup=False, soft_wrap=True)
    files = {}
    for part, trace in parts.items():
        files[part] = folder / f"{part}.parquet"
        write_trace(delayed(trace, request_s), files[part])
    command = search_command(setup, files, bench.pools.tokens, bench.folder / "profile.json", out)
    log = folder / "search.log"
    with console.status(f"searching on sessions that no run draws; its log is {log}"), Child(
            "search", command, log) as child:
        if child.process.wait() != 0:
            raise child.failure(f"ended with status {child.process.returncode}")
    console.print(log.read_text().splitlines()[-1], markup=False, soft_wrap=True)

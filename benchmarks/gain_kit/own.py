"""The arm `own`: what a user does who trains on his own traffic. Cost profile of these engines, sessions that no run
draws, a search from the shipped checkpoint on; all by the commands that a user has.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gain_kit.engines import KEY, Server
from gain_kit.material import draw, stocks
from gain_kit.measure import Bench
from gain_kit.settings import ARMS, TRAINED, Setup
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.split import split
from saga_rl.demo.stages import Child
from saga_rl.runtime.calibrate import measure, profile_from
from saga_rl.sim.cost import CostProfile, load_profile

SEARCH = Path(__file__).resolve().parents[2] / "training" / "search.py"
FRACTIONS = {"train": 0.6, "validation": 0.4}
STEPS, LONGEST_GAPS_S = (3, 40), 1200.0
"""Limits on what is searched on: wider than those of runs, which are to be short, or too few sessions would be left."""
GENERATIONS, EPISODES, CHECKS = 60, 2, 6


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


def own_sessions(setup: Setup, data: Path, cache: Path, folder: Path) -> dict[str, Path]:
    """Traces of the sessions that no run draws, by part: all sources mixed, as they are in a run, split by group."""
    wider = replace(setup, steps=STEPS, longest_gaps_s=LONGEST_GAPS_S)
    mixed = draw(stocks(wider, data, cache, TRAINED), wider, 0, whole=True)
    out = {}
    for part, trace in split(mixed, FRACTIONS, setup.seed).items():
        out[part] = folder / f"{part}.parquet"
        write_trace(trace, out[part])
    return out


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
            "--checks", str(CHECKS), "--seed", str(setup.seed), "--out", str(out), "--run-dir", str(out.parent),
            "--wandb", "disabled"]


def make_own(bench: Bench, data: Path, out: Path, console: Console) -> None:
    """The checkpoint of the arm `own`, unless it is there. Raises `StageFailed`, `UserError`."""
    if (out / "admission").is_dir():
        return
    folder = out.parent
    folder.mkdir(parents=True, exist_ok=True)
    profile = calibrated(bench)
    console.print(f"profile.json: relative error {profile.provenance['relative_error_rms']:.0%}", markup=False)
    parts = own_sessions(bench.setup, data, bench.folder, folder)
    command = search_command(bench.setup, parts, bench.pools.tokens, bench.folder / "profile.json", out)
    log = folder / "search.log"
    with console.status(f"searching on sessions that no run draws; its log is {log}"), Child(
            "search", command, log) as child:
        if child.process.wait() != 0:
            raise child.failure(f"ended with status {child.process.returncode}")
    console.print(log.read_text().splitlines()[-1], markup=False, soft_wrap=True)

"""The stages of the demo in order."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.scale import delayed
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.demo import material
from saga_rl.demo.server import Server
from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import Stages
from saga_rl.files import write_json
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.runtime.calibrate import measure, profile_from
from saga_rl.runtime.recorder import journal_folder
from saga_rl.runtime.replay import progress_bar, run_replay
from saga_rl.runtime.tiny_model import build_tiny_model
from saga_rl.sim.cluster import SimResult, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost import CostProfile

STOCK, BEST, LEARNED = "lru", "saga+", "checkpoint"
OCCUPANCY_SAMPLES = 400
SCRIPTS = Path(__file__).resolve().parents[2] / "training"
SHIPPED = SCRIPTS.parent / "checkpoints" / "joint"


@dataclass
class Outcome:
    """What the ring gave: everything that the table, the page and results.json are made of."""

    facts: dict[str, Any]
    arms: dict[str, dict[str, dict[str, Any]]]
    """policy -> `measured`, `simulated` -> metrics, with `tct_s` by session."""
    evaluation: dict[str, Any]
    occupancy: dict[str, dict[str, np.ndarray]]


def run(s: Settings, console: Console) -> Outcome:
    """Go round once. Raises `UserError` for bad input and `StageFailed` for a stage that broke; no process survives."""
    s.at("joint.search.jsonl").unlink(missing_ok=True)
    for name in ("dataset-v0", "checkpoint", "joint", "evaluation", "tiny", journal_folder("recorded.parquet").name):
        shutil.rmtree(s.at(name), ignore_errors=True)
    for unfinished in s.folder.glob(".dataset-v0.*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    stages = Stages(s.at("logs"), console, 13)
    with ExitStack() as stack:
        return _ring(s, stages, stack, console)


def _ring(s: Settings, stages: Stages, stack: ExitStack, console: Console) -> Outcome:
    with stages.stage("trace", "generating" if s.trace is None else f"reading {s.trace}") as say:
        trace = material.load(s)
        parts = split(trace, {"train": s.train_share, "held-out": 1 - s.train_share}, s.seed)
        for name, part in parts.items():
            write_trace(part, s.at(f"{name}.parquet"))
        say(f"{trace.meta.name}: {trace.n_sessions} sessions, split by group into "
            + ", ".join(f"{part.n_sessions} {name}" for name, part in parts.items()))

    with stages.stage("model", "held-out sessions brought down to a tiny model") as say:
        model = build_tiny_model(s.at("tiny"), max_len=s.model_len, seed=s.seed)
        served = material.served_sessions(parts["held-out"], s)
        write_trace(served.trace, s.at("served.parquet"))
        kv = material.pool_tokens(served.trace, s)
        say(f"{served.trace.n_sessions} held-out sessions, {served.trace.n_steps} steps, lengths x "
            f"{served.length_factor:g}, times x {served.time_factor:g}, for {s.engines} engines of {kv:,} KV tokens")

    # Two minutes of imports on two cores: the first server starts while the policy learns.
    server = stack.enter_context(Server(s, f"serve {STOCK}", STOCK, model, kv, stages.log(f"serve-{STOCK}")))
    _learn(s, stages)

    arms: dict[str, dict[str, dict[str, Any]]] = {}
    with stages.stage("calibrate", "waiting for the two engines to start") as say:
        server.ready()
        say("timing a few prompts on the two engines")
        samples = asyncio.run(measure(s.url, engines=s.engines, max_batched_tokens=s.max_batched_tokens))
        profile = profile_from(samples, "this-machine", kv, s.max_batched_tokens)
        profile.save(s.at("profile.json"))
        say(f"cost profile fitted, relative error {profile.provenance['relative_error_rms']:.0%}")
    with stages.stage("search", "order, admission and eviction together, on training sessions with those costs") as say:
        _search(s, stages, material.trained_sessions(parts["train"], served, s), kv, profile)
        say(s.at("logs").joinpath("search.log").read_text().splitlines()[-1])
    recorded, policies = s.at("recorded.parquet"), {STOCK: STOCK, BEST: BEST, LEARNED: str(s.at("joint"))}
    for name, policy in policies.items():
        if name != STOCK:
            with stages.stage(f"start {name}", f"saga-rl serve --policy {policy}"):
                server = stack.enter_context(Server(s, f"serve {name}", policy, model, kv, stages.log(f"serve-{name}"),
                                                    record=recorded if name == LEARNED else None))
                server.ready()
        arms[name] = {"measured": _replay(s, stages, served.trace, name, console)}
        server.stop()

    with stages.stage("simulate", "the same sessions in the simulator, with the fitted costs") as say:
        occupancy = {}
        for name, policy in policies.items():
            result = simulated(served.trace, s, kv, profile, policy)
            ids = served.trace.sessions.session_id
            arms[name]["simulated"] = result.metrics | {
                "tct_s": {ids[i]: float(t) for i, t in enumerate(result.tct_s) if np.isfinite(t)}}
            if result.occupancy is not None:
                occupancy[name] = result.occupancy
        again = read_trace(recorded)
        check = simulated(again, s, kv, profile, STOCK)
        say(f"the recorded trace imports: {again.n_sessions} sessions, {again.n_steps} steps, "
            f"{check.metrics['sessions_done']} done in the simulator")
    facts = _facts(s, stages, trace, served, kv, profile, again)
    write_json(s.at("results.json"), facts | {"arms": arms, "provenance": provenance(
        seed=s.seed, trace=s.at("served.parquet"))})
    return Outcome(facts, arms, _read_json(s.at("evaluation/evaluation.json")), occupancy)


def _learn(s: Settings, stages: Stages) -> None:
    """Collect, train and evaluate by the scripts that a person would run."""
    script = [sys.executable, "-u"]
    train, held_out = str(s.at("train.parquet")), str(s.at("held-out.parquet"))
    # Minari loses its way to a dataset under a relative path.
    data, out = str(s.at("dataset-v0").resolve()), str(s.at("checkpoint"))
    with stages.stage("collect", "decisions under several behaviours, in the simulator") as say:
        stages.call("collect", [*script, str(SCRIPTS / "collect.py"), train, "--out", data, "--pressure", s.pressures,
                                "--population", str(s.population), "--sessions", str(s.episode_sessions),
                                "--seed", str(s.seed), "--overwrite"])
        say("eviction decisions with Belady labels")
    with stages.stage("train", "pairwise ranking on Belady labels"):
        stages.call("train", [*script, str(SCRIPTS / "train_offline.py"), data, "--out", out, "--epochs", str(s.epochs),
                              "--seed", str(s.seed), "--wandb", "offline"])
    with stages.stage("evaluate", "on held-out sessions, in the simulator, paired seeds"):
        stages.call("evaluate", [*script, str(SCRIPTS / "evaluate.py"), out, held_out, "--out", str(s.at("evaluation")),
                                 "--pressure", s.evaluate_pressures, "--population", str(s.population),
                                 "--seeds", str(s.evaluate_seeds), "--open-seeds", "1"])


def _search(s: Settings, stages: Stages, parts: dict[str, Trace], kv: int, profile: CostProfile) -> None:
    """By the script that a person would run; from the shipped checkpoint on, where it is there."""
    for name, part in parts.items():
        write_trace(delayed(part, profile.provenance["request_s"]), s.at(f"search-{name}.parquet"))
    start = ["--start", str(SHIPPED)] if SHIPPED.is_dir() else []
    stages.call("search", [
        sys.executable, "-u", str(SCRIPTS / "search.py"), str(s.at("search-train.parquet")), "--validation",
        str(s.at("search-validation.parquet")), "--out", str(s.at("joint")), "--kv-tokens", str(kv),
        "--profile", str(s.at("profile.json")), "--workers", str(s.engines), "--block-tokens", str(s.block_tokens),
        "--max-num-seqs", str(s.max_num_seqs), "--max-batched-tokens", str(s.max_batched_tokens),
        "--population", str(s.concurrency // s.engines), "--sessions", str(s.episode_sessions),
        "--beside", "placement=least-sessions", "--generations", str(s.generations), "--seed", str(s.seed), *start])


def _replay(s: Settings, stages: Stages, trace: Trace, name: str, console: Console) -> dict[str, Any]:
    """Play the held-out sessions against the running server, with a progress bar of its own."""
    number = len(stages.seconds) + 1
    with progress_bar(console) as progress:
        console.print(f"[{number}/{stages.total}] serve {name}: {trace.n_sessions} sessions, {s.concurrency} at a time",
                      markup=False)
        result, measured = asyncio.run(run_replay(trace, s.url, concurrency=s.concurrency, block_tokens=s.block_tokens,
                                                  progress=progress))
    stages.seconds[f"serve {name}"] = measured.wall_s
    source = provenance(seed=s.seed, trace=s.at("served.parquet"))
    write_json(s.at(f"measured-{name}.json"), result | {"provenance": source})
    for line in result["errors"]:
        console.print(f"  failed: {line}", markup=False, style="red")
    return result


def simulated(trace: Trace, s: Settings, kv_tokens: int, profile: CostProfile, policy: str) -> SimResult:
    """The same cluster in the simulator. What HTTP costs a request, for which it has no term, goes to the tools."""
    config = SimConfig(workers=s.engines, kv_tokens=kv_tokens, block_tokens=s.block_tokens, max_num_seqs=s.max_num_seqs,
                       max_batched_tokens=s.max_batched_tokens, profile=profile, population=s.concurrency)
    return simulate(delayed(trace, profile.provenance["request_s"]), config, preset(policy), seed=s.seed,
                    occupancy=OCCUPANCY_SAMPLES)


def _facts(s: Settings, stages: Stages, trace: Trace, served: material.Served, kv: int, profile: CostProfile,
           again: Trace) -> dict[str, Any]:
    return {
        "trace": {"name": trace.meta.name, "source": trace.meta.source, "sessions": trace.n_sessions},
        "served": {"sessions": served.trace.n_sessions, "steps": served.trace.n_steps,
                   "length_factor": served.length_factor, "time_factor": served.time_factor,
                   "held_out_sessions_left_out": served.left_out},
        "cluster": {"engines": s.engines, "kv_tokens": kv, "block_tokens": s.block_tokens, "concurrency": s.concurrency,
                    "pressure": s.pressure, "max_num_seqs": s.max_num_seqs, "max_batched_tokens": s.max_batched_tokens,
                    "model": "random Qwen2, 4 layers of 128, float32, CPU", "profile": profile.provenance},
        "recorded": {"sessions": again.n_sessions, "steps": again.n_steps, "source": again.meta.source},
        "stage_seconds": stages.seconds,
    }


def _read_json(path: Path) -> dict[str, Any]:
    import json

    return json.loads(path.read_text())

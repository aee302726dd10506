"""Everything that is known before a server starts, with every mistake that can be found by then."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.experiments.bench import router
from saga_rl.experiments.bench.arms import Arm, weights
from saga_rl.experiments.bench.demand import concurrency_for, makespan_s, whole_pool
from saga_rl.experiments.bench.material import Material, draw, load, longest_contexts
from saga_rl.experiments.bench.servers import Need, need
from saga_rl.experiments.bench.settings import Settings
from saga_rl.experiments.journal import Head
from saga_rl.files import must_exist
from saga_rl.provenance import sha256
from saga_rl.sim.cost.models import model_shape
from saga_rl.sim.cost.profile import CostProfile, load_profile

LOAD_DRAWS = 3
"""Repeats that the sessions alive at a load are found on."""
MODEL = "model"
"""Folder of the emulated model below `--out`."""


@dataclass(frozen=True)
class Plan:
    """What will be measured. window: tokens of a context, pool: of one engine's KV; None = the server knows."""

    settings: Settings
    material: Material
    traces: tuple[Trace, ...]
    """Of the repeats."""
    window: int | None
    pool: int | None
    whole: int
    alive: int
    shape: str | None
    """The model that is made for emulated devices; None: the user's own."""
    token_bytes: float
    program: str | None
    program_config: dict[str, Any] | None
    weights: dict[str, str]
    digests: tuple[str, ...]
    costs: str | None
    """Digest of the cost profile: a file may change under its name."""

    @cached_property
    def run_s(self) -> float | None:
        """Real seconds that a run of stock takes, from simulation; None: not known. The simulator is loaded, or even
        compiled, when this is first asked for: a server can start meanwhile."""
        s = self.settings
        if s.costs is None or self.pool is None or s.virtual:
            return None
        costs = load_profile(s.costs)
        return makespan_s(self.traces[0], self.alive, s.engines, self.pool, costs, s.block_tokens) / s.time_scale

    def need(self, arm: Arm) -> Need:
        """The servers of an arm."""
        return need(self.settings, arm, self.pool, self.whole, self.token_bytes)

    def head(self) -> Head:
        """What runs of one folder have in common, and the checkpoints among its arms."""
        what = self.settings.identity() | {"alive": self.alive, "window": self.window, "pool": self.pool,
                                           "trace_sha256": list(self.digests), "costs": self.costs}
        return Head(what=json.loads(json.dumps(what)), inputs={
            name: {"identity": {"sha256": digest}} for name, digest in self.weights.items()})

    def model(self, folder: Path) -> str:
        """The model to serve; an emulated one is written below `folder` if it is not there."""
        if self.shape is None:
            return str(self.settings.model)
        from saga_rl.runtime.emulate.shapes import write_model

        target = folder / MODEL
        kept = target / "saga-rl-bench.json"
        what = {"shape": self.shape, "window": self.window}
        if not (kept.is_file() and json.loads(kept.read_text()) == what):
            shutil.rmtree(target, ignore_errors=True)
            write_model(self.shape, target, self.window)
            kept.write_text(json.dumps(what) + "\n")
        return str(target.resolve())


def make(s: Settings) -> Plan:
    """The plan of `s`. Raises `UserError` for whatever cannot work."""
    for trace in s.traces:
        must_exist(trace)
    costs = load_profile(s.costs) if s.costs is not None else None
    program = router.require_installed() if any(a.router for a in s.arms) and not s.virtual else None
    shape, window = _model(s, costs)
    pool = s.kv_tokens or (costs.kv_tokens if s.emulate is not None and costs is not None else None)
    if pool is not None:
        pool = pool // s.block_tokens * s.block_tokens
        if s.window is not None and s.window > pool:
            raise UserError("--window", f"is {s.window:,}, more than the KV pool of an engine, {pool:,} tokens",
                            "give a larger --kv-tokens, or a smaller window")
        window = None if window is None else min(window, pool)
    program_config = None
    if any(a.router == "program" for a in s.arms):
        program_config = _program(s, costs, pool, window)
    material = load(s, window, pool)
    traces = tuple(draw(material, s, r) for r in range(s.repeats))
    if window is None and shape is None:
        window = s.window
    alive = s.concurrency or _alive(s, traces, costs, pool)
    digests = tuple(sha256(t) for t in s.traces)
    return Plan(s, material, traces, window, pool, whole_pool(traces, s.block_tokens), alive, shape,
                _token_bytes(s, shape) if s.cpu_tokens else 0.0, program, program_config, weights(s.arms), digests,
                None if costs is None else hashlib.sha256(costs.vector().tobytes()).hexdigest()[:16])


def _model(s: Settings, costs: CostProfile | None) -> tuple[str | None, int | None]:
    """The shape to write (None: the user's model is served), and the longest context that the model takes."""
    from saga_rl.runtime.emulate.shapes import SHAPES

    if s.model is not None and s.model not in SHAPES:
        folder = Path(s.model)
        if not folder.is_dir():
            if s.emulate is not None:
                raise UserError(f"--model {s.model}", "is no folder, and --emulate needs the model's config.json",
                                f"name a folder, or one of: {', '.join(SHAPES)}")
            return None, s.window
        return None, s.window or _window(folder)
    if s.emulate is None:
        return None, s.window
    assert costs is not None
    shape = s.model or str(costs.provenance.get("model", ""))
    if shape not in SHAPES:
        shape = next((name for name in SHAPES if name in costs.name), "")
    if not shape:
        raise UserError(f"--emulate {s.emulate}", "names no model whose shape ships",
                        f"add --model FOLDER, or one of: {', '.join(SHAPES)}")
    return shape, s.window or int(SHAPES[shape]["max_position_embeddings"])


def _window(folder: Path) -> int | None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(folder, "has no config.json", "name a model's folder; `saga-rl emulate model SHAPE -o FOLDER` "
                        "writes one")
    try:
        raw = json.loads(config.read_text())
        text = raw.get("text_config", raw)
        found = text.get("max_position_embeddings")
    except (ValueError, AttributeError):
        raise UserError(config, "is not a JSON object", "give the model's config.json") from None
    return int(found) if isinstance(found, int) else None


def _program(s: Settings, costs: CostProfile | None, pool: int | None, window: int | None) -> dict[str, Any]:
    if costs is None:
        raise UserError("--arms", "names router-program, whose cost models come from a cost profile",
                        "add --profile PROFILE (`saga-rl profile fit` makes one of a running server)")
    if pool is None:
        raise UserError("--arms", "names router-program, which has to know the KV pool of an engine",
                        "give --kv-tokens N")
    return router.program_config(router.fitted(costs, window), pool, s.time_scale)


def _alive(s: Settings, traces: tuple[Trace, ...], costs: CostProfile | None, pool: int | None) -> int:
    if costs is None or pool is None:
        raise UserError("--load", "needs a cost profile and the KV pool of an engine",
                        "add --profile and --kv-tokens, or give --concurrency")
    return concurrency_for(float(s.load or 0), traces[:LOAD_DRAWS], s.engines, pool, costs, s.block_tokens)


def _token_bytes(s: Settings, shape: str | None) -> float:
    """Bytes of KV of a token, which `--cpu-tokens` is turned into bytes by."""
    name = shape or s.model
    try:
        return model_shape(str(name)).kv_bytes_per_token()
    except UserError as e:
        raise UserError("--cpu-tokens", f"cannot be turned into bytes: {e.cause}",
                        "name a model folder with a config.json of a dense transformer") from None


def described(plan: Plan) -> list[str]:
    """Lines that say what will be run."""
    s, m = plan.settings, plan.material
    longest = longest_contexts(m.trace)
    out = [f"{m.trace.n_sessions:,} sessions may be drawn, contexts up to {int(longest.max()):,} tokens"
           + "".join(f"; {n:,} left out: {why}" for why, n in m.left_out.items())]
    out += [f"{name}, quality: {rest.sentence}" for name, rest in m.rests_on.items()]
    steps = sum(t.n_steps for t in plan.traces) / len(plan.traces)
    device = f"EMULATED {s.emulate}" if s.emulate is not None else f"{s.model}"
    pool = f"{plan.pool:,} KV tokens" if plan.pool is not None else "its own KV pool"
    tier = f" and {s.cpu_tokens:,} in CPU memory (stock and infinite have none)" if s.cpu_tokens else ""
    out.append(f"{plan.traces[0].n_sessions} sessions a run ({steps:.0f} steps), {plan.alive} alive at once, on "
               f"{s.engines} x {device} with {pool}{tier}, window "
               f"{'the model' + chr(39) + 's' if plan.window is None else format(plan.window, ',')}"
               + (f", {s.time_scale:g} device seconds in one real one" if s.time_scale != 1 else "")
               + (", in virtual time" if s.virtual else ""))
    out.append(f"{s.repeats} repeats of {len(s.arms)} arms: {', '.join(a.name for a in s.arms)}; ends of sessions are "
               f"{'announced' if s.ends else 'not announced'}")
    if plan.run_s is not None:
        runs = s.repeats * len(s.arms)
        out.append(f"a run takes about {_time(plan.run_s)}, all {runs} about {_time(plan.run_s * runs)} and the "
                   "starts of servers (simulated, stock)")
    return out


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else (
        f"{seconds / 3600:.1f} h")

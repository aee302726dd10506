"""vLLM Router (PyPI `vllm-router`) in front of servers of one engine each, and its cost models from a cost profile.

Its Program scheduling knows seconds of prefill as a quadratic of the tokens, and of a decode step as a plane over
requests and context; both are fitted here to what the profile says, as an operator would calibrate them. All its own
seconds are real ones, so they are divided by the time scale; everything else is its default.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.errors import UserError
from saga_rl.experiments.bench.servers import KEY, wait_for
from saga_rl.processes import Child, free_port
from saga_rl.sim.cost.profile import CostProfile

PROGRAM = "vllm-router"
START_S = 60.0
SECONDS = {"metrics_interval_seconds": 1.0, "queue_timeout_seconds": 600.0, "force_resume_timeout_seconds": 300.0,
           "paused_retention_ttl_seconds": 1800.0, "shared_prefix_freshness_warmup_seconds": 100.0,
           "max_acting_ttl_seconds": 10.0}
"""Defaults of Program scheduling that are times."""
RETAINED = 0.15
"""Share of decode throughput that is retained while prompts are computed: Program scheduling's default, which its
calibration does not measure either."""
LONGEST = 131_072
"""Tokens of the longest prompt that the quadratic is fitted to."""


def require_installed() -> str:
    """The program's path. Raises `UserError` with the command that installs it."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if found is None:
        raise UserError(PROGRAM, "is not installed, and the arms router and router-program need it",
                        f"pip install {PROGRAM}, or leave those out of --arms")
    return found


@dataclass(frozen=True)
class Models:
    """Coefficients as Program scheduling names them. Seconds of the device."""

    intercept_s: float
    linear_s: float
    """Of 1,000 prompt tokens."""
    quadratic_s: float
    """Of their square."""
    step_s: float
    request_s: float
    context_s: float


def cold_prefill_s(profile: CostProfile, tokens: int) -> float:
    """Seconds of a prompt of which nothing is cached, in chunks."""
    chunk, done, out = profile.max_batched_tokens, 0, 0.0
    while done < tokens:
        n = min(chunk, tokens - done)
        out += profile.seconds(n, n * (done + n / 2), done)
        done += n
    return out


def fitted(profile: CostProfile, window: int | None = None) -> Models:
    """The models nearest to the profile by relative error, no coefficient below 0."""
    x = np.geomspace(1024, max(window or LONGEST, 4096), 24)
    y = np.array([cold_prefill_s(profile, int(n)) for n in x])
    k = x / 1000
    prefill = _nonnegative(np.stack([np.ones_like(k), k, k * k], axis=1) / y[:, None], np.ones_like(y))
    batch = np.array([1, 2, 4, 8, 16, 24, 32, 48, 64], float)
    z = np.array([profile.seconds(decoding=b) for b in batch])
    decode = _nonnegative(np.stack([np.ones_like(batch), batch], axis=1) / z[:, None], np.ones_like(z))
    a, b, c = (float(v) for v in prefill)
    return Models(a, b, c, max(float(decode[0]), 1e-6), float(decode[1]), profile.per_kv_token_s)


def _nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients: the best of all subsets of columns, of which there are few."""
    n, best, least = a.shape[1], np.zeros(a.shape[1]), np.inf
    for mask in range(1, 1 << n):
        columns = [i for i in range(n) if mask >> i & 1]
        found = np.linalg.lstsq(a[:, columns], b, rcond=None)[0]
        error = float(((a[:, columns] @ found - b) ** 2).sum())
        if (found >= 0).all() and error < least - 1e-12:
            least, best = error, np.zeros(n)
            best[columns] = found
    return best


def program_config(models: Models, pool: int, time_scale: float) -> dict[str, Any]:
    """The value of `--program-scheduling-config-json`. pool: KV tokens of one engine."""
    return {
        # Identity from headers: the canonical object in the body is refused by servers that do not know it.
        "program_scheduling_enable_key": "auto", "global_queue": True, "token_capacity_per_dp_rank": pool,
        **{key: value / time_scale for key, value in SECONDS.items()},
        "prefill_cost_model": {
            "intercept_seconds": models.intercept_s / time_scale,
            "linear_seconds_per_1k_tokens": models.linear_s / time_scale,
            "quadratic_seconds_per_1k_tokens_squared": models.quadratic_s / time_scale,
            "decode_throughput_alpha": RETAINED},
        "decode_throughput_model": {
            "fixed_step_seconds": models.step_s / time_scale,
            "batch_step_seconds_per_request": models.request_s / time_scale,
            "context_step_seconds_per_token": models.context_s / time_scale}}


def command(program: str, port: int, metrics_port: int, workers: Sequence[str], config: dict[str, Any] | None
            ) -> list[str]:
    """The router's command line. config: of Program scheduling, None = without it."""
    out = [program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *workers,
           "--policy", "consistent_hash", "--api-key", KEY, "--prometheus-port", str(metrics_port),
           "--worker-startup-check-interval", "1", "--request-timeout-secs", "86400"]
    if config is not None:
        out += ["--enable-program-scheduling", "--program-scheduling-config-json", json.dumps(config)]
    return out


class Router(Child):
    """The router in the background; `ready` waits until it answers."""

    def __init__(self, kind: str, program: str, workers: Sequence[str], config: dict[str, Any] | None, log: Path
                 ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(f"router {kind}", command(program, port, free_port(), workers, config), log)

    def ready(self) -> None:
        """Return when it answers. Raises `UserError` with its last lines if it does not."""
        wait_for(self, f"{self.url}/health", START_S)

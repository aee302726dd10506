"""Tool latency: a piecewise log-normal through the P50, P95 and P99 that SAGA states per tool (section 8 of its notes).

One log-normal cannot meet three such points. Here log(latency) is a piecewise linear function of a standard normal z,
with knots at the three stated quantiles. Below P50 the body's slope goes on; above P99 the last slope goes on, up to
`TAIL` times P99, where the tail is cut (a longer call counts as a failure of the tool, not as its latency).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUANTILES_S: dict[str, tuple[float, float, float]] = {
    "code": (0.180, 2.400, 28.000),
    "file": (0.045, 0.320, 1.200),
    "web": (0.850, 4.500, 45.000),
    "database": (0.120, 0.890, 3.500),
}
"""P50, P95, P99 in seconds."""
TOOLS = tuple(QUANTILES_S)
TAIL = 5.0
_Z = (0.0, 1.6448536269514722, 2.3263478740408408)  # standard normal quantiles of 0.5, 0.95, 0.99
_Z_LOW = -8.0


def latency_s(tool: str, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of `tool` at standard normal values `z` (any shape)."""
    p50, p95, p99 = np.log(QUANTILES_S[tool])
    body, tail = (p95 - p50) / (_Z[1] - _Z[0]), (p99 - p95) / (_Z[2] - _Z[1])
    z_cut = _Z[2] + np.log(TAIL) / tail
    knots = (_Z_LOW, *_Z, z_cut)
    logs = (p50 + body * _Z_LOW, p50, p95, p99, p99 + np.log(TAIL))
    return np.exp(np.interp(z, knots, logs))


def sample_tools(rng: np.random.Generator, mix: dict[str, float], n: int
                 ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`n` tool calls drawn from the shares `mix`: codes into `TOOLS` and seconds."""
    share = np.array([mix.get(t, 0.0) for t in TOOLS])
    codes = rng.choice(len(TOOLS), size=n, p=share / share.sum())
    z = rng.standard_normal(n)
    seconds = np.zeros(n)
    for i, tool in enumerate(TOOLS):
        seconds[codes == i] = latency_s(tool, z[codes == i])
    return codes, seconds

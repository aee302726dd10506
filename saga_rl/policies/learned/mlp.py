"""The learned scorer: a small network over one row, weights shared by all rows, so one checkpoint serves any number.

y = W_L relu(... relu(W_1 z + b_1) ...) + b_L,   z = clip((x - mean) / std, -10, 10)

`params`, one flat float64 vector, F = inputs, L = layers, n_0 = F, n_L = 1:

| part | floats |
|---|---|
| F, L | 2 |
| n_1 .. n_L | L |
| mean, std | F, F |
| W_1, b_1, ..., W_L, b_L | n_(l-1) * n_l and n_l each; W row-major as (inputs, outputs) |

Weights lie inputs-first so that the inner loop runs over outputs and vectorises without reordering any sum: scores are
the same on every machine that rounds as IEEE 754 does. The row may be longer than F (heuristics' raw columns follow).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE

CLIP = 10.0
Layers = list[tuple[NDArray, NDArray]]


@njit(SCORE, cache=True)
def mlp_score(x, params, scratch):
    """The network's output for row x. 0.0 (no opinion) if an input is NaN or the result overflows: never NaN."""
    n_in, n_layers = int(params[0]), int(params[1])
    mean, std = params[2 + n_layers:], params[2 + n_layers + n_in:]
    half = len(scratch) // 2
    a, b = scratch[:half], scratch[half:]
    for i in range(n_in):
        if x[i] != x[i]:
            return 0.0
        a[i] = min(max((x[i] - mean[i]) / std[i], -CLIP), CLIP)
    at = 2 + n_layers + 2 * n_in
    for layer in range(n_layers):
        n_out = int(params[2 + layer])
        bias = params[at + n_in * n_out:at + n_in * n_out + n_out]
        for j in range(n_out):
            b[j] = bias[j]
        for i in range(n_in):
            v = a[i]
            if v != 0.0:
                row = params[at + i * n_out:at + (i + 1) * n_out]
                for j in range(n_out):
                    b[j] += v * row[j]
        if layer < n_layers - 1:
            for j in range(n_out):
                b[j] = max(b[j], 0.0)
        at += (n_in + 1) * n_out
        n_in = n_out
        a, b = b, a
    return a[0] if math.isfinite(a[0]) else 0.0


def pack(layers: Layers, mean: NDArray, std: NDArray) -> NDArray[np.float64]:
    """`params` of a network; layers: (W, b) with W (outputs, inputs), as `torch.nn.Linear` keeps it."""
    sizes = [len(b) for _, b in layers]
    parts = [np.array([len(mean), len(layers), *sizes], float), mean, std]
    for w, b in layers:
        parts += [np.asarray(w).T, b]
    return np.concatenate([np.asarray(p, np.float64).ravel() for p in parts])


def scratch_size(layers: Layers) -> int:
    """Floats of scratch that `mlp_score` wants: two rows of its widest layer."""
    return 2 * max(max(np.shape(w)) for w, _ in layers)


def forward(layers: Layers, mean: NDArray, std: NDArray, x: NDArray) -> NDArray[np.float64]:
    """The same network in numpy, for rows x (n, F) -> (n,): the definition that tests hold `mlp_score` to."""
    a = np.clip((np.asarray(x, float) - mean) / std, -CLIP, CLIP)
    for i, (w, b) in enumerate(layers):
        a = a @ np.asarray(w, float).T + b
        if i < len(layers) - 1:
            a = np.maximum(a, 0.0)
    return a[:, 0]

"""Seconds of one engine iteration, as compiled code computes them from a profile's vector (`CostProfile.vector`).

    seconds = base + table(P + D) + prefill * P + attention * A + context * C + kv * K + seq * D

P prefill tokens computed, A their attention pairs (a chunk of n tokens at context c counts n * (c + n / 2)), C the
contexts that the prefill chunks read (sum of c), K the KV tokens read by the D decoding sequences. `table` is piecewise
linear in the tokens of the batch (matrix products: flat while weights are read, rising once arithmetic bounds them);
below its first and above its last knot the outer pieces go on. A profile without knots is linear throughout.
"""

from __future__ import annotations

from saga_rl.njit import njit

BASE, PREFILL, KV, SEQ, ATTENTION, CONTEXT, KNOTS, FIRST_KNOT = range(8)
"""Positions in the vector. From FIRST_KNOT on: the knots' tokens (KNOTS of them), then their seconds."""


@njit(cache=True)
def batch_seconds(cost, tokens):
    """The table's part: seconds at `tokens` tokens in the batch."""
    n = int(cost[KNOTS])
    if n == 0:
        return 0.0
    k = 1
    while k < n - 1 and tokens > cost[FIRST_KNOT + k]:
        k += 1
    x0, x1 = cost[FIRST_KNOT + k - 1], cost[FIRST_KNOT + k]
    y0, y1 = cost[FIRST_KNOT + n + k - 1], cost[FIRST_KNOT + n + k]
    return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


@njit(cache=True)
def steady_seconds(cost, prefill, decoding):
    """The part that stays the same while `prefill` tokens and `decoding` sequences make up every iteration."""
    return cost[BASE] + batch_seconds(cost, prefill + decoding) + cost[PREFILL] * prefill + cost[SEQ] * decoding


@njit(cache=True)
def seconds(cost, prefill, pairs, context, kv_read, decoding):
    """Seconds of an iteration that computes `prefill` tokens (with `pairs` and `context`) and decodes `decoding`."""
    return (steady_seconds(cost, prefill, decoding) + cost[KV] * kv_read) + (
        cost[ATTENTION] * pairs + cost[CONTEXT] * context)

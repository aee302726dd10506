"""What the features compute, as one hash for each decision: a fixed history is told to chains and tables, rows are made
at fixed moments, and their columns are hashed. Where a file lies, what it is called and how it is written change
nothing; another formula in any column that a network reads does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.features import admission as fa
from saga_rl.policies.features import eviction as fe
from saga_rl.policies.features import ordering as fo
from saga_rl.policies.features import placement as fp
from saga_rl.policies.features import pools
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

CHAINS, SESSIONS, TOOLS, TYPES, WORKERS = 48, 16, 4, 3, 2
EVENTS, EVERY = 4000, 10
EXPIRY_S = 120.0
BLOCK, POOL = 16, 4096
DIGITS = 6
"""Significant digits that are hashed: more would tell one machine's logarithm from another's."""


class _Draws:
    """Numbers that no library's change of its generator can change (an LCG modulo 2**64)."""

    def __init__(self, seed: int) -> None:
        self.state = 20_260_101 + seed

    def below(self, n: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def uniform(self) -> float:
        return (self.below(1_000_000) + 0.5) / 1_000_000

    def seconds(self, mean: float) -> float:
        return float(-mean * np.log(self.uniform()))


class _History:
    """Chains and tables under a history in which everything happens that can happen."""

    def __init__(self) -> None:
        self.draws = _Draws(0)
        self.chains, self.tables = ch.make_chains(CHAINS), tb.make_tables(WORKERS, TOOLS, TYPES)
        self.now = 0.0
        self.queued = np.zeros(CHAINS)
        self.prompt = np.full(CHAINS, 400.0)
        for c in range(CHAINS):
            self._describe(c)

    def _describe(self, c: int) -> None:
        ch.describe(self.chains, c, c - c % (CHAINS // SESSIONS), c // (CHAINS // SESSIONS), self.now, c % 2, c % TYPES,
                    np.nan)

    def event(self) -> None:
        """Let one thing happen to one chain."""
        d, x, t = self.draws, self.chains, self.tables
        self.now += d.seconds(0.7)
        c = d.below(CHAINS)
        row, w = x[c], c % WORKERS
        if row[ch.RUNNING] > 0:
            if d.below(8) == 0:
                ch.preempt(x, c, self.now)
            elif d.below(24) == 0:
                ch.abort(x, c, self.now)
            else:
                output = 20.0 + d.below(400)
                ch.finish(x, t, w, c, self.now, self.prompt[c], output, d.below(TOOLS + 1) - 1, d.below(20) == 0)
                self.prompt[c] += output
        elif row[ch.WAITING] > 0:
            ch.schedule(x, c, self.now)
        elif row[ch.STEPS] > 0 and self.now - row[ch.LAST] > EXPIRY_S:
            ch.expire(x, t, w, c)
            if d.below(3) == 0:
                self._again(c)
        elif row[ch.ENDED] == 1 and c % (CHAINS // SESSIONS):  # the first of a session stays as long as any does
            ch.leave(x, c)
            self.chains[c] = ch.make_chains(c + 1)[c]
            self._describe(c)
            self.prompt[c] = 200.0 + d.below(2000)
        elif row[ch.STEPS] > 0 and d.below(40) == 0:
            ch.announced_end(x, t, w, c)
        elif row[ch.STEPS] > 0 and d.below(40) == 0:
            ch.announced_call(x, t, w, c)
        else:
            self._again(c)

    def _again(self, c: int) -> None:
        new = self.draws.below(3000)
        self.prompt[c] = max(self.prompt[c] + new, 1.0) if self.draws.below(12) else max(self.prompt[c] / 2, 1.0)
        self.queued[c] = self.now
        self.chains[c, ch.QPOS] = self.draws.below(5)
        ch.arrive(self.chains, self.tables, c % WORKERS, c, self.now, self.prompt[c])


def _g(draws: _Draws) -> NDArray[np.float64]:
    g = np.zeros((WORKERS, pools.G_COLUMNS))
    g[:, pools.G_INFORMED], g[:, pools.G_ADMIT_INFORMED] = 2, 1
    g[:, pools.G_BLOCK], g[:, pools.G_POOL] = BLOCK, POOL
    g[:, pools.G_SIZE_MAX], g[:, pools.G_TAU_MAX] = 300.0, 40.0
    g[:, pools.G_USED], g[:, pools.G_LIVE] = draws.uniform(), draws.uniform()
    return g


def _eviction(h: _History, d: _Draws, c: int, out: NDArray[np.float64]) -> None:
    fe.eviction_row(h.chains, h.tables, _g(d), c % WORKERS, c, h.now, h.now - d.seconds(20.0), float(d.below(400)),
                    float(d.below(2)), np.nan, out)


def _placement(h: _History, d: _Draws, c: int, out: NDArray[np.float64]) -> None:
    fp.placement_row(h.chains, c, h.now, h.prompt[c], d.below(2) == 0, float(d.below(30)), 32.0, float(d.below(90_000)),
                     float(BLOCK * POOL), float(d.below(9000)), 9000.0, float(d.below(40)), float(d.below(9)),
                     float(d.below(20)), out)


def _ordering(h: _History, d: _Draws, c: int, out: NDArray[np.float64]) -> None:
    fo.ordering_row(h.chains, h.tables, c % WORKERS, c, h.now, h.queued[c], h.prompt[c], float(d.below(2)), d.uniform(),
                    float(d.below(2000)), float(d.below(5000)), float(d.below(100)), out)


def _admission(h: _History, d: _Draws, c: int, out: NDArray[np.float64]) -> None:
    w, expected_older, blocks = c % WORKERS, np.zeros(3), [float(d.below(900)) for _ in range(10)]
    for other in range(c % 5, CHAINS, 5):
        fa.add_expected_older(h.chains, h.tables, w, other, h.now, h.now - d.seconds(20.0), float(d.below(200)),
                              expected_older)
    need = fa.expected_output(h.tables, w, c % TYPES, d.below(2000)) / BLOCK
    grow = fa.expected_growth(h.chains, h.tables, w, c) / BLOCK
    lost = fa.lost_blocks(h.chains, c, h.prompt[c], blocks[0], BLOCK)
    useful = fa.useful_share(h.chains[c], blocks[1], BLOCK)
    fa.admission_row(h.chains, h.tables, _g(d), w, c, h.now, h.queued[c], need, blocks[2], blocks[3],
                     useful * blocks[4], blocks[5], float(POOL), blocks[6], blocks[7], grow, blocks[8] // 30,
                     blocks[9] // 30, expected_older, lost, np.nan, out)


_ROWS = {"eviction": (_eviction, fe.EVICTION, fe.LEARNED_EVICTION), "placement": (_placement, fp.PLACEMENT,
         fp.LEARNED_PLACEMENT), "ordering": (_ordering, fo.ORDERING, fo.LEARNED_ORDERING),
         "admission": (_admission, fa.ADMISSION, fa.LEARNED_ADMISSION)}


@cache
def _played() -> tuple[dict[str, list[NDArray[np.float64]]], _History]:
    """The columns that a network reads, by decision, moment by moment; and what the history left."""
    h = _History()
    rows: dict[str, list[NDArray[np.float64]]] = {d: [] for d in _ROWS}
    draws = {d: _Draws(1 + k) for k, d in enumerate(_ROWS)}
    for n in range(EVENTS):
        h.event()
        if n % EVERY == 0:
            for decision, (fill, columns, learned) in _ROWS.items():
                out = np.zeros(len(columns))
                fill(h, draws[decision], draws[decision].below(CHAINS), out)
                rows[decision].append(out[:len(learned)])
    return rows, h


def rows(decision: str) -> NDArray[np.float64]:
    """Return (moments, columns that a network of this decision reads) of the fixed history."""
    return np.array(_played()[0][decision])


def _digest(names: tuple[str, ...], arrays: Iterable[NDArray]) -> str:
    digest = hashlib.sha256(repr(names).encode())
    for values in arrays:
        flat = np.asarray(values, np.float64).ravel()
        digest.update((f"%.{DIGITS - 1}e " * len(flat) % tuple(flat.tolist())).encode())
    return digest.hexdigest()


@cache
def feature_hash(*decisions: str) -> str:
    """Return the SHA-256 of what the rows of these decisions hold (none: of all four)."""
    each = [_digest(_ROWS[d][2], [rows(d)]) for d in decisions or _ROWS]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


@cache
def tables_hash() -> str:
    """Return the SHA-256 of what is learned in service from the fixed history: the tables and the rows of chains."""
    h = _played()[1]
    return _digest(tb.Tables._fields, [*h.tables, np.nan_to_num(h.chains, posinf=1e30)])

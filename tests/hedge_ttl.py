"""Learning a time to live online, with a bound on the regret against the best fixed one.

A chain's KV of n tokens is idle for d seconds, infinity if the chain never comes back. Under a TTL of tau seconds that
costs, in seconds of work,

    rate(n) x min(d, tau) + reload(n) [tau < d < infinity],     rate = price x n / pool, reload = linear k + square k^2

(k = n / 1000): the ski rental problem (Karlin, Manasse, Rudolph, Sleator 1988), as in Continuum (arXiv 2511.02230).
When the chain is back, the cost of every TTL is known, not only of the one in use: full information. `HedgeTTL` keeps
exponential weights over N TTLs (Freund, Schapire 1997). Losses are costs over the largest that the period could have
brought, rate x tau_max + reload, so every period counts alike and lies in [0, 1]. Then for every sequence of periods

    sum_t p_t . loss_t - min_k sum_t loss_t,k <= ln N / eta + T eta / 8 = sqrt(T ln N / 2)   at eta = sqrt(8 ln N / T)

and with eta_t = sqrt(8 ln N / t), which needs no T: <= 2 sqrt(T ln N / 2) + sqrt(ln N / 8) (Cesa-Bianchi, Lugosi 2006,
theorems 2.2, 2.3). p . loss is what a TTL drawn from p costs on average. Using the median of p instead of drawing costs
at most twice that in every period, since half of the weight lies on either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.policies.eviction.parts import LINEAR, SQUARE


class HedgeTTL:
    """Exponential weights over `ttls` (seconds, rising).

    price: worth of a second in which the whole pool is held, in seconds of work. pool_tokens: the pool. horizon: number
    of periods that the step size is set for; 0 = any number. Raises `UserError` for TTLs that do not rise.
    """

    def __init__(self, ttls: Sequence[float], pool_tokens: float, *, price: float = 1.0, linear: float = LINEAR,
                 square: float = SQUARE, horizon: int = 0) -> None:
        self.ttls = np.asarray(ttls, np.float64)
        if len(self.ttls) < 2 or not (np.diff(self.ttls) > 0).all() or not self.ttls[0] > 0 or not np.isfinite(
                self.ttls).all():
            raise UserError("ttls", f"are {list(ttls)}", "give two or more seconds, rising, above 0")
        self.pool_tokens, self.price, self.linear, self.square = float(pool_tokens), price, linear, square
        self.horizon = horizon
        self.periods = 0
        self.totals = np.zeros(len(self.ttls))
        """(N,) summed losses of each fixed TTL."""
        self.expected = 0.0
        """Summed loss of TTLs drawn from the weights."""
        self.median = 0.0
        """Summed loss of the median TTL."""

    def losses(self, gap_s: float, tokens: float) -> NDArray[np.float64]:
        """(N,) in [0, 1]: what each TTL costs in a period of `gap_s` seconds, infinity = never back."""
        k = tokens / 1000.0
        rate, reload = self.price * tokens / self.pool_tokens, self.linear * k + self.square * k * k
        late = (gap_s > self.ttls) & math.isfinite(gap_s)
        most = rate * self.ttls[-1] + reload
        return (rate * np.minimum(gap_s, self.ttls) + late * reload) / most if most > 0 else np.zeros(len(self.ttls))

    def eta(self) -> float:
        """Step size of the coming period."""
        rounds = self.horizon or self.periods + 1
        return math.sqrt(8.0 * math.log(len(self.ttls)) / rounds)

    def weights(self) -> NDArray[np.float64]:
        """(N,) chances of the TTLs in the coming period."""
        w = np.exp(-self.eta() * (self.totals - self.totals.min()))
        return w / w.sum()

    def ttl(self) -> float:
        """Median of the weights, seconds: the smallest TTL with at least half of the weight at or below it."""
        return float(self.ttls[self._median()])

    def _median(self) -> int:
        return int(np.searchsorted(np.cumsum(self.weights()), 0.5 - 1e-12))

    def observe(self, gap_s: float, tokens: float) -> None:
        """A period ended: a chain of `tokens` came back after `gap_s` seconds, or (infinity) is known to be over."""
        self.update(self.losses(gap_s, tokens))

    def update(self, losses: NDArray[np.float64]) -> None:
        """A period with these losses (N,), each in [0, 1]."""
        self.expected += float(self.weights() @ losses)
        self.median += float(losses[self._median()])
        self.totals += losses
        self.periods += 1

    def regret(self) -> float:
        """Loss of drawn TTLs above that of the best fixed one, so far."""
        return self.expected - float(self.totals.min())

    def bound(self) -> float:
        """What `regret` cannot exceed after so many periods, whatever came."""
        n, t = math.log(len(self.ttls)), self.periods
        if self.horizon:
            eta = math.sqrt(8.0 * n / self.horizon)
            return n / eta + t * eta / 8.0
        return 2.0 * math.sqrt(t * n / 2.0) + math.sqrt(n / 8.0)

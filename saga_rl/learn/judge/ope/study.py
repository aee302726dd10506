"""How well do estimates from logged data predict what the simulator says of policies?

For each target policy: weighted importance sampling, fitted Q and doubly robust on the dataset's stretches, and the
truth, which is the target itself playing the episodes of the dataset. Every such episode is one online evaluation.
Of evictions the datasets hold more than rewards: when each candidate was used next. `labels` is the mean place of the
target's choice among its decision's candidates by that, 1 = Belady's own choice, .5 = chance; it needs no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from saga_rl.errors import UserError
from saga_rl.learn.data.collect import collect, game_of
from saga_rl.learn.data.dataset import Decisions, labels_of
from saga_rl.learn.data.games import BELADY
from saga_rl.learn.data.task import with_trace
from saga_rl.learn.judge.ope import estimators as est
from saga_rl.learn.judge.ope.fqe import FqeConfig, fit
from saga_rl.learn.judge.ope.paths import Paths, ratios
from saga_rl.learn.judge.ope.policies import scorer, uniform
from saga_rl.policies.base import Policy
from saga_rl.sim.openloop.replay import play

ESTIMATORS = ("wis", "fqe", "dr", "labels")
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """K targets, E episodes."""

    estimates: dict[str, dict[str, est.Estimate | None]]
    """Target -> estimator -> value of a stretch (labels: of a decision); None where the data cannot tell."""
    agreement: dict[str, float]
    """Target -> share of the logged decisions in which it would do the same."""
    truth: NDArray[np.float64] | None
    """(K, E) return of each episode when the target plays it: eviction: -(tokens computed again) / 1000."""
    online: int
    """Episodes that targets played."""


def estimate(data: Decisions, targets: dict[str, Policy], paths: Paths, long: Paths, gamma: float, config: FqeConfig,
             tick: Tick) -> tuple[dict[str, dict[str, est.Estimate | None]], dict[str, float]]:
    """The estimates by target and how often each agrees with the log. No online evaluation is spent.

    paths: for the two that weigh; long: for fitted Q alone, which bears longer stretches.
    """
    sighted = [b for b, name in enumerate(data.behaviours) if name == BELADY]
    blind = ~np.isin(data.behaviour, sighted)
    if not blind.any():
        raise UserError("dataset", f"holds only {BELADY}, whose choices know the future", "collect other behaviours")
    ratios(data, uniform)  # complains of data without propensities
    out: dict[str, dict[str, est.Estimate | None]] = {}
    agreement = {}
    places = label_places(data)
    for label, policy in targets.items():
        probabilities = scorer(policy)(data.observations, data.masks)
        given = lambda *_, p=probabilities: p  # noqa: E731
        agreement[label] = float(probabilities[np.arange(len(data)), data.actions].mean())
        far, fitted = (fit(data, given, p, gamma=gamma, config=config, use=blind[p.index[:, 0]]) for p in (long, paths))
        found: dict[str, est.Estimate | None] = {"fqe": est.modelled(far.v, long, config.seed)}
        try:
            rho = ratios(data, given)
            found["wis"] = est.importance(data.rewards, rho, paths, gamma=gamma, seed=config.seed)
            found["dr"] = est.doubly_robust(data.rewards, rho, fitted.q, fitted.v, paths, gamma=gamma, seed=config.seed)
        except UserError:  # no stretch that the target could have played; the table says so
            found["wis"] = found["dr"] = None
        found["labels"] = est.modelled((places * probabilities).sum(axis=1), Paths(
            np.arange(len(data))[:, None], data.episode), config.seed) if data.seam == "eviction" else None
        out[label] = {name: found[name] for name in ESTIMATORS}
        tick(f"estimated {label}")
    return out, agreement


def label_places(data: Decisions) -> NDArray[np.float64]:
    """(N, R) share of the other candidates that are used no later than this one; equals count half; 0 in padding."""
    u, masks = labels_of(data), data.masks
    out = np.zeros(u.shape)
    for r in range(u.shape[1]):
        out[:, r] = ((u[:, r, None] > u) & masks).sum(axis=1) + 0.5 * (((u[:, r, None] == u) & masks).sum(axis=1) - 1)
    return np.where(masks, out / np.maximum(masks.sum(axis=1, keepdims=True) - 1, 1), 0.0)


def play_targets(facts: Sequence[dict[str, Any]], files: dict[str, Path], seam: str, targets: dict[str, Policy],
                 specs: dict[str, str], tick: Tick) -> NDArray[np.float64]:
    """(K, E) what the targets earn on the dataset's episodes. facts: `episode_facts`; files: by the label in facts."""
    out = np.zeros((len(targets), len(facts)))
    for e, fact in enumerate(facts):
        for k, (label, policy) in enumerate(targets.items()):
            task = with_trace(fact, str(files[fact["file"]]), seam, specs[label])
            if seam != "eviction":
                out[k, e] = collect(task).rewards.sum()
                continue
            if k == 0:
                game = game_of(task)
                game.start(task.seed)
                env = game.env
            result = play(env.stepper._prepared, policy, end_hint=env.config.end_hint, expiry_s=env.config.expiry_s)
            out[k, e] = -result.recomputed_tokens / 1000
        tick(f"played episode {e + 1}")
    return out


def rank_correlations(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """By estimator: Spearman's and Kendall's correlation of its values with the targets' mean returns, over targets for
    which it has one, each with a 95 % interval: estimates and returns from the same resampled episodes. `regret`: mean
    return of the best target minus that of the target that the estimator would pick."""
    assert study.truth is not None
    labels = list(study.estimates)
    counts = est.resamples(study.truth.shape[1], seed)
    returns = counts @ study.truth.T / study.truth.shape[1]
    out: dict[str, dict[str, Any]] = {}
    for name in ESTIMATORS:
        known = [(k, e) for k, e in ((k, study.estimates[label][name]) for k, label in enumerate(labels)) if e]
        if len(known) < 3:
            out[name] = {"targets": len(known)}
            continue
        at = [k for k, _ in known]
        truth, values = study.truth[at].mean(axis=1), np.array([e.value for _, e in known])
        draws = np.stack([e.draws for _, e in known], axis=1)
        row: dict[str, Any] = {"targets": len(known), "regret": float(truth.max() - truth[values.argmax()])}
        for label, measure in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
            drawn = np.array([_measure(measure, a, b) for a, b in zip(draws, returns[:, at], strict=True)])
            low, high = est.interval(drawn, len(counts[0]))
            row[label] = {"value": _number(_measure(measure, values, truth)), "low": _number(low),
                          "high": _number(high)}
        out[name] = row
    return out


def _measure(measure: Callable, a: NDArray, b: NDArray) -> float:
    """NaN for values that are not known, or all equal: they rank nothing."""
    if not np.isfinite(a).all() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(measure(a, b).statistic)


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def pick(study: Study, by: str, among: Sequence[str]) -> str:
    """The target of `among` with the highest estimate by estimator `by`; `UserError` if it has none for any."""
    known = {label: e.value for label in among if (e := study.estimates[label][by]) is not None}
    if not known:
        raise UserError(f"--by {by}", "has no estimate for any candidate", "take shorter stretches, or --by fqe")
    return max(known, key=lambda label: known[label])

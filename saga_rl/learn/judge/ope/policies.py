"""Target policies: callables (observations (N, R, F), masks (N, R)) -> probabilities (N, R), which sum to 1 over the
mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.policies.base import Policy
from saga_rl.policies.batch import score_rows
from saga_rl.policies.features import (
    ADMISSION,
    E_AGE_LOG,
    E_AGE_S,
    E_CONTEXT,
    E_CONTEXT_LOG,
    E_IDLE_LOG,
    E_IDLE_S,
    E_RESIDUAL_LOG,
    E_RESIDUAL_S,
    EVICTION,
    ORDERING,
    PLACEMENT,
)

Probabilities = Callable[[NDArray, NDArray], NDArray]
COLUMNS = {"eviction": EVICTION, "placement": PLACEMENT, "ordering": ORDERING, "admission": ADMISSION}
_RAW = ((E_IDLE_S, E_IDLE_LOG), (E_AGE_S, E_AGE_LOG), (E_CONTEXT, E_CONTEXT_LOG), (E_RESIDUAL_S, E_RESIDUAL_LOG))
"""Raw columns of an eviction row that are the expm1 of a bounded one."""
_BATCH = 4096


def from_scores(scores: NDArray[np.float64], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """All on the highest score of each decision; ties: the first row."""
    best = np.where(masks, scores, -np.inf).argmax(axis=1)
    out = np.zeros(masks.shape)
    out[np.arange(len(masks)), best] = 1.0
    return out


def _net_scores(net: torch.nn.Module, observations: NDArray) -> NDArray[np.float64]:
    with torch.no_grad():
        parts = [net(torch.as_tensor(observations[at:at + _BATCH], dtype=torch.float32)).double().numpy()
                 for at in range(0, len(observations), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros(observations.shape[:2])


def greedy(net: torch.nn.Module) -> Probabilities:
    """The row that the network scores highest."""
    return lambda observations, masks: from_scores(_net_scores(net, observations), masks)


def softmax(net: torch.nn.Module, temperature: float) -> Probabilities:
    """p(row) proportional to exp(score / temperature)."""
    if not temperature > 0:
        raise UserError("temperature", f"is {temperature}", "give a positive number")

    def probabilities(observations: NDArray, masks: NDArray) -> NDArray:
        scores = np.where(masks, _net_scores(net, observations) / temperature, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    return probabilities


def uniform(observations: NDArray, masks: NDArray) -> NDArray:
    """Every candidate alike."""
    return masks / masks.sum(axis=1, keepdims=True)


def epsilon(policy: Probabilities, eps: float) -> Probabilities:
    """`policy`, but uniform with chance `eps`."""
    return lambda observations, masks: (1.0 - eps) * policy(observations, masks) + eps * uniform(observations, masks)


def scorer(policy: Policy) -> Probabilities:
    """The choice of a compiled eviction or placement policy, also a learned one, from the columns that datasets hold.

    Datasets hold the bounded columns. Of the others those are restored that follow from them; a policy whose choices
    depend on any other column, on memory or on the future cannot be evaluated so: `UserError`. A learned policy is
    taken as it ranks what is undecided: which rows hold more than their chains can use, no column of a dataset says.
    """
    if policy.seam not in ("eviction", "placement"):
        raise UserError(f"{policy.seam} policy {policy.name!r}", "does not choose among rows by its score alone",
                        "evaluate it in the simulator")
    if policy.memory or policy.oracle:
        raise UserError(f"{policy.seam} policy {policy.name!r}", "needs more than a decision's row (memory, or the "
                        "future)", "evaluate it in the simulator")

    width = len(COLUMNS[policy.seam])
    fills = [np.zeros(width), np.full(width, 1e6)]
    if policy.name != "learned":
        fills.append(1e6 - np.arange(width))

    def probabilities(observations: NDArray, masks: NDArray) -> NDArray:
        choices = [from_scores(_scores(policy, observations, masks, fill), masks) for fill in fills]
        if any((choices[0] != other).any() for other in choices[1:]):
            raise UserError(f"{policy.seam} policy {policy.name!r}", "reads columns that datasets do not hold",
                            "evaluate it in the simulator")
        return choices[0]

    return probabilities


def _scores(policy: Policy, observations: NDArray, masks: NDArray, fill: NDArray) -> NDArray[np.float64]:
    """Scores of every candidate; columns that are not known hold what `fill`, one value a column, says."""
    known = observations.shape[2]
    out = np.full(masks.shape, -np.inf)
    scratch = np.zeros(max(policy.scratch, 1))
    for at in range(0, len(masks), _BATCH):
        part = slice(at, at + _BATCH)
        rows = np.tile(fill, (int(masks[part].sum()), 1))
        rows[:, :known] = observations[part][masks[part]]
        if policy.seam == "eviction":
            for raw, log in _RAW:
                rows[:, raw] = np.expm1(rows[:, log])
        scores = np.zeros(len(rows))
        score_rows(policy.score, rows, 0, len(rows), policy.params, scratch, scores)
        out[part][masks[part]] = scores
    return out

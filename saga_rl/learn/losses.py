"""Offline losses over decision tables. Shapes: B decisions, R rows (candidates) each; masked rows are padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pairwise_ranking(scores: torch.Tensor, next_use: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pairwise logistic ranking on Belady labels.

    For a decision with scores s and next uses u, over the pairs P = {(i, j): u_i > u_j, both rows valid},

        loss = mean over decisions with pairs of  (1 / |P|) * sum over P of  log(1 + exp(-(s_i - s_j)))

    so the row that is needed later (inf = never) learns the higher score. Rows of equal next use, also two that are
    never used again, make no pair. RankNet: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005, with
    certain targets; the labels are those of Belady, "A study of replacement algorithms", 1966.

    scores, next_use (B, R) float; mask (B, R) bool. Returns a scalar, 0 if no decision has a pair.
    """
    valid = mask.unsqueeze(2) & mask.unsqueeze(1)
    later = (next_use.unsqueeze(2) > next_use.unsqueeze(1)) & valid
    margin = scores.unsqueeze(2) - scores.unsqueeze(1)
    pairs = later.sum(dim=(1, 2))
    total = torch.where(later, F.softplus(-margin), torch.zeros_like(margin)).sum(dim=(1, 2))
    has = pairs > 0
    return (total / pairs.clamp(min=1)).sum() / has.sum().clamp(min=1)


def behaviour_cloning(scores: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Masked cross-entropy: mean of -log softmax(scores over valid rows)[action].

    scores (B, R) float; actions (B,) int, each on a valid row; mask (B, R) bool.
    """
    logits = scores.masked_fill(~mask, float("-inf"))
    return F.cross_entropy(logits, actions)


def pair_accuracy(scores: torch.Tensor, next_use: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of `pairwise_ranking` in the right order (ties count half); NaN without pairs."""
    later = (next_use.unsqueeze(2) > next_use.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    margin = (scores.unsqueeze(2) - scores.unsqueeze(1))[later]
    return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()


def top_agreement(scores: torch.Tensor, next_use: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Share of decisions whose highest-scored row is one that Belady could take (its next use is the farthest)."""
    pick = scores.masked_fill(~mask, float("-inf")).argmax(dim=1)
    farthest = next_use.masked_fill(~mask, float("-inf")).amax(dim=1)
    return (next_use.gather(1, pick.unsqueeze(1)).squeeze(1) >= farthest).float().mean()

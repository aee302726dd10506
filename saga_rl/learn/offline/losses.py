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


def weighted_cloning(scores: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor,
                     weights: torch.Tensor) -> torch.Tensor:
    """`behaviour_cloning` with a weight for each decision: mean of -w log softmax(scores)[action]. The policy step of
    AWAC and IQL, with w = exp(advantage / temperature).

    weights (B,) float, treated as constants.
    """
    logits = scores.masked_fill(~mask, float("-inf"))
    return (weights.detach() * F.cross_entropy(logits, actions, reduction="none")).mean()


def places(next_use: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of each valid row, how many valid rows of its decision are needed before it; 0 for the rest. (B, R) float."""
    later = (next_use.unsqueeze(2) > next_use.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    return later.sum(dim=2).to(torch.float32)


def listwise_softmax(scores: torch.Tensor, next_use: torch.Tensor, mask: torch.Tensor,
                     temperature: float) -> torch.Tensor:
    """Listwise cross-entropy to the order of the Belady labels (ListNet, top one).

    With k_i = `places`: loss = mean over decisions of  -sum_i p_i log softmax(s)_i,  p = softmax(k / temperature). A
    low temperature asks for the victim only, a high one for the whole order. ListNet: Cao et al., "Learning to Rank:
    From Pairwise Approach to Listwise Approach", ICML 2007, with places in the stead of graded relevance.
    """
    hidden = ~mask
    wanted = torch.softmax((places(next_use, mask) / temperature).masked_fill(hidden, float("-inf")), dim=1)
    return soft_cross_entropy(scores, wanted.to(scores.dtype), mask)


def soft_cross_entropy(scores: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of -sum over valid rows of wanted x log softmax(scores); wanted (B, R) sums to 1 over each mask."""
    log_p = torch.log_softmax(scores.masked_fill(~mask, float("-inf")), dim=1).masked_fill(~mask, 0.0)
    return -(wanted * log_p).sum(dim=1).mean()


def lambda_ranking(scores: torch.Tensor, next_use: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`pairwise_ranking` whose pairs weigh as much as swapping them would change NDCG (LambdaRank).

    Pair (i, j) weighs |k_i - k_j| x |1 / log2(2 + r_i) - 1 / log2(2 + r_j)| over its decision's ideal DCG, with k =
    `places` as (linear) gain and r = the row's present rank by score, 0 = highest. Burges, "From RankNet to LambdaRank
    to LambdaMART", MSR-TR-2010-82, section 4; the weights are constants of the gradient.
    """
    gain = places(next_use, mask).to(scores.dtype)
    with torch.no_grad():
        rank = scores.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        discount = 1.0 / torch.log2(2.0 + rank.to(scores.dtype))
        best = gain.masked_fill(~mask, 0.0).sort(dim=1, descending=True).values
        at = 1.0 / torch.log2(2.0 + torch.arange(scores.shape[1], dtype=scores.dtype))
        ideal = (best * at).sum(dim=1).clamp(min=1e-9)
        change = ((gain.unsqueeze(2) - gain.unsqueeze(1)) * (discount.unsqueeze(2) - discount.unsqueeze(1))).abs()
    valid = mask.unsqueeze(2) & mask.unsqueeze(1)
    later = (next_use.unsqueeze(2) > next_use.unsqueeze(1)) & valid
    margin = scores.unsqueeze(2) - scores.unsqueeze(1)
    total = torch.where(later, change * F.softplus(-margin), torch.zeros_like(margin)).sum(dim=(1, 2)) / ideal
    has = later.any(dim=2).any(dim=1)
    return total.sum() / has.sum().clamp(min=1)


def expectile(error: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean of |tau - [error < 0]| x error^2: its minimiser is the tau-expectile; tau = 1/2 is half the squared error.
    Newey and Powell, Econometrica 1987; as IQL's value loss: Kostrikov et al., 2110.06169, equation 5."""
    return (torch.where(error < 0, 1.0 - tau, tau) * error ** 2).mean()


def conservative(values: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of log sum over valid rows of exp Q(s, .) - Q(s, a): pushes down what was not tried. CQL(H): Kumar et al.,
    2006.04779, equation 4; rows that were not there take no part. values (B, R), actions (B,)."""
    total = torch.logsumexp(values.masked_fill(~mask, float("-inf")), dim=1)
    return (total - values.gather(1, actions.unsqueeze(1)).squeeze(1)).mean()


def hazard_likelihood(logits: torch.Tensor, bins: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Minus the log-likelihood of return times under a discrete-time hazard, mean over valid rows.

    h_k = sigmoid(logits_k) is the chance to return in bin k if not before. A row that returned in bin k adds
    -log h_k - sum_{j<k} log(1 - h_j), one that never did (bin K) -sum over all j of log(1 - h_j). Discrete-time
    survival: Cox, "Regression Models and Life-Tables", 1972, section 6; by a network: Gensheimer and Narasimhan,
    "A scalable discrete-time survival model for neural networks", PeerJ 2019.

    logits (B, R, K) float; bins (B, R) int in 0..K; mask (B, R) bool.
    """
    k = torch.arange(logits.shape[-1])
    before, at = k < bins.unsqueeze(-1), k == bins.unsqueeze(-1)
    terms = torch.where(before, F.softplus(logits), torch.zeros_like(logits)) + torch.where(
        at, F.softplus(-logits), torch.zeros_like(logits))
    return terms.sum(dim=-1)[mask].mean()


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

"""What was gained after decisions: returns, what a state alone explains of them, and what a policy would add."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.learn.network import RowNet
from saga_rl.learn.offline.learners.tables import Tables, pooled

RIDGE = 1e-3


def beyond_state(net: RowNet, tables: Tables, discount: float) -> NDArray[np.float64]:
    """(N,) discounted returns less what a linear function of the pooled rows, and the setting, explain of them.

    The action is not looked at, so what is left says whether it was better or worse than usual there.
    """
    returns = tables.returns(discount).double().numpy()
    with torch.no_grad():
        states = torch.cat([pooled(net.normal(o), m) for o, m in
                            zip(tables.observations.split(4096), tables.masks.split(4096), strict=True)])
    settings = tables.settings[:, None] == np.unique(tables.settings)
    x = np.concatenate([states.double().numpy(), settings], axis=1)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    return returns - x @ np.linalg.solve(gram, x.T @ returns)


def one_step_gain(net: RowNet, tables: Tables, discount: float) -> dict[str, float]:
    """What the greedy policy would gain by one decision of its own, the behaviour deciding all later ones.

    With G = `beyond_state` and rho = [logged action = greedy action] / propensity:

        one_step_gain = sum(rho G) / sum(rho) - mean(G)

    in units of the reward. It is the self-normalised estimator of Swaminathan and Joachims, NIPS 2015, of the gain that
    a step of policy improvement promises; later decisions of the policy's own are not in it. `matched` is the share of
    decisions at which the two agree: with few, the gain is noise. NaN with none.
    """
    beyond = beyond_state(net, tables, discount)
    with torch.no_grad():
        scores = torch.cat([net(o) for o in tables.observations.split(4096)])
    same = (scores.masked_fill(~tables.masks, -np.inf).argmax(dim=1) == tables.actions).numpy()
    rho = same / tables.propensity.double().numpy()
    use = (tables.masks.sum(dim=1) > 1).numpy()
    rho, beyond = rho[use], beyond[use]
    gain = float(rho @ beyond / rho.sum() - beyond.mean()) if rho.any() else float("nan")
    return {"one_step_gain": gain, "matched": float(same[use].mean()) if use.any() else float("nan")}

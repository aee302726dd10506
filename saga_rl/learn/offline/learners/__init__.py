"""The offline learners by name. May import `learn.data` and `learn.network`."""

from __future__ import annotations

from saga_rl.errors import unknown_name
from saga_rl.learn.offline.learners.base import Learner
from saga_rl.learn.offline.learners.bc import BehaviourCloning
from saga_rl.learn.offline.learners.cql import ConservativeQ
from saga_rl.learn.offline.learners.hazard import Hazard
from saga_rl.learn.offline.learners.iql import ImplicitQ
from saga_rl.learn.offline.learners.listwise import Listwise
from saga_rl.learn.offline.learners.rank import Rank

LEARNERS: dict[str, type[Learner]] = {kind.name: kind for kind in (
    Rank, Listwise, Hazard, BehaviourCloning, ImplicitQ, ConservativeQ)}


def learner(name: str) -> type[Learner]:
    """The learner of that name, else `UserError`."""
    if name not in LEARNERS:
        raise unknown_name("--algo", name, LEARNERS)
    return LEARNERS[name]

"""Ties `SagaCachePolicy` to the scheduler that it serves: the connector's scheduler side lives in the same process.

vLLM makes the policy with the connector, ahead of our tracker, and tells it keys only. So three methods of the one
manager that the connector calls are wrapped: they say which request, and the scheduler knows the request's chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from saga_rl.policies.base import Policy
from saga_rl.runtime.config import versions
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.engine.offload.cache_policy import SagaCachePolicy
from saga_rl.runtime.sessions.tracker import NOBODY, Tracker

WRAPPED = ("on_new_request", "prepare_store", "on_request_finished")
"""Methods of an `OffloadingManager` whose last argument is a `ReqContext`."""


def managers(connector: Any) -> Iterator[tuple[Any, SagaCachePolicy]]:
    """The managers that a connector, or those that it is made of, calls, each with the policy of its CPU tier."""
    for part in getattr(connector, "_connectors", None) or [connector]:
        manager = getattr(getattr(part, "connector_scheduler", None), "manager", None)
        policy = getattr(getattr(manager, "primary_tier", manager), "_policy", None)
        if isinstance(policy, SagaCachePolicy):
            yield manager, policy


def attach(connector: Any, tracker: Tracker, eviction: Policy, block_tokens: int, budget_s: float,
           chain_of: Callable[[str], int | None], clock: Callable[[], float]) -> list[SagaCachePolicy]:
    """Let every `SagaCachePolicy` in `connector` (None: there is none) choose by `eviction`. chain_of: the chain of a
    request by its id. Calling it again exchanges the policy (swap). Returns those tied, empty if there is none;
    `UserError` where this vLLM's managers are made otherwise."""
    tied = []
    for manager, policy in managers(connector):
        first = policy._victims is None
        victims = Victims(tracker, eviction, block_tokens, max(policy.cache_capacity, 1), budget_s)
        policy.bind(victims, clock)
        if first:
            versions.check_offload_hooks(manager, WRAPPED)
            _wrap(manager, policy, chain_of)
        tied.append(policy)
    return tied


def lazily(connector: Any, queue: PolicyBlockQueue) -> list[Any]:
    """Let every lazy tier (`lazy.LazyOffloadManager`) in `connector` copy what `queue` would evict next."""
    kinds = {type(part).__name__ for part in getattr(connector, "_connectors", None) or [connector]}
    if "LazyOffloadConnector" not in kinds:  # its module is not in every vLLM
        return []
    from saga_rl.runtime.engine.offload.lazy import lazy_managers

    managers = list(lazy_managers(connector))
    for manager in managers:
        manager.tie(queue)
    return managers


def _wrap(manager: Any, policy: SagaCachePolicy, chain_of: Callable[[str], int | None]) -> None:
    came, stores, ended = (getattr(manager, name) for name in WRAPPED)

    def on_new_request(req_context: Any) -> Any:
        chain = chain_of(req_context.req_id)
        policy.begins(req_context.req_id, NOBODY if chain is None else chain)
        return came(req_context)

    def prepare_store(keys: Any, req_context: Any) -> Any:
        policy.stores(req_context.req_id)
        try:
            return stores(keys, req_context)
        finally:
            policy.stores(None)

    def on_request_finished(req_context: Any) -> Any:
        out = ended(req_context)
        policy.ends(req_context.req_id)
        return out

    for name, function in zip(WRAPPED, (on_new_request, prepare_store, on_request_finished), strict=True):
        setattr(manager, name, function)

"""Where placement takes hold of vLLM's data-parallel client. Imports nothing heavy: it is set before engines start.

Tried with vLLM 0.28 - 0.33: `DPLBAsyncMPClient.get_core_engine_for_request` picks, `process_engine_outputs` sees what
comes back. A client whose engines do not run our scheduler goes through both untouched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saga_rl.runtime.config.ours import is_ours

if TYPE_CHECKING:
    from saga_rl.runtime.routing.placement import Placement

log = logging.getLogger("vllm.saga_rl")
MINE = "saga_placement"
"""Attribute of a client that holds its `Placement`; None if it has none."""


def hook_client(placement_of: Callable[[Any], Placement | None]) -> None:
    """Replace the two methods of vLLM's client class; `placement_of` says for each client who places."""
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    stock_choose = DPLBAsyncMPClient.get_core_engine_for_request
    stock_outputs = DPLBAsyncMPClient.process_engine_outputs

    def get_core_engine_for_request(self: Any, request: Any) -> Any:
        placement = placement_of(self)
        return stock_choose(self, request) if placement is None else placement.route(self, request, stock_choose)

    async def process_engine_outputs(self: Any, outputs: Any) -> None:
        await stock_outputs(self, outputs)
        placement = placement_of(self)
        if placement is not None:
            placement.seen(outputs)

    client: Any = DPLBAsyncMPClient
    client.get_core_engine_for_request = get_core_engine_for_request
    client.process_engine_outputs = staticmethod(process_engine_outputs)


def places(client: Any) -> bool:
    """Whether the client chooses among engines (one engine, or another's load balancer: it does not)."""
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    return isinstance(client, DPLBAsyncMPClient)


def placement_of(client: Any) -> Placement | None:
    """The placement of one client by its own configuration, made when it is first asked for; None for a client that is
    not ours, and for one whose placement cannot be made: vLLM's own choice serves there, loudly."""
    state = client.__dict__
    if MINE not in state:
        state[MINE] = None
        if is_ours(client.vllm_config):
            try:
                state[MINE] = _make(client)
            except Exception:
                log.exception("saga-rl: no placement; vLLM's own choice among engines serves")
    return state[MINE]


def _make(client: Any) -> Placement:
    from saga_rl.runtime.config.settings import policies_of, read_config
    from saga_rl.runtime.routing.placement import Placement

    config = read_config(client.vllm_config.additional_config)
    servers = int(getattr(client, "client_count", 1) or 1)
    # vLLM gives a client its number late, and its configuration knows it from the start
    number = getattr(client, "client_index", getattr(client.vllm_config.parallel_config, "_api_process_rank", 0))
    name = "router" if servers == 1 else f"router-{int(number)}"
    placement = Placement(policies_of(config.policy).placement, config, name)
    placement.begin()
    return placement

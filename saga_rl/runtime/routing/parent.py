"""The process that starts several API servers and the engines behind them, and serves nothing itself.

It makes the table that the servers share, and watches the engines for them: vLLM ends all when one engine ends; here it
is noted in the table, each server takes the engine out (`engines`), and the last engine's death ends all as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from multiprocessing import connection
from typing import Any

from saga_rl.runtime.routing.shared_table import STATUS, SharedTable, ours, share
from saga_rl.runtime.routing.vllm_client import check_hooks, unlike

log = logging.getLogger("vllm.saga_rl")


def begin(vllm_config: Any, servers: int) -> None:
    """Called before anything is started. Never raises: without a table servers place by a rule that needs none."""
    parallel = vllm_config.parallel_config
    local = bool(getattr(parallel, "local_engines_only", False))
    engines = parallel.data_parallel_size_local if local else parallel.data_parallel_size
    if servers < 2 or engines < 2:
        return
    try:
        table = share(servers, engines)
        why = unlike(vllm_config)
        if parallel.data_parallel_size_local != engines:
            why = "not all engines are processes of this machine"
        if why is None:
            check_hooks()
            _hook_monitor()
            table.watched[0] = 1
        else:
            log.warning("saga-rl: an engine that dies takes the servers down, as vLLM does: %s", why)
    except Exception:
        log.exception("saga-rl: the API servers share no table")


@cache
def _hook_monitor() -> None:
    from vllm.v1.engine.utils import CoreEngineProcManager

    stock = CoreEngineProcManager.monitor_engine_liveness

    def monitor_engine_liveness(self: Any) -> None:
        table = ours()
        if table is not None and table.watched[0]:
            try:
                watch(self.processes, self.manager_stopped.is_set, table)
            except Exception:
                log.exception("saga-rl: cannot watch the engines; vLLM's own behaviour from here on")
            table.watched[0] = 0
        stock(self)

    CoreEngineProcManager.monitor_engine_liveness = monitor_engine_liveness  # type: ignore[method-assign]


def watch(processes: list[Any], stopped: Callable[[], bool], table: SharedTable, look_s: float = 1.0) -> None:
    """Note in the table which engines end. Returns when what comes is vLLM's: the last one ended, the servers are being
    stopped, or one of them gave up (`watched` is 0)."""
    if len(processes) != table.engines:
        raise ValueError(f"{len(processes)} processes of {table.engines} engines")
    alive = {p.sentinel: w for w, p in enumerate(processes)}
    while not stopped() and table.watched[0]:
        for sentinel in connection.wait(list(alive), timeout=look_s):
            w = alive.pop(sentinel)
            if stopped():
                return
            processes[w].join(1)  # so that its status is known
            if not alive:
                log.error("saga-rl: the last engine ended (number %d, status %s); so do the servers", w,
                          processes[w].exitcode)
                return
            log.error("saga-rl: engine %d ended (status %s); the servers take it out", w, processes[w].exitcode)
            table.dead[w] = STATUS + (processes[w].exitcode or 0)

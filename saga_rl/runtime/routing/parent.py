"""The process that starts several API servers and the engines behind them, and serves nothing itself.

It makes the table that the servers share, and watches the engines for them: vLLM ends all when one engine ends; here it
is noted in the table, each server takes the engine out (`engines`), and the last engine's death ends all as ever. It
ends an engine that a server found hung. An API server that dies is noted, too: the others serve on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from multiprocessing import connection
from types import SimpleNamespace
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
            _hook_servers()
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


@cache
def _hook_servers() -> None:
    """vLLM ends all when one API server ends."""
    from vllm.entrypoints.cli import serve

    if not hasattr(serve, "wait_for_completion_or_failure"):
        log.warning("saga-rl: an API server that dies takes the others along: this vLLM does not watch them as we know")
        return
    stock = serve.wait_for_completion_or_failure

    @wraps(stock)
    def wait_for_completion_or_failure(api_server_manager: Any, *args: Any, **kwargs: Any) -> None:
        table = ours()
        if table is not None and table.watched[0] and len(api_server_manager.processes) == table.servers:
            api_server_manager = SimpleNamespace(processes=spared(list(api_server_manager.processes), table))
        stock(api_server_manager, *args, **kwargs)

    serve.wait_for_completion_or_failure = wait_for_completion_or_failure


def spared(processes: list[Any], table: SharedTable) -> list[Spared]:
    """What vLLM waits for in place of the API servers' processes."""
    out = [Spared(p, k, table) for k, p in enumerate(processes)]
    for p in out:
        p.all = out
    return out


class Spared:
    """The process of API server `number`; its death is no failure while another server lives."""

    def __init__(self, process: Any, number: int, table: SharedTable) -> None:
        self.process, self.number, self.table = process, number, table
        self.all: list[Spared] = []

    @property
    def sentinel(self) -> Any:
        return self.process.sentinel

    @property
    def name(self) -> str:
        return str(self.process.name)

    @property
    def pid(self) -> Any:
        return self.process.pid

    @property
    def exitcode(self) -> int | None:
        """The status; 0 for one that died and is noted in the table: the others serve on."""
        self.process.join(1)  # so that its status is known
        code = self.process.exitcode
        if code in (0, None) or not self.table.watched[0] or not any(
                p.process.is_alive() for p in self.all if p is not self):
            return code
        if not self.table.gone[self.number]:
            left = sum(p.process.is_alive() for p in self.all)
            log.error("saga-rl: API server %d ended (status %s); %d of %d serve on", self.number, code, left,
                      len(self.all))
            _forget_gauges(self.pid)
            self.table.gone[self.number] = STATUS + code
        return 0


def _forget_gauges(pid: int) -> None:
    """What the process said last of itself is no longer true."""
    try:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)
    except Exception:
        log.exception("saga-rl: the gauges of a dead API server stay on /metrics")


def watch(processes: list[Any], stopped: Callable[[], bool], table: SharedTable, look_s: float = 1.0) -> None:
    """Note in the table which engines end. Returns when what comes is vLLM's: the last one ended, the servers are being
    stopped, or one of them gave up (`watched` is 0)."""
    if len(processes) != table.engines:
        raise ValueError(f"{len(processes)} processes of {table.engines} engines")
    alive = {p.sentinel: w for w, p in enumerate(processes)}
    while not stopped() and table.watched[0]:
        _end_hung({w: processes[w] for w in alive.values()}, table)
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


def _end_hung(alive: dict[int, Any], table: SharedTable) -> None:
    """End the engines that a server found hung, but for the last one."""
    for w, process in alive.items():
        if table.hung[w] and sum(not table.hung[v] for v in alive):
            process.kill()

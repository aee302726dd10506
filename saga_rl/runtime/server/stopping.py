"""How an API server stops: answers that nobody will finish are cut after a while, and a second signal ends it at once.

vLLM's own server waits for every open stream without an end, and ignores a second signal.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger("vllm.saga_rl")
STREAMS_S = 5
"""Seconds for the last bytes to reach clients once the engines have stopped."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def prepare(server: Any, on_signal: Callable[[], object] = lambda: None) -> None:
    """server: uvicorn's, None where something else serves; on_signal: called at the first signal. Call it in the main
    thread's running event loop, once vLLM's own signal handlers are in place: they go on, this one only counts."""
    if server is None:
        return
    if server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = STREAMS_S
    if threading.current_thread() is not threading.main_thread():
        return
    seen = 0

    def count(number: int, frame: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            on_signal()
        if seen == 2:
            log.warning("saga-rl: a second signal: stopping now")
        if seen >= 2:
            end_now(server)

    for number in SIGNALS:
        signal.signal(number, count)  # the event loop hears of a signal by its own descriptor, whoever handles it


def end_now(server: Any) -> None:
    """Wait for nobody: engines are killed, connections dropped."""
    server.force_exit = True
    for process in multiprocessing.active_children():
        process.kill()

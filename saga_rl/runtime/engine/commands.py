"""What the API server may ask of an engine or order it to do, answered between two steps.

The plugin gives vLLM's `EngineCore` the method `saga_control`, which calls `handle` in the thread that schedules.
`runtime.server.control` is the other side. Nothing here raises: nothing that serves a request may fail for it. Imports
nothing heavy: the plugin loads it in every vLLM, also where nobody wants us.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.ours import METHOD

log = logging.getLogger("vllm.saga_rl")


def _notes(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"applied": scheduler.apply_notes(payload.get("notes") or ())}


def _snapshot(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.engine.policy_change import described

    return {**scheduler.snapshot(), **described(scheduler)}


def _swap(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.engine.policy_change import change

    return change(scheduler, payload["policy"], payload.get("expect"), str(payload.get("change", "")))


def _revert(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.engine.policy_change import revert

    return revert(scheduler, str(payload.get("change", "")))


def _save(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what was learned now. Waits for the disk, so it is for an operator, not for a timer."""
    if scheduler.keeper is None:
        raise UserError("statistics", "are not kept by this engine", "name a folder in the configuration (statistics)")
    return {"saved": scheduler.keeper.save_now()}


def _prove(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """From now on tenants count only with a proof, see `hints.read_hints`."""
    bytes.fromhex(payload["key"])
    scheduler.proof_keys.add(payload["key"])
    scheduler.tracker.quotas = True
    return {"servers": len(scheduler.proof_keys)}


def _steal(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    return give_up(scheduler, payload)


def _client_gone(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """{"client": number of an API server that ended} -> {"requests": how many of its requests were taken out}."""
    from vllm.v1.request import RequestStatus

    names = [name for name, r in scheduler.requests.items() if r.client_index == payload["client"]]
    if names:
        scheduler.metrics.counts["requests of a server that ended"] += len(names)
        scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
    return {"requests": len(names)}


COMMANDS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "notes": _notes, "snapshot": _snapshot, "swap": _swap, "revert": _revert, "save": _save,
    "steal": _steal, "prove": _prove, "client gone": _client_gone}
"""By name: (scheduler, payload) -> answer. Runs between two steps, so it must be quick."""


def handle(scheduler: Any, command: str, payload: Mapping[str, Any] | None) -> dict[str, Any]:
    """The answer of one engine; `{"error": one line}` for whatever goes wrong."""
    if not hasattr(scheduler, "saga_config"):
        return {"error": "this engine runs another scheduler"}
    run = COMMANDS.get(command)
    if run is None:
        return {"error": f"no command {command!r}"}
    try:
        return _plain(run(scheduler, payload or {}))
    except UserError as e:
        return {"error": str(e)}
    except Exception as e:
        name = f"failed/control {command}"
        scheduler.metrics.counts[name] += 1
        log.exception("saga-rl: control command %s failed (%d times so far)", command, scheduler.metrics.counts[name])
        return {"error": f"{command} failed in the engine ({type(e).__name__})"}


def _plain(value: Any) -> Any:
    """What vLLM's encoder takes: no numpy scalars, keys as strings."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value


def attach(engine_core: type) -> None:
    """Give vLLM's `EngineCore` the method; harmless where another scheduler runs."""
    def saga_control(self: Any, command: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        return handle(self.scheduler, command, payload)

    if METHOD not in vars(engine_core):
        setattr(engine_core, METHOD, saga_control)


DRAIN_SHARE = 0.8
"""Of `--shutdown-timeout` an engine lets its requests run; then they are cut, and the rest is for writing down."""


def end_in_time(process: Any) -> None:
    """vLLM's `EngineCoreProc` lets requests run on until it is killed at `--shutdown-timeout`, with what our scheduler
    has still to write. With our scheduler they end before."""
    stock = process._handle_shutdown
    if getattr(stock, "saga_rl", False):
        return

    def _handle_shutdown(self: Any) -> bool:
        goes_on = stock(self)
        if self.shutdown_state.name == "SHUTTING_DOWN" and hasattr(self.scheduler, "saga_config"):
            since = self.__dict__.setdefault("saga_stopping_s", time.monotonic())
            if goes_on and time.monotonic() - since > DRAIN_SHARE * self.vllm_config.shutdown_timeout:
                cut_short(self)
        return bool(goes_on)

    _handle_shutdown.saga_rl = True  # type: ignore[attr-defined]
    process._handle_shutdown = _handle_shutdown


def cut_short(engine: Any) -> None:
    """Abort what an engine still has, and tell its clients."""
    from vllm.v1.request import RequestStatus

    engine._send_abort_outputs(engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED))


def give_up(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In the victim engine (control command "steal"): {"requests": names} -> {"given": the first of them that waits and
    has not been begun, or None}. It is gone here as if its client had gone, but not counted as dropped."""
    from vllm.v1.request import RequestStatus

    for name in payload.get("requests", ()):
        r = scheduler.requests.get(name)
        if (r is None or r.status != RequestStatus.WAITING or r.num_computed_tokens or r.num_output_tokens
                or getattr(r, "num_preemptions", 0)):
            continue
        recorder = getattr(scheduler, "recorder", None)
        scheduler.metrics.counts["given up to another engine"] += 1
        scheduler.recorder = None  # it is not lost: another engine will record it
        try:
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        except Exception:
            if name in scheduler.requests:
                raise
            log.exception("saga-rl: request %s left with an error", name)  # it is gone here, so it is given
        finally:
            scheduler.recorder = recorder
        return {"given": name}
    return {"given": None}

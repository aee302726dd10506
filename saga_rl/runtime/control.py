"""Questions and orders from the API server to the engines, over vLLM's own utility calls.

In the engine: the plugin gives vLLM's `EngineCore` the method `saga_control`, which calls `handle` between two steps,
in the thread that schedules. In the API server: `ask` and `everywhere`. Neither raises: an engine that is lost, late or
not ours gives `{"error": ...}`, since nothing that serves a request may fail for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from saga_rl.errors import UserError

log = logging.getLogger("vllm.saga_rl")
TIMEOUT_S = 5.0
METHOD = "saga_control"


# ---------------------------------------------------------------------- in the engine
def _told(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"applied": scheduler.told(payload.get("notes") or ())}


def _snapshot(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.policy_change import described

    return {**scheduler.snapshot(), **described(scheduler)}


def _swap(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.policy_change import change

    return change(scheduler, payload["policy"], payload.get("expect"), str(payload.get("change", "")))


def _revert(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.policy_change import revert

    return revert(scheduler, str(payload.get("change", "")))


def _save(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what was learned now. Waits for the disk, so it is for an operator, not for a timer."""
    if scheduler.keeper is None:
        raise UserError("statistics", "are not kept by this engine", "name a folder in the configuration (statistics)")
    return {"saved": scheduler.keeper.save_now()}


def _steal(scheduler: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    from saga_rl.runtime.stealing import give_up

    return give_up(scheduler, dict(payload))


COMMANDS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "told": _told, "snapshot": _snapshot, "swap": _swap, "revert": _revert, "save": _save,
    "steal": _steal}
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


# ---------------------------------------------------------------------- in the API server
def client_of(engine_client: Any) -> Any:
    """vLLM's client of the engines, from the `engine_client` of the app (or the client itself)."""
    return getattr(engine_client, "engine_core", engine_client)


def live_engines(engine_client: Any) -> list[int]:
    """Places of the engines that have not been taken out."""
    client = client_of(engine_client)
    mine = getattr(client, "__dict__", {}).get("saga_engines")
    return list(range(len(client.core_engines))) if mine is None else mine.live()


async def ask(engine_client: Any, engine: int, command: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """One engine's answer, with its place as `engine`. Waits as long as it takes."""
    client = client_of(engine_client)
    try:
        answer = await client._call_utility_async(METHOD, command, dict(payload), engine=client.core_engines[engine])
    except asyncio.CancelledError:
        raise
    except Exception as e:
        return {"engine": engine, "error": f"{type(e).__name__}: {e}".splitlines()[0]}
    return {**answer, "engine": engine} if isinstance(answer, dict) else {"engine": engine, "error": "no answer"}


async def everywhere(engine_client: Any, command: str, payload: Mapping[str, Any],
                     timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """The answers of all engines that live, in order; one that is late gives an error (and may still obey)."""
    async def one(engine: int) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(ask(engine_client, engine, command, payload), timeout_s)
        except TimeoutError:
            return {"engine": engine, "error": f"no answer within {timeout_s:g} s"}

    try:
        engines = live_engines(engine_client)
    except Exception as e:
        return [{"engine": -1, "error": f"{type(e).__name__}: {e}"}]
    return list(await asyncio.gather(*(one(engine) for engine in engines)))

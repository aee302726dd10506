"""Questions and orders from the API server to the engines, over vLLM's own utility calls; `runtime.engine.commands`
answers. Neither function raises: an engine that is lost, late or not ours gives `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from saga_rl.runtime.config.ours import METHOD

TIMEOUT_S = 5.0


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

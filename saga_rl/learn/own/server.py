"""What a running server says of itself and how fast it is: `saga-rl learn --server URL`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.learn.own.settings import Settings
from saga_rl.replay.calibrate import measure, profile_from
from saga_rl.replay.client import OpenAIClient
from saga_rl.sim.cost.profile import CostProfile, load_profile

BATCHED_TOKENS = 8192
"""vLLM's own --max-num-batched-tokens on a large GPU."""
BATCHES = 1, 4, 16
"""Answers at a time that are timed."""


def profile_file(out: Path) -> Path:
    """Where the measured profile of a learning run in `out` stands: beside it, since the folder is made last."""
    return out.with_name(out.name + ".server.json")


async def asked(url: str, api_key: str | None) -> dict[str, Any]:
    """What the server says: `model`, `window` (its longest context, tokens), `engines`, and of the smallest engine
    `kv_tokens`; `offloading`: GiB of CPU memory for KV, "" = none. Raises `UserError`."""
    async with OpenAIClient(url, api_key) as client:
        model, window = await client.model(None)
        engines = await client.caches()
    try:
        pools = [int(e["num_gpu_blocks"]) * int(e["block_size"]) for e in engines]
    except (KeyError, ValueError):
        pools = []
    if not pools:
        raise UserError(f"--server {url}", "does not say on /metrics how large its KV pools are, as vLLM does",
                        "name an engine's own address, or give --profile FILE (`saga-rl profile fit`) and --kv-tokens")
    offloading = {e.get("kv_offloading_size", "None") for e in engines} - {"None", "0", "0.0", ""}
    return {"model": model, "window": window, "engines": len(pools), "kv_tokens": min(pools),
            "offloading": max(offloading, default="")}


def settings_of(s: Settings, url: str, out: Path, api_key: str | None, given_workers: int,
                say: Callable[[str], None]) -> Settings:
    """`s` with what the server says where nothing else was given, and its costs, which are measured once and kept
    (`profile_file`). Raises `UserError`; then nothing is written."""
    kept = profile_file(out)
    if kept.exists():
        profile = load_profile(str(kept))
        there = profile.provenance.get("server")
        if not isinstance(there, dict) or there.get("url") != url:
            raise UserError(kept, "holds the profile of another server" if isinstance(there, dict) else
                            "is not what `saga-rl learn --server` writes", "remove it, or name another --out")
        say(f"server: as measured before ({kept}); remove that file to measure anew")
    else:
        there = asyncio.run(asked(url, api_key)) | {"url": url}
        profile = _measured(s, url, api_key, there, say)
    if there["offloading"] and not s.cpu_tokens:
        raise UserError(f"--server {url}", f"keeps KV in {there['offloading']} GiB of CPU memory, and how many tokens "
                        "that is it does not say", "give --cpu-tokens (`saga-rl profile memory` has bytes of a token)")
    if not kept.exists():
        profile.save(kept)
    window = there["window"] or 0
    say(f"server: {there['model']}, {there['engines']} engine(s) of {there['kv_tokens']:,} KV tokens, window "
        f"{window:,}; costs as measured, error {profile.provenance['relative_error_rms']:.1%}")
    return replace(s, profile=str(kept), workers=given_workers or there["engines"],
                   kv_tokens=s.kv_tokens or there["kv_tokens"], window=s.window or window)


def _measured(s: Settings, url: str, api_key: str | None, there: dict[str, Any],
              say: Callable[[str], None]) -> CostProfile:
    chunk, pool = s.max_batched_tokens or BATCHED_TOKENS, int(there["kv_tokens"])
    say(f"server: timing a few dozen prompts at {url}, which should be idle")
    samples = asyncio.run(measure(url, engines=int(there["engines"]), max_batched_tokens=chunk, api_key=api_key,
                                  batches=[b for b in BATCHES if b <= s.max_num_seqs], kv_tokens=pool,
                                  say=lambda text: say(f"  {text}")))
    return profile_from(samples, "server", pool, chunk, server=there)

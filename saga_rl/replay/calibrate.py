"""Fit a cost profile to a running server: `saga-rl profile fit URL -o profile.json`.

A few prompts are timed from sending to the last token, on all engines at once, so that what they share (cores, memory)
is in the figures: cold prompts of several lengths; prompts whose beginning is cached; answers alone, four and sixteen
at a time; answers that a prompt joins. Then

    seconds = request + base * I + prefill * P + attention * A + context * C + kv * K + seq * D

is fitted by least squares on relative error with all constants >= 0, where I is the engine's iterations, P prefill
tokens, A attention pairs, C contexts that chunks read, K KV tokens read by decode and D decoded tokens, all of one
engine. `request`, what HTTP and tokenizing cost a request, is noted in the profile's provenance; the simulator has no
such term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saga_rl.errors import UserError
from saga_rl.provenance import provenance
from saga_rl.replay.client import OpenAIClient, RequestFailed
from saga_rl.replay.probe import Probe
from saga_rl.replay.situations import LARGE, TERMS, Sample, mixed_sample, request_row, request_sample
from saga_rl.sim.cost.fit import region_errors, relative_fit
from saga_rl.sim.cost.profile import RANGES, CostProfile

__all__ = ["TERMS", "Sample", "fit", "measure", "profile_from", "request_row"]

FLOOR_S = 1e-9
"""The simulator needs a positive iteration and prefill cost, however small."""
WHOLE = 128
"""Cached prefixes are multiples of it: whole blocks under any usual block size."""
TAILS = (32, 512)
BELIEVED = 0.9
"""A cached prompt that took less than this share of a cold one was cached, whatever the server does not say."""
LEFT_OUT = "left out"
JOIN_AT, JOIN_ROOM = 0.2, 0.6
"""A joining prompt is sent after this share of the answers' time, and must take less than that share alone."""


def fit(samples: list[Sample]) -> tuple[dict[str, float], float]:
    """Constants by term, all >= 0, and the root mean square relative error."""
    rows, seconds = np.array([s.row for s in samples]), np.array([s.seconds for s in samples])
    x = relative_fit(rows, seconds)
    return (dict(zip(TERMS, x.tolist(), strict=True)), float(np.sqrt(np.square(rows @ x / seconds - 1).mean())))


async def measure(url: str, *, engines: int = 1, model: str | None = None, max_batched_tokens: int = 2048,
                  decode_tokens: int = 64, repeats: int = 2, seed: int = 0, api_key: str | None = None,
                  batches: Sequence[int] = (1, 4, 16), kv_tokens: int | None = None,
                  say: Callable[[str], None] = lambda _: None) -> list[Sample]:
    """Time the situations on the server at `url`. The least of `repeats` counts: noise only adds.

    batches: answers at a time, at most the server's --max-num-seqs. kv_tokens: pool of an engine; situations that would
    not fit are left out. say: told what is measured and what is left out.
    """
    async with OpenAIClient(url, api_key) as client:
        name, model_len = await client.model(model)
        probe = Probe(client, name, engines, np.random.default_rng(seed))
        limit = (model_len or 8192) - decode_tokens - 2
        short, long = min(128, limit // 4), min(4096, limit)
        lengths = sorted({short, limit // 6, limit // 2, limit})
        situations = [(n, 1, 1) for n in lengths] + [
            (n, decode_tokens, b) for n in (short, long) for b in batches if n == short or b <= LARGE]
        try:
            await probe.cold(short, 2, 1)
            found = await _cold(probe, situations, max_batched_tokens, repeats, kv_tokens, say)
            return [*found.values(), *await _cached(probe, found, lengths[-2:], max_batched_tokens, repeats, say),
                    *await _mixed(probe, found, (short, decode_tokens), max_batched_tokens, repeats, kv_tokens, say)]
        except RequestFailed as e:
            raise UserError(client.base, f"refused a calibration request ({e})",
                            "the server must take token ids and ignore_eos, as vLLM and SGLang do") from None


Found = dict[tuple[int, int, int], Sample]


async def _cold(probe: Probe, situations: Sequence[tuple[int, int, int]], chunk: int, repeats: int,
                kv_tokens: int | None, say: Callable[[str], None]) -> Found:
    """Cold prompts, by (tokens, answer, together)."""
    out = {}
    for n, answer, together in situations:
        label = f"{together} x {n} tokens, {answer} answered"
        if kv_tokens is not None and together * (n + answer) > kv_tokens:
            say(f"{LEFT_OUT}: {label}: more than {kv_tokens:,} KV tokens")
            continue
        say(f"timing {label}")
        seconds = min([await probe.cold(n, answer, together) for _ in range(repeats)])
        out[n, answer, together] = request_sample(seconds, n, answer, together, chunk)
    return out


async def _cached(probe: Probe, cold: Found, lengths: Sequence[int], chunk: int, repeats: int,
                  say: Callable[[str], None]) -> list[Sample]:
    """Prompts whose beginning is cached. A server that does not say what it found is believed if it was faster."""
    out = []
    for n, tail in ((n, tail) for n in lengths for tail in TAILS):
        cached = (n - tail) // WHOLE * WHOLE
        if cached <= 0 or (n, 1, 1) not in cold:
            continue
        say(f"timing {n} tokens, {cached} cached")
        seconds, told = min([await probe.cached(n, cached) for _ in range(repeats)], key=lambda t: t[0])
        if told is None and seconds > BELIEVED * cold[n, 1, 1].seconds:
            say(f"{LEFT_OUT}: {n} tokens, {cached} cached: hardly faster than cold, and the server does not say "
                "what it found in its cache")
        else:
            out.append(request_sample(seconds, n, 1, 1, chunk, cached if told is None else told))
    return out


async def _mixed(probe: Probe, cold: Found, answers: tuple[int, int], chunk: int, repeats: int, kv_tokens: int | None,
                 say: Callable[[str], None]) -> list[Sample]:
    """Answers that the longest prompt joins which is sure to be done before them."""
    out = []
    short, tokens = answers
    for (n, answer, together), alone in cold.items():
        late = max((m for (m, one, _), s in cold.items() if one == 1 and s.seconds < JOIN_ROOM * alone.seconds
                    and (kv_tokens is None or together * (short + tokens) + m <= kv_tokens)), default=0)
        if (n, answer) != answers or not late:
            continue
        say(f"timing {together} answers that {late} tokens join")
        runs = [await probe.joined(n, answer, together, late, JOIN_AT * alone.seconds) for _ in range(repeats)]
        kept = [s for s in runs if s is not None]
        if kept:
            out.append(mixed_sample(min(kept), n, answer, together, chunk, late))
        else:
            say(f"{LEFT_OUT}: {together} answers that {late} tokens join: the answers were done first")
    return out


def profile_from(samples: list[Sample], name: str, kv_tokens: int, max_batched_tokens: int = 2048,
                 **notes: Any) -> CostProfile:
    """The fitted profile, with samples, errors and the request overhead in its provenance."""
    x, error = fit(samples)
    predicted = np.array([s.row for s in samples]) @ np.array([x[t] for t in TERMS])
    regions = region_errors([s.region for s in samples], predicted, np.array([s.seconds for s in samples]))
    fitted = {}
    for key in RANGES:
        seen = [s.seen[key] for s in samples if s.seen.get(key, 0) > 0]
        if seen:
            fitted[key] = (min(seen), max(seen))
    return CostProfile(
        name, max(x["base"], FLOOR_S), max(x["prefill"], FLOOR_S), x["kv"], x["seq"], x["attention"], kv_tokens,
        max_batched_tokens, provenance(seed=None, trace=None) | {"kind": "fitted"} | notes | {
            "measured": {s.label: s.seconds for s in samples}, "request_s": x["request"], "relative_error_rms": error,
            "error_by_region": regions}, per_context_s=x["context"], fitted=fitted)

"""Fit a cost profile to a running server: `python -m saga_rl.runtime.calibrate URL -o profile.json`.

A few prompts are timed from sending to the last token: cold prompts of several lengths, and answers alone and four at a
time after a short and a long prompt, on all engines at once, so that what they share (cores, memory) is in the
figures. Then

    seconds = request + base * I + prefill * P + attention * A + kv * K + seq * D

is fitted by least squares on relative error with all six constants >= 0, where I is the engine's iterations, P prefill
tokens, A attention pairs, K KV tokens read by decode and D decoded tokens, all of one engine. `request`, what HTTP and
tokenizing cost a request, is noted in the profile's provenance; the simulator has no such term.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.provenance import provenance
from saga_rl.runtime.replay_client import OpenAIClient, RequestFailed
from saga_rl.runtime.replay_text import FIRST_ID, N_IDS
from saga_rl.sim.cost import CostProfile

TERMS = ("request", "base", "prefill", "kv", "seq", "attention")
FLOOR_S = 1e-9
"""The simulator needs a positive iteration and prefill cost, however small."""


@dataclass(frozen=True)
class Sample:
    """One timed situation: its row of `TERMS` and the seconds that it took."""

    label: str
    row: tuple[float, ...]
    seconds: float


def request_row(context: int, answer: int, together: int, chunk: int) -> tuple[float, ...]:
    """Row of `together` cold prompts of `context` tokens sent to one engine at once, each answered by `answer` tokens.

    Prompts are computed in chunks of `chunk` tokens, shared by the prompts that fit; the first token of an answer comes
    out of the last chunk, each later one of an iteration of its own in which all sequences decode.
    """
    starts = np.arange(0, context, chunk)
    sizes = np.minimum(chunk, context - starts)
    decoded = answer - 1
    return (1.0, math.ceil(together * context / chunk) + decoded, together * context,
            together * decoded * (context + answer / 2), together * decoded,
            together * float((sizes * (starts + sizes / 2)).sum()))


def fit(samples: list[Sample]) -> tuple[dict[str, float], float]:
    """Constants by term, all >= 0, and the root mean square relative error. Exact: tries every set of free terms."""
    rows = np.array([s.row for s in samples])
    seconds = np.array([s.seconds for s in samples])
    a, b = rows / seconds[:, None], np.ones(len(samples))
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    best, best_error = np.zeros(len(TERMS)), np.inf
    for k in range(1, len(TERMS) + 1):
        for free in map(list, combinations(range(len(TERMS)), k)):
            x = np.linalg.lstsq(a[:, free] / scale[free], b, rcond=None)[0]
            error = float(np.square(a[:, free] / scale[free] @ x - b).mean())
            if (x >= 0).all() and error < best_error - 1e-12:
                best, best_error = np.zeros(len(TERMS)), error
                best[free] = x / scale[free]
    return dict(zip(TERMS, best.tolist(), strict=True)), float(np.sqrt(best_error))


async def measure(url: str, *, engines: int = 1, model: str | None = None, max_batched_tokens: int = 2048,
                  decode_tokens: int = 64, repeats: int = 2, seed: int = 0, api_key: str | None = None) -> list[Sample]:
    """Time the situations on the server at `url`. The least of `repeats` counts: noise only adds."""
    rng = np.random.default_rng(seed)
    async with OpenAIClient(url, api_key) as client:
        name, model_len = await client.model(model)

        async def ask(prompt: NDArray, tokens: int):
            return await client.complete({"model": name, "prompt": prompt.tolist(), "max_tokens": tokens,
                                          "temperature": 0, "ignore_eos": True})

        def text(n: int) -> NDArray:
            return rng.integers(FIRST_ID, FIRST_ID + N_IDS, n)

        async def whole(context: int, answer: int, together: int) -> float:
            replies = await asyncio.gather(*(ask(text(context), answer) for _ in range(together * engines)))
            return max(r.end_s for r in replies) - min(r.sent_s for r in replies)

        limit = (model_len or 8192) - decode_tokens - 2
        short, long = min(128, limit // 4), min(4096, limit)
        situations = [(n, 1, 1) for n in sorted({short, limit // 6, limit // 2, limit})]
        situations += [(n, decode_tokens, together) for n in (short, long) for together in (1, 4)]
        try:
            await whole(short, 2, 1)
            samples = [Sample(f"{together} x {n} tokens, {answer} answered",
                              request_row(n, answer, together, max_batched_tokens),
                              min([await whole(n, answer, together) for _ in range(repeats)]))
                       for n, answer, together in situations]
        except RequestFailed as e:
            raise UserError(client.base, f"refused a calibration request ({e})",
                            "the server must take token ids and ignore_eos, as vLLM and SGLang do") from None
    return samples


def profile_from(samples: list[Sample], name: str, kv_tokens: int, max_batched_tokens: int = 2048,
                 **notes: Any) -> CostProfile:
    """The fitted profile, with samples, error and the request overhead in its provenance."""
    x, error = fit(samples)
    return CostProfile(
        name, max(x["base"], FLOOR_S), max(x["prefill"], FLOOR_S), x["kv"], x["seq"], x["attention"], kv_tokens,
        max_batched_tokens, provenance(seed=None, trace=None) | notes | {
            "measured": {s.label: s.seconds for s in samples}, "request_s": x["request"], "relative_error_rms": error})


def main() -> None:
    from saga_rl.cli import run_user_command

    def command(
        url: str = typer.Argument(..., help="Address of a running OpenAI-compatible server, otherwise idle."),
        out: Path = typer.Option(..., "-o", help="Write the profile here (JSON)."),
        kv_tokens: int = typer.Option(..., min=1, help="KV pool of one engine, tokens, as the server logs it."),
        engines: int = typer.Option(1, min=1, help="Data-parallel size of the server."),
        max_batched_tokens: int = typer.Option(2048, min=1, help="The server's --max-num-batched-tokens."),
        model: str | None = typer.Option(None, help="Model to ask for; default: the first served."),
    ) -> None:
        """Fit the simulator's cost profile to a running server."""
        samples = asyncio.run(measure(url, engines=engines, model=model, max_batched_tokens=max_batched_tokens))
        profile = profile_from(samples, out.stem, kv_tokens, max_batched_tokens, url=url)
        profile.save(out)
        Console().print(f"{out}: root mean square relative error {profile.provenance['relative_error_rms']:.1%} "
                        f"over {len(samples)} situations")

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_user_command(app)


if __name__ == "__main__":
    main()

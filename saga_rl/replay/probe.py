"""Timing one situation on a live server: the requests that a calibration sends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saga_rl.replay.client import OpenAIClient, Reply
from saga_rl.replay.text import FIRST_ID, N_IDS


@dataclass
class Probe:
    """Sends prompts of random tokens, the same number to every engine at once: vLLM's own router spreads a burst by
    counts that are up to 100 ms old. Raises `RequestFailed` as the client does."""

    client: OpenAIClient
    model: str
    engines: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def text(self, n: int) -> NDArray:
        """n token ids that no earlier prompt began with."""
        return self.rng.integers(FIRST_ID, FIRST_ID + N_IDS, n)

    def ranks(self, each: int = 1) -> list[int | None]:
        """Engines to send to, `each` prompts to every one."""
        return [i if self.engines > 1 else None for i in range(self.engines)] * each

    async def ask(self, prompt: NDArray, tokens: int, engine: int | None = None) -> Reply:
        """`tokens` tokens after `prompt`; `engine`: vLLM's data-parallel rank that must serve it."""
        body = {"model": self.model, "prompt": prompt.tolist(), "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True}
        return await self.client.complete(
            body, {"X-data-parallel-rank": str(engine)} if engine is not None else None)

    async def cold(self, context: int, answer: int, together: int) -> float:
        """Seconds of `together` cold prompts an engine, each answered."""
        return span(await asyncio.gather(*(self.ask(self.text(context), answer, r) for r in self.ranks(together))))

    async def cached(self, context: int, cached: int) -> tuple[float, int | None]:
        """Seconds of a prompt whose first `cached` tokens were sent before, and how many of them the server says it
        found in its cache; None if it does not say."""
        ranks = self.ranks()
        prefixes = [self.text(cached) for _ in ranks]
        await asyncio.gather(*(self.ask(p, 1, r) for p, r in zip(prefixes, ranks, strict=True)))
        replies = await asyncio.gather(*(self.ask(np.concatenate([p, self.text(context - cached)]), 1, r)
                                         for p, r in zip(prefixes, ranks, strict=True)))
        told = [r.cached_tokens for r in replies if r.cached_tokens is not None]
        return span(replies), min(told) if len(told) == len(replies) else None

    async def joined(self, context: int, answer: int, together: int, late: int, wait: float) -> float | None:
        """Seconds of answers that a prompt of `late` tokens joins after `wait`; None if it was not done before them."""
        async def join(rank: int | None) -> Reply:
            await asyncio.sleep(wait)
            return await self.ask(self.text(late), 1, rank)

        n = together * self.engines
        replies = await asyncio.gather(*(self.ask(self.text(context), answer, r) for r in self.ranks(together)),
                                       *(join(r) for r in self.ranks()))
        done = max(r.end_s for r in replies[n:]) < min(r.end_s for r in replies[:n])
        return span(replies[:n]) if done else None


def span(replies: Sequence[Reply]) -> float:
    """Seconds from the first sending to the last token."""
    return max(r.end_s for r in replies) - min(r.sent_s for r in replies)

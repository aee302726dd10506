"""What one scheduled step asks of a device, in the terms of a cost profile (`sim.cost.iteration`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Batch:
    """Sums over the requests of a step. Tokens throughout; `pairs` are attention pairs."""

    prefill: int = 0
    """Prompt tokens computed."""
    pairs: float = 0.0
    """A chunk of n tokens at context c has n * (c + n / 2)."""
    context: int = 0
    """Context before each chunk, summed."""
    kv_read: int = 0
    """Context that decoding sequences read, summed."""
    decoding: int = 0
    """Sequences that decode one token."""

    def chunk(self, tokens: int, context: int) -> None:
        """Add a chunk of a prompt that has `context` tokens before it."""
        self.prefill += tokens
        self.pairs += tokens * (context + tokens / 2)
        self.context += context

    def decode(self, context: int) -> None:
        """Add one sequence that decodes its next token after `context` tokens."""
        self.decoding += 1
        self.kv_read += context


def batch_of(requests: Iterable[tuple[int, int, bool]]) -> Batch:
    """The batch of (tokens scheduled, tokens computed before, whether it decodes) for each request."""
    out = Batch()
    for tokens, computed, decodes in requests:
        if decodes and tokens == 1:
            out.decode(computed)
        else:
            out.chunk(tokens, computed)
    return out

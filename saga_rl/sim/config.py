"""What a simulated cluster is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from saga_rl.errors import UserError
from saga_rl.sim.cost import CostProfile, load_profile


@dataclass(frozen=True)
class SimConfig:
    """N equal workers. Limits as vLLM names them."""

    workers: int = 1
    kv_tokens: int = 240_000
    """KV pool of one worker, tokens."""
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_batched_tokens: int = 0
    """Tokens one iteration may compute; 0 = the profile's."""
    profile: CostProfile = field(default_factory=lambda: load_profile("a100-llama3-70b-tp4"))
    end_hint: bool = True
    """Clients say which step is their session's last."""
    expiry_s: float = 300.0
    """A chain that nobody heard of for this long is presumed ended and is no longer reserved for."""
    population: int = 0
    """Closed population: this many sessions at once, the next starts when one ends. 0 = the trace's arrivals."""
    horizon_s: float = math.inf
    """Stop there; unfinished sessions are not counted as done."""

    def __post_init__(self) -> None:
        for name in ("workers", "block_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give at least 1")
        if self.kv_tokens < self.block_tokens:
            raise UserError("--kv-tokens", f"is {self.kv_tokens}, less than one block of {self.block_tokens}",
                            "give the tokens of KV that one worker holds")
        for name in ("population", "max_batched_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give 0 or more")
        for name in ("expiry_s", "horizon_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give seconds > 0")

    @property
    def pool_blocks(self) -> int:
        return self.kv_tokens // self.block_tokens

    @property
    def batched_tokens(self) -> int:
        return self.max_batched_tokens or self.profile.max_batched_tokens

"""What a simulated cluster is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.parameters import DEFAULT_PROFILE, EXPIRY_S
from saga_rl.sim.cost.profile import CostProfile, load_profile

OFFLOADING = ("ideal", "vllm", "lazy")


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
    profile: CostProfile = field(default_factory=lambda: load_profile(DEFAULT_PROFILE))
    end_hint: bool = False
    """Clients say which step is their session's last. Few do."""
    expiry_s: float = EXPIRY_S
    """A chain that nobody heard of for this long is presumed ended and is no longer reserved for."""
    population: int = 0
    """Closed population: this many sessions at once, the next starts when one ends. 0 = the trace's arrivals."""
    horizon_s: float = math.inf
    """Stop there; unfinished sessions are not counted as done."""

    reserve_full_prompt: bool = True
    """Let a waiting request in only when blocks for all of its tokens are there, not just for its first chunk: vLLM's
    `scheduler_reserve_full_isl`, which is on by default."""
    prefix_caching: bool = True
    """Keep blocks for later prompts. False: every request computes its whole prompt, and its blocks are free when it
    ends or is preempted."""
    cpu_tokens: int = 0
    """KV that the CPU tier beside each worker holds, tokens; 0 = no tier."""
    cpu_eviction: str = "lru"
    """What the tier forgets first: "lru" least recently used, "fifo" first stored."""
    offloading: str = "ideal"
    """How the tier is used. "ideal": whole contexts are stored, and loaded where that is faster than computing. "vllm":
    as vLLM's `OffloadingConnector` does it: prompts are stored, whatever is found is loaded, and a request hears of its
    copy with the end of the next iteration that is composed after it. "lazy": loads as "vllm", but what the GPU evicts
    is stored, nothing else, and what is loaded back is the tier's next to go (`saga_rl.sim.engine.demotion`)."""
    pcie_tokens_per_s: float = 300_000.0
    """KV copied between a worker and its tier. The default: 4 GPUs of 25 GB/s each, 327,680 bytes a token."""
    prefetch_tokens: int = 0
    """KV on its way from a tier at once for chains that are expected back; 0 = no prefetch."""
    link_tokens_per_s: float = 0.0
    """KV copied to a worker from the one that its chain comes from; 0 = it is computed again."""
    constraints: Constraints = field(default_factory=Constraints)
    """Fairness between tenants, outside every policy."""
    tool_names: bool = True
    """The scheduler knows which tool a finished step called; False: it never does (request level)."""
    starve_s: float = math.inf
    """A request that has waited for longer goes ahead of the policies' choice; `SagaConfig.starve_s` in service."""
    async_scheduling: bool = False
    """Compose each iteration while the one before it runs, as vLLM does on GPUs: what arrives or ends counts one
    iteration later. Takes every iteration singly."""
    single_steps: bool = False
    """Take every iteration singly instead of skipping runs of them: slower, same result."""

    def __post_init__(self) -> None:
        for name in ("workers", "block_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give at least 1")
        if self.kv_tokens < self.block_tokens:
            raise UserError("--kv-tokens", f"is {self.kv_tokens}, less than one block of {self.block_tokens}",
                            "give the tokens of KV that one worker holds")
        for name in ("population", "max_batched_tokens", "cpu_tokens", "prefetch_tokens", "link_tokens_per_s"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give 0 or more")
        for name in ("expiry_s", "horizon_s", "pcie_tokens_per_s", "starve_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give a number > 0")
        if self.cpu_eviction not in ("lru", "fifo"):
            raise unknown_name("policy of the CPU tier", self.cpu_eviction, ("lru", "fifo"))
        if self.offloading not in OFFLOADING:
            raise unknown_name("way of offloading", self.offloading, OFFLOADING)
        if self.prefetch_tokens and self.offloading != "ideal":
            raise UserError("--prefetch-tokens", "asks for prefetch, which vLLM's offloading does not have",
                            "leave it out, or take offloading \"ideal\"")
        if self.prefetch_tokens and not self.cpu_tokens:
            raise UserError("--prefetch-tokens", "asks for prefetch, but there is no CPU tier to prefetch from",
                            "give --cpu-tokens too")
        if not self.prefix_caching:
            for name in ("cpu_tokens", "link_tokens_per_s"):
                if getattr(self, name):
                    raise UserError(f"--{name.replace('_', '-')}", "asks for KV to be brought back, but there is no "
                                    "prefix caching", "leave it out, or --no-prefix-caching")
        if 0 < self.cpu_tokens < self.block_tokens:
            raise UserError("--cpu-tokens", f"is {self.cpu_tokens}, less than one block of {self.block_tokens}",
                            "give the tokens of KV that the tier holds, or 0 for none")

    @property
    def pool_blocks(self) -> int:
        return self.kv_tokens // self.block_tokens

    @property
    def batched_tokens(self) -> int:
        return self.max_batched_tokens or self.profile.max_batched_tokens

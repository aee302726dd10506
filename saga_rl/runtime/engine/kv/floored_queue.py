"""The block queue under KV floors."""

from __future__ import annotations

from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue


class FlooredBlockQueue(PolicyBlockQueue):
    """With floors: while `withhold` is set, `num_free_blocks` counts only what may be taken without touching one, or of
    that as much as is asked about (`at_least`)."""

    @property
    def num_free_blocks(self) -> int:
        if self.withhold and self.floors is not None and self.tenant is not None:
            n = self.empty.num_free_blocks
            return n + self.floors.takeable(self.runs, self.tenant, self.n_evictable, self.at_least - n,
                                            self.taken + self.used_again)
        return self._free

    @num_free_blocks.setter
    def num_free_blocks(self, n: int) -> None:
        """`_free` says it."""

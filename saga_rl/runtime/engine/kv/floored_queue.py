"""The block queue under KV floors."""

from __future__ import annotations

from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue


class FlooredBlockQueue(PolicyBlockQueue):
    """With floors: while `withhold` is set, `num_free_blocks` counts only what may be taken without touching one."""

    @property
    def num_free_blocks(self) -> int:
        if self.withhold and self.floors is not None and self.tenant is not None:
            return self.empty.num_free_blocks + self.floors.takeable(self.runs, self.tenant, self.n_evictable)
        return self._free

    @num_free_blocks.setter
    def num_free_blocks(self, n: int) -> None:
        """`_free` says it."""

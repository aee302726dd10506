"""A CPU tier that holds what the GPU is about to lose: vLLM's `SimpleCPUOffloadConnector`, lazy, under our policies.

vLLM's two ways of offloading hold what lies on the GPU a second time: the one stores what is computed, the other (lazy)
what was released. Here the eviction policy says what goes next from the GPU; that much is copied ahead of need, and
only that. Once a copy is there its blocks on the GPU are the next to be taken, and still found until then. What is
loaded back is the tier's next to go: the GPU has it and will hand it down again. So a tier of n pools is worth n pools.
The simulator's twin is `sim.engine.demotion`; the worker's side is vLLM's own.

`--kv-transfer-config '{"kv_connector": "LazyOffloadConnector", "kv_connector_module_path":
"saga_rl.runtime.engine.offload.lazy", "kv_role": "kv_both", "kv_connector_extra_config": {"cpu_bytes_to_use": N}}'`,
or `saga-rl serve --kv-offloading-size N --lazy-offload`. Tried with vLLM 0.32 and 0.33. Under a scheduler that is not
ours it is vLLM's lazy connector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.simple_cpu_offload_connector import SimpleCPUOffloadConnector
from vllm.v1.simple_kv_offload.manager import SimpleCPUOffloadScheduler

from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue

STEPS_AHEAD, LARGEST_SHARE = 4, 0.25
"""Copies are begun for what so many full steps take: one is composed, one runs, and one hears that the copy has ended.
At most this share of the GPU's blocks."""


class LazyOffloadManager(SimpleCPUOffloadScheduler):
    """The scheduler's side. `tie` gives it the queue that says what goes next."""

    def begin(self) -> None:
        """Set up what vLLM's construction does not."""
        self.queue: PolicyBlockQueue | None = None
        self.counts: Counter[str] = Counter()
        """Blocks handed down: copied (stored), and found below already (kept)."""
        self._wanted = self._in_flight = 0
        self._stuck_at = -1
        """Evictable blocks when nothing could be handed down for a request that waited for it."""
        self._step = self._target_free // 2
        """Blocks that one full step takes (vLLM's estimate is of two)."""

    def tie(self, queue: PolicyBlockQueue) -> None:
        """Let `queue` say what is copied from now on."""
        self.queue = queue

    def ready(self, blocks: int) -> bool:
        """Whether so many blocks can be taken on the GPU, and those of a full step beside them, without losing what has
        no copy yet; if not, copies of what goes next are begun, and the caller asks again in a later step."""
        queue, wanted = self.queue, blocks + self._step
        if queue is None or queue.n_empty >= wanted or (
                not self._in_flight and queue.n_evictable <= max(self._stuck_at, 0)):
            return True
        self._wanted = wanted
        return False

    # ------------------------------------------------------------------ vLLM's interface
    def _prepare_lazy_store_specs(self) -> Any:
        queue, gpu, cpu = self.queue, self._gpu_block_pool, self.cpu_block_pool
        if queue is None or gpu is None:
            return super()._prepare_lazy_store_specs()
        ahead = min(STEPS_AHEAD * self._step, int(LARGEST_SHARE * gpu.num_gpu_blocks))
        had = queue.n_empty
        short = max(ahead, self._wanted) - had - self._in_flight
        going = queue.hand_down(min(short, cpu.get_num_free_blocks())) if short > 0 else []
        self._stuck_at = queue.n_evictable if self._wanted and not going and queue.n_empty == had else -1
        self._wanted = 0
        copies, there = [], []
        for block in going:
            assert block.block_hash is not None  # runs hold cached blocks only
            copy = cpu.cached_block_hash_to_block.get_one_block(block.block_hash)
            if copy is None:
                copies.append(block)
                continue
            there.append(block)
            if copy.ref_cnt == 0:
                cpu.free_block_queue.remove(copy)
                cpu.free_block_queue.append(copy)
        queue.handed_down(there)
        self.counts["kept"] += len(there)
        self.counts["stored"] += len(copies)
        self._in_flight += len(copies)
        for block in copies:
            block.ref_cnt += 1  # the copy reads it
        below = cpu.get_new_blocks(len(copies)) if copies else []
        return [b.block_id for b in copies], [b.block_id for b in below], [], None

    def _process_store_completion(self, gpu_block_ids: list[int], *args: Any, **kwargs: Any) -> None:
        if self.queue is None:
            return super()._process_store_completion(gpu_block_ids, *args, **kwargs)
        self._in_flight -= len(gpu_block_ids)
        with self.queue.copied():
            super()._process_store_completion(gpu_block_ids, *args, **kwargs)

    def _release_transfer_refs(self, transfer: Any) -> None:
        self._in_flight -= len(transfer.gpu_block_ids) if self.queue is not None else 0
        super()._release_transfer_refs(transfer)

    def _cleanup_load_request(self, req_id: str) -> int:
        state = self._reqs_to_load.get(req_id)
        loaded = super()._cleanup_load_request(req_id)
        if loaded and state is not None and self.queue is not None:
            pool = self.cpu_block_pool
            blocks = [b for i in reversed(state.transfer_meta.cpu_block_ids)
                      if (b := pool.blocks[i]).ref_cnt == 0 and b.block_hash is not None]
            for block in blocks:
                pool.free_block_queue.remove(block)
            pool.free_block_queue.prepend_n(blocks)
        return loaded


class LazyOffloadConnector(SimpleCPUOffloadConnector):
    """vLLM's connector with `LazyOffloadManager`."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        vllm_config.kv_transfer_config.kv_connector_extra_config["lazy_offload"] = True
        super().__init__(vllm_config, role, kv_cache_config)
        if self.scheduler_manager is not None:
            self.scheduler_manager.__class__ = LazyOffloadManager  # its pool of blocks is not made a second time
            self.scheduler_manager.begin()  # type: ignore[attr-defined]


def lazy_managers(connector: Any) -> Iterator[LazyOffloadManager]:
    """The managers of this kind in a connector, or in those that it is made of."""
    for part in getattr(connector, "_connectors", None) or [connector]:
        manager = getattr(part, "scheduler_manager", None)
        if isinstance(manager, LazyOffloadManager):
            yield manager

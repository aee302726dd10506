"""The worker's side of vLLM's `OffloadingConnector` on an emulated device: KV copies that take their time on PCIe.

vLLM's own connector decides what is copied, in both directions; here each copy takes its bytes over the link's rate,
one after the other in each direction. Nothing is held. Needs vLLM 0.32 or newer: older ones call workers otherwise.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.emulated import Settings

CONNECTOR = "OffloadingConnector"
SIMPLE, LAZY = "SimpleCPUOffloadConnector", "LazyOffloadConnector"
LAZY_MODULE = "saga_rl.runtime.engine.offload.lazy"


class Link:
    """Copies in one direction. rate: bytes in a real second."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate, self._clock = rate, clock
        self.free_at = 0.0
        self.bytes = 0

    def copy(self, size: int) -> tuple[float, float]:
        """(start, end) of a copy of `size` bytes, real time."""
        start = max(self._clock(), self.free_at)
        self.free_at = start + size / self.rate
        self.bytes += size
        return start, self.free_at


def worker(page_bytes: list[int], rate: float, time_scale: float, clock: Callable[[], float] = time.monotonic,
           sleep: Callable[[float], None] = time.sleep) -> Any:
    """vLLM's `OffloadingWorker`, emulated. page_bytes: of a block, by KV group; rate: bytes in a device's second."""
    from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult

    class Worker(OffloadingWorker):
        def __init__(self) -> None:
            self.out, self.back = (Link(rate * time_scale, clock) for _ in range(2))
            self._flying: dict[int, tuple[float, float, int]] = {}

        def _copy(self, link: Link, job: int, gpu: Any) -> bool:
            size = sum(n * page for n, page in zip(gpu.group_sizes, page_bytes, strict=True))
            start, end = link.copy(size)
            self._flying[job] = end, (end - start) * time_scale, size
            return True

        def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
            return self._copy(self.out, job_id, src_spec)

        def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False) -> bool:
            return self._copy(self.back, job_id, dst_spec)

        def get_finished(self) -> list[Any]:
            now = clock()
            done = [job for job, (end, *_) in self._flying.items() if end <= now]
            return [TransferResult(job_id=job, success=True, transfer_size=size, transfer_time=took)
                    for job in done for _, took, size in (self._flying.pop(job),)]

        def wait(self, job_ids: set[int]) -> None:
            last = max((self._flying[job][0] for job in job_ids if job in self._flying), default=0.0)
            if (left := last - clock()) > 0:
                sleep(left)

    return Worker()


class Copied:
    """The end of a copy, as vLLM asks a device's event for it."""

    def __init__(self, end: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.end, self._clock, self._sleep = end, clock, sleep

    def query(self) -> bool:
        return self._clock() >= self.end

    def synchronize(self) -> None:
        if (left := self.end - self._clock()) > 0:
            self._sleep(left)


def simple_worker(handler: Any, page_bytes: int, rate: float, time_scale: float,
                  clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
    """Let the worker's side of `SimpleCPUOffloadConnector` copy over emulated links. page_bytes: of a block in all."""
    out, back = (Link(rate * time_scale, clock) for _ in range(2))

    class Backend:
        def launch_copy(self, src: Any, dst: Any, *, is_store: bool, event_idx: int, events_list: Any,
                        wait_event: Any = None) -> None:
            _, end = (out if is_store else back).copy(len(src) * page_bytes)
            events_list.append((event_idx, Copied(end, clock, sleep)))

        def shutdown(self) -> None:
            """Nothing runs."""

    def wait_for_save() -> None:  # vLLM's lets the copy wait for the device's stream
        meta = handler._connector_metadata
        if meta is not None and meta.store_gpu_blocks:
            handler._backend.launch_copy(meta.store_gpu_blocks, meta.store_cpu_blocks, is_store=True,
                                         event_idx=meta.store_event, events_list=handler._store_events)

    handler._backend, handler.wait_for_save = Backend(), wait_for_save


class Copies:
    """vLLM's worker-side connector over an emulated link, called as vLLM's model runner calls it."""

    def __init__(self, connector: Any) -> None:
        self.connector = connector

    @staticmethod
    def of(vllm_config: Any, kv_cache_config: Any, settings: Settings) -> Copies | None:
        """The copies of a server with `--kv-offloading-size`; None without. Raises `UserError` for other connectors."""
        transfer = vllm_config.kv_transfer_config
        if transfer is None:
            return None
        check(transfer)
        return Copies.over(vllm_config, kv_cache_config, settings.pcie_bytes_per_s * settings.gpus, settings.time_scale)

    @staticmethod
    def over(vllm_config: Any, kv_cache_config: Any, rate: float, time_scale: float = 1.0,
             clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> Copies:
        """The copies over a link of `rate` bytes in a device's second."""
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole

        connector: Any = KVConnectorFactory.create_connector(config=vllm_config, role=KVConnectorRole.WORKER,
                                                             kv_cache_config=kv_cache_config)
        pages = [len(group.layer_names) * group.kv_cache_spec.page_size_bytes
                 for group in kv_cache_config.kv_cache_groups]
        if getattr(connector, "worker_handler", None) is not None:
            simple_worker(connector.worker_handler, sum(pages), rate, time_scale, clock, sleep)
        else:
            connector.connector_worker.worker = worker(pages, rate, time_scale, clock, sleep)
        return Copies(connector)

    def step(self, scheduler_output: Any) -> Any:
        """Start this step's copies; returns vLLM's `KVConnectorOutput`: what ended since the last step."""
        from vllm.v1.outputs import KVConnectorOutput

        c, meta = self.connector, scheduler_output.kv_connector_metadata
        c.handle_preemptions(meta)
        c.bind_connector_metadata(meta)
        c.start_load_kv(None)
        c.wait_for_save()
        sent, received = c.get_finished(scheduler_output.finished_req_ids)
        out = KVConnectorOutput(finished_sending=sent, finished_recving=received,
                                invalid_block_ids=c.get_block_ids_with_load_errors(),
                                kv_connector_stats=c.get_kv_connector_stats(),
                                kv_connector_worker_meta=c.build_connector_worker_meta())
        c.clear_connector_metadata()
        return out

    def shutdown(self) -> None:
        self.connector.shutdown()


def check(transfer: Any) -> None:
    """`UserError` for a connector that cannot be emulated."""
    if transfer.kv_connector in (SIMPLE, LAZY):
        return
    if transfer.kv_connector != CONNECTOR:
        raise UserError("--kv-transfer-config", f"asks for {transfer.kv_connector}, which cannot be emulated",
                        f"use {CONNECTOR} (--kv-offloading-size)")
    try:
        base: Any = importlib.import_module("vllm.v1.kv_offload.base")
    except ImportError:
        base = None
    if not hasattr(getattr(base, "OffloadingWorker", None), "submit_store"):
        raise UserError("--kv-offloading-size", "is emulated from vLLM 0.32 on", "leave it out, or install vLLM 0.32")

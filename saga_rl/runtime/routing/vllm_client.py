"""What of vLLM's data-parallel client the care for engines relies on, and what it makes of vLLM's messages."""

from __future__ import annotations

from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.versions import require_method
from saga_rl.runtime.routing.shared_table import opened

MINE = "saga_engines"
"""Attribute of a client, and of its resources, that holds its `Engines`."""


def check_hooks() -> None:
    """`UserError` if a method that is replaced or called does not exist or takes other parameters."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient
    from vllm.v1.engine.utils import CoreEngineProcManager

    for name, parameters in (
        ("start_engine_core_monitor", ("self",)), ("add_request_async", ("request",)),
        ("abort_requests_async", ("request_ids",)), ("_call_utility_async", ("method", "engine")),
        ("call_utility_async", ("method",)), ("process_engine_outputs", ("outputs",)),
        ("get_core_engine_for_request", ("request",)), ("_send_input", ("request_type", "request", "engine")),
    ):
        require_method(DPLBAsyncMPClient, name, parameters)
    require_method(BackgroundResources, "validate_alive", ("frames",))
    require_method(CoreEngineProcManager, "monitor_engine_liveness", ())
    for owner, fields in ((EngineCoreOutput, ("request_id", "new_token_ids", "finish_reason")),
                          (EngineCoreOutputs, ("engine_index", "outputs", "finished_requests", "scheduler_stats"))):
        for field in fields:
            if field not in owner.__struct_fields__:
                raise UserError(f"vLLM's {owner.__name__}", f"lacks {field}", "install a tested vLLM")
    if not hasattr(FinishReason, "ERROR"):
        raise UserError("vLLM's FinishReason", "lacks ERROR", "install a tested vLLM")


def unfit(client: Any) -> str | None:
    """Why an engine of this client cannot be taken out, None if it can."""
    from vllm.v1.engine.utils import CoreEngineProcManager

    manager = client.resources.engine_manager
    if client.client_count > 1:
        table = opened()
        if table is None or not table.watched[0]:
            return "there are several API servers, and nobody watches the engines for them"
        if table.engines != len(client.core_engines):
            return "not all engines are processes of this machine"
    elif not isinstance(manager, CoreEngineProcManager):
        return "the engines are not processes of this server"
    elif len(manager.processes) != len(client.core_engines):
        return "not all engines are processes of this machine"
    if len(client.core_engines) < 2:
        return "there is one engine"
    return unlike(client.vllm_config)


def unlike(config: Any) -> str | None:
    """What of the configuration keeps an engine from being taken out, None if nothing does."""
    if config.model_config.is_moe:
        return "the engines of a mixture-of-experts model run in step"
    if getattr(config.parallel_config, "enable_elastic_ep", False):
        return "engines come and go by elastic expert parallelism"
    if getattr(config.parallel_config, "enable_fault_tolerance", False):
        return "vLLM's own fault tolerance is on"
    return None


def error_outputs(w: int, names: list[str]) -> Any:
    """Outputs as engine w would send them for requests that failed inside it."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    return EngineCoreOutputs(engine_index=w, outputs=[
        EngineCoreOutput(request_id=name, new_token_ids=[], finish_reason=FinishReason.ERROR) for name in names])

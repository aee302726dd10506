"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`), and what it then takes hold of.

`register` changes nothing that serves: it wraps the making of vLLM's configuration, and gives `EngineCore` one method
that nobody calls. Only when a configuration names our scheduler class does `configured` set the hooks of that process
(placement, engines, the HTTP app). So `vllm serve` with our class gets what `saga-rl serve` gets, and a server without
it is untouched. Checked at start: `versions`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.ours import is_ours

log = logging.getLogger("vllm.saga_rl")
_CORE, _ARGS = "vllm.v1.engine.core", "vllm.engine.arg_utils"
_MARK, _SEEN = "saga_rl", "saga_seen"


def _not_of_ours(record: logging.LogRecord) -> bool:
    """vLLM says of every scheduler class that is not its own that it may be slow; ours is made of vLLM's own two."""
    return not ("custom scheduler class" in str(record.msg) and "saga_rl." in str(record.args))


def register() -> None:
    """Called by vLLM, perhaps more than once in a process. Never raises."""
    try:
        logging.getLogger("vllm.config.scheduler").addFilter(_not_of_ours)
        if _CORE in sys.modules and hasattr(sys.modules[_CORE], "EngineCore"):
            _hook_engine(sys.modules[_CORE])
        if _ARGS in sys.modules:
            _watch_configuration(sys.modules[_ARGS].EngineArgs)
    except Exception:
        log.exception("saga-rl: the plugin cannot take hold of this vLLM; it is left as it is")


def _watch_configuration(engine_args: Any) -> None:
    stock = engine_args.create_engine_config
    if getattr(stock, _MARK, False):
        return

    @functools.wraps(stock)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = stock(self, *args, **kwargs)
        if wants_saga(config):
            configured(config, int(getattr(self, "_api_process_count", 1)), int(getattr(self, "_api_process_rank", 0)))
        return config

    setattr(create_engine_config, _MARK, True)
    engine_args.create_engine_config = create_engine_config


def wants_saga(vllm_config: Any) -> bool:
    """Whether the configuration names us at all: our scheduler class, or our key."""
    given = getattr(vllm_config, "additional_config", None)
    return is_ours(vllm_config) or (isinstance(given, dict) and "saga" in given)


def configured(vllm_config: Any, servers: int = 1, rank: int = 0) -> None:
    """A configuration of this process wants us: check everything that a person can get wrong, then set the hooks.

    servers: API servers that share the engines; rank: this one's number, -1 = their parent, which serves nothing.
    Raises `UserError`, which ends the start of the server with one message. The policy `stock` takes our scheduler
    class out.
    """
    from saga_rl.runtime.config import versions
    from saga_rl.runtime.launch import startup
    from saga_rl.runtime.server.http import anthropic_hook

    config = startup.checked(vllm_config)
    if config is None:
        return
    versions.check_plugin_hooks()
    anthropic_hook.check()
    install()
    if rank == -1:
        from saga_rl.runtime.routing import parent

        parent.begin(vllm_config, servers)
    if rank == -1 or servers == 1:
        startup.announce(vllm_config, config)


@functools.cache
def install() -> None:
    """Set the hooks of this process, once. Each looks at its client's or app's own configuration when it is called."""
    from saga_rl.runtime.config import versions
    _hook_engine(importlib.import_module(_CORE))
    versions.check_router_hooks()
    _hook_placement()
    _hook_app()


def _hook_engine(core: Any) -> None:
    from saga_rl.runtime.engine import commands

    commands.attach(core.EngineCore)
    if hasattr(core.EngineCoreProc, "_handle_shutdown"):  # older versions stop at once
        commands.end_in_time(core.EngineCoreProc)


def _hook_placement() -> None:
    from saga_rl.runtime.routing import engine_hooks
    from saga_rl.runtime.routing.client_hooks import hook_client, placement_of, places
    from saga_rl.runtime.routing.stop_strings import hook_stops

    hook_client(placement_of)
    engine_hooks.install(placement_of)
    hook_stops(lambda client: placement_of(client) if places(client) else None)


def _hook_app() -> None:
    """At an app's first call (uvicorn's lifespan message) vLLM's state is in place and the event loop runs. That is a
    seam of the web framework; vLLM's own way to its app has moved in each release."""
    from fastapi import FastAPI

    stock: Any = FastAPI.__call__

    @functools.wraps(stock)
    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if _SEEN not in self.__dict__:
            self.__dict__[_SEEN] = True
            _attach(self)
        await stock(self, scope, receive, send)

    FastAPI.__call__ = call  # type: ignore[method-assign]


def _attach(app: Any) -> None:
    try:
        if is_ours(getattr(app.state, "vllm_config", None)) and getattr(app.state, "engine_client", None) is not None:
            from saga_rl.runtime.server.app import attach

            attach(app)
    except Exception:
        log.exception("saga-rl: metrics and admin routes are missing from this server; vLLM serves on")


def require_platform() -> None:
    """`UserError` where `VLLM_PLUGINS` keeps vLLM from loading the emulated device."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "saga_rl_emulate" not in allowed.split(","):
        raise UserError("VLLM_PLUGINS", f"is {allowed!r} and leaves saga_rl_emulate out", "add it, or unset it")


def require_loaded() -> None:
    """`UserError` where `VLLM_PLUGINS` keeps vLLM from loading us."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "saga_rl" not in allowed.split(","):
        raise UserError("VLLM_PLUGINS", f"is {allowed!r} and leaves saga_rl out", "add saga_rl to it, or unset it")

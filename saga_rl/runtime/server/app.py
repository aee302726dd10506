"""What is added to vLLM's HTTP app when our scheduler serves: admin routes, metrics, and the middleware that knows
workflows. Called once an app, in its event loop, before its first request."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
from typing import Any

from saga_rl.runtime.config.settings import read_config
from saga_rl.runtime.routing import client_hooks
from saga_rl.runtime.server import control, events, stopping
from saga_rl.runtime.server.admin import Operator, routes
from saga_rl.runtime.server.poller import Poller
from saga_rl.runtime.server.prometheus import Collector

log = logging.getLogger("vllm.saga_rl")
MIDDLEWARE = "saga_rl.runtime.server.http.middleware"


def attach(app: Any) -> None:
    """Add ours to `app` (FastAPI, with vLLM's `engine_client`, `vllm_config` and `args` in its state)."""
    state = app.state
    config = read_config(state.vllm_config.additional_config)
    events.enable(config.events)
    client = control.client_of(state.engine_client)
    placement = client_hooks.placement_of(client) if client_hooks.places(client) else None
    poller = Poller(state.engine_client, config.poll_s, placement)
    operator = Operator(state.engine_client, config, poller, placement)
    poller.on_answers = operator.follow
    state.saga = operator
    stopping.prepare(getattr(state, "server", None), poller.quiet)
    app.router.routes[:0] = routes(operator)
    _middleware(app)
    _metrics(app, Collector(poller, config.metrics_tenants, tuple(config.kv_floors),
                             lambda: getattr(state, "saga_http", {})))
    asyncio.get_running_loop()  # RuntimeError where nothing would run the poller
    _take_over(state, client)
    poller.start()


def _take_over(state: Any, client: Any) -> None:
    """An API server that died accepts no connections any more; vLLM's servers leave a connection to the one with the
    fewest, and a dead one would stay that for ever."""
    mine = getattr(client, "__dict__", {}).get("saga_engines")
    loads = (getattr(getattr(state, "server", None), "peer_loads", None) or (None,))[0]
    if mine is not None and loads is not None:
        mine.on_server_lost = lambda k: loads.__setitem__(k, 2**31 - 1)


def api_keys(args: Any) -> list[str]:
    """The keys that vLLM's own server accepts: `--api-key`, else VLLM_API_KEY; empty if there is none."""
    given = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    return [key for key in ([given] if isinstance(given, str) else given) if key]


def _middleware(app: Any) -> None:
    """Innermost, so that what vLLM's authentication refuses is never read by us. The stack is built anew: vLLM may have
    built it when it made the app."""
    if importlib.util.find_spec("saga_rl.runtime.server.http") is None or importlib.util.find_spec(MIDDLEWARE) is None:
        return
    from starlette.middleware import Middleware

    app.user_middleware.append(Middleware(importlib.import_module(MIDDLEWARE).SagaMiddleware))
    app.middleware_stack = app.build_middleware_stack()


def _metrics(app: Any, collector: Collector) -> None:
    """Ours beside vLLM's. With several API servers vLLM's registry is made of files, so there a route ahead of vLLM's
    shows both."""
    from prometheus_client import REGISTRY, make_asgi_app
    from starlette.routing import Mount
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    registry = get_prometheus_registry()
    registry.register(collector)
    if registry is not REGISTRY:
        mount = Mount("/metrics", make_asgi_app(registry=registry))
        mount.path_regex = re.compile("^/metrics(?P<path>.*)$")  # without a redirect to /metrics/
        app.router.routes.insert(0, mount)

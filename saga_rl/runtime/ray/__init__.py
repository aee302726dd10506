"""Ray Serve LLM: `saga_rl.runtime.ray.SagaRequestRouter` places requests over a deployment's replicas by our policy.

`requests` reads what a request says of itself, `replicas` chooses, `request_router` is what Ray calls. Ray is imported
when the class is asked for. May import every other part but `launch` and `emulate`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "SagaRequestRouter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from saga_rl.runtime.ray.request_router import SagaRequestRouter

    return SagaRequestRouter

"""What vLLM asks at every start (entry point `vllm.platform_plugins`): is this machine's device emulated?"""

from __future__ import annotations

import os

PLATFORM = "saga_rl.runtime.emulate.platform.EmulatedPlatform"


def platform() -> str | None:
    """The platform's qualified name where `SAGA_RL_EMULATE` is set, else None: vLLM is as if we were not there."""
    from saga_rl.runtime.emulate.settings import VARIABLE

    return PLATFORM if os.environ.get(VARIABLE, "").strip() else None

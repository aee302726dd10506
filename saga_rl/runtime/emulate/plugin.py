"""What vLLM asks at every start (entry point `vllm.platform_plugins`): is this machine's device emulated?

Imports nothing heavy: it runs in every process of every vLLM beside which saga-rl is installed.
"""

from __future__ import annotations

import os

from saga_rl.runtime.config.ours import EMULATE

PLATFORM = "saga_rl.runtime.emulate.platform.EmulatedPlatform"


def platform() -> str | None:
    """The platform's qualified name where `SAGA_RL_EMULATE` is set, else None: vLLM is as if we were not there."""
    return PLATFORM if os.environ.get(EMULATE, "").strip() else None

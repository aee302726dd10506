"""What vLLM asks at every start (entry point `vllm.platform_plugins`): is this machine's device emulated?

Imports nothing: it runs in every process of every vLLM beside which saga-rl is installed.
"""

from __future__ import annotations

import os

VARIABLE = "SAGA_RL_EMULATE"
"""Environment variable that says what is emulated; see `settings`."""
PLATFORM = "saga_rl.runtime.emulate.platform.EmulatedPlatform"


def platform() -> str | None:
    """The platform's qualified name where `SAGA_RL_EMULATE` is set, else None: vLLM is as if we were not there."""
    return PLATFORM if os.environ.get(VARIABLE, "").strip() else None

"""`saga-rl serve --lazy-offload`: the CPU tier of `--kv-offloading-size`, holding what the GPU is about to lose."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from saga_rl.errors import UserError
from saga_rl.runtime.config import versions
from saga_rl.runtime.emulate.offload import LAZY, LAZY_MODULE
from saga_rl.runtime.launch.flags import given

FLAG, SIZE, TRANSFER = "--lazy-offload", "--kv-offloading-size", "--kv-transfer-config"
OLDEST = (0, 32)
"""First vLLM release with the connector that it is made of."""


def transfer_config(tier_bytes: int) -> str:
    """The value of vLLM's --kv-transfer-config for a tier of so many bytes beside one engine."""
    return json.dumps({"kv_connector": LAZY, "kv_connector_module_path": LAZY_MODULE, "kv_role": "kv_both",
                       "kv_connector_extra_config": {"cpu_bytes_to_use": tier_bytes}})


def lazily(flags: Sequence[str], stock: bool) -> list[str]:
    """vLLM's flags with the connector in the place of --kv-offloading-size. Raises `UserError` where that cannot be."""
    if stock:
        raise UserError(FLAG, "copies what our eviction policy would drop next, and --policy stock has none",
                        "leave one of the two out")
    size = given(flags, SIZE)
    if size is None:
        raise UserError(FLAG, "says how CPU memory is used, and there is none", f"add {SIZE} GIB")
    if given(flags, TRANSFER) is not None:
        raise UserError(FLAG, f"is given beside {TRANSFER}, which names a connector of its own", "leave one out")
    if given(flags, "--kv-offloading-backend") not in (None, "native"):
        raise UserError(FLAG, "uses vLLM's own memory, and --kv-offloading-backend names another", "leave one out")
    try:
        gib = float(size)
    except ValueError:
        gib = math.nan
    if not 0 < gib < math.inf:
        raise UserError(SIZE, f"is {size or 'empty'}", "give the GiB of CPU memory for KV")
    if not versions.at_least(*OLDEST):
        raise UserError(FLAG, f"needs vLLM {OLDEST[0]}.{OLDEST[1]} or newer", f"leave it out, or use {SIZE} alone")
    kept, skip = [], False
    for flag in flags:
        if skip or flag == SIZE:
            skip = not skip
        elif not flag.startswith(f"{SIZE}="):
            kept.append(flag)
    return [*kept, TRANSFER, transfer_config(int(gib * (1 << 30)))]

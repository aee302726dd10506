"""What is emulated, as one environment variable says it to every process of a server: `SAGA_RL_EMULATE`.

The value is a profile's name or file, or a JSON object of the fields of `Settings`. No variable: no emulation, and
nothing of this package is active.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.runtime.config.ours import EMULATE
from saga_rl.sim.cost.models import model_shape
from saga_rl.sim.cost.profile import CostProfile, load_profile

PCIE_BYTES_PER_S = 25e9
"""Host memory to one GPU and back, each way at once: what PCIe 4 x16 gives in practice."""
MOST_SCALE = 1000.0


@dataclass(frozen=True)
class Settings:
    """One emulated device, the same for every engine of a server."""

    profile: str
    """A profile that ships, or a JSON file (`saga-rl profile list`)."""
    time_scale: float = 1.0
    """Seconds of the device that pass in one real second."""
    kv_tokens: int | None = None
    """KV pool, tokens; None: the profile's."""
    pcie_bytes_per_s: float = PCIE_BYTES_PER_S
    """Rate of KV copies to host memory, and of copies back, for each GPU of the profile."""

    def value(self) -> str:
        """The environment variable's value."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None})

    @property
    def cost(self) -> CostProfile:
        """The profile. Raises `UserError`."""
        return load_profile(self.profile)

    @property
    def gpus(self) -> int:
        """GPUs that the profile was fitted for; they are emulated as one device."""
        return int(self.cost.provenance.get("tp", 1))

    @property
    def link_tokens_per_s(self) -> float:
        """KV tokens that are copied to host memory, or back, in a second. Raises `UserError` for an unknown model."""
        shape = model_shape(str(self.cost.provenance["model"]))
        return self.pcie_bytes_per_s * self.gpus / shape.kv_bytes_per_token()

    @property
    def gpu(self) -> str:
        """The GPU's name, `unknown` where the profile does not say."""
        return str(self.cost.provenance.get("gpu", "unknown"))

    def described(self) -> dict[str, Any]:
        """What results and status pages say of the device."""
        cost = self.cost
        return {"device": "emulated", "profile": cost.name, "profile_kind": cost.provenance.get("kind", "unknown"),
                "gpu": self.gpu, "gpus": self.gpus, "time_scale": self.time_scale,
                "kv_tokens": self.kv_tokens or cost.kv_tokens, "pcie_bytes_per_s": self.pcie_bytes_per_s * self.gpus}


def checked(settings: Settings) -> Settings:
    """`settings` with a profile file's path made absolute. Raises `UserError` for anything that cannot be emulated."""
    for name, value, low in (("time_scale", settings.time_scale, 0.0), ("pcie_bytes_per_s", settings.pcie_bytes_per_s,
                                                                         0.0)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= low:
            raise UserError(f"--{name.replace('_', '-')}", f"is {value!r}", "give a number above 0")
    if settings.time_scale > MOST_SCALE:
        raise UserError("--time-scale", f"is {settings.time_scale:g}", f"give at most {MOST_SCALE:g}: vLLM's own work "
                        "does not shrink with the device's seconds")
    if settings.kv_tokens is not None and (type(settings.kv_tokens) is not int or settings.kv_tokens < 1):
        raise UserError("--kv-tokens", f"is {settings.kv_tokens!r}", "give a whole number above 0")
    load_profile(settings.profile)
    if settings.profile.endswith(".json"):
        return Settings(**asdict(settings) | {"profile": str(Path(settings.profile).resolve())})
    return settings


def read(text: str) -> Settings:
    """The settings in a value of the variable. Raises `UserError`."""
    if not text.lstrip().startswith("{"):
        return checked(Settings(text.strip()))
    try:
        raw = json.loads(text)
    except ValueError as e:
        raise UserError(EMULATE, f"is not JSON ({e})", "give a profile's name, or a JSON object") from None
    known = {f.name for f in fields(Settings)}
    for key in raw:
        if key not in known:
            raise unknown_name(f"key of {EMULATE}", key, known)
    if not isinstance(raw.get("profile"), str):
        raise UserError(EMULATE, "names no profile", 'write {"profile": "NAME"}; `saga-rl profile list` has the names')
    return checked(Settings(**raw))


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings | None:
    """The settings of this process; None without the variable. Raises `UserError`."""
    text = environ.get(EMULATE, "").strip()
    return read(text) if text else None


@cache
def active() -> Settings | None:
    """`from_environment`, read once a process."""
    return from_environment()


def activate(settings: Settings) -> Settings:
    """Emulate in this process and in all that it starts. Call it before vLLM is imported."""
    settings = checked(settings)
    os.environ[EMULATE] = settings.value()
    active.cache_clear()
    return settings

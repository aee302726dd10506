"""What is measured: everything that a run depends on, besides its arm and its repeat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.bench.arms import INFINITE, Arm
from saga_rl.policies.parameters import EXPIRY_S

BLOCK_TOKENS = 16
VIRTUAL_FLAGS = ("--block-size", "--max-num-seqs", "--max-num-batched-tokens")
"""vLLM's flags that mean something without a server."""


@dataclass(frozen=True)
class Settings:
    """One measurement. Seconds are the device's: with a time scale, so many of them pass in a real one."""

    arms: tuple[Arm, ...]
    traces: tuple[str, ...]
    emulate: str | None = None
    """Cost profile of the emulated devices; None: real ones."""
    model: str | None = None
    """Model name or folder; None: the emulated profile's own shape."""
    profile: str | None = None
    """Cost profile of real devices: `--load` and Program scheduling need one."""
    engines: int = 1
    kv_tokens: int | None = None
    """Pool of one engine; None: the server's own."""
    cpu_tokens: int = 0
    window: int | None = None
    concurrency: int | None = None
    load: float | None = None
    """Live demand for KV over the pool of all engines, instead of a concurrency."""
    repeats: int = 3
    sessions: int | None = None
    """Drawn for each repeat; None: all."""
    steps: tuple[int, int] | None = None
    longest_wait_s: float | None = None
    drop_long: bool = False
    ends: bool = False
    time_scale: float = 1.0
    expiry_s: float = EXPIRY_S
    seed: int = 0
    agentx: bool = False
    quiet_s: float = 10.0
    flags: tuple[str, ...] = ()
    """vLLM's, for every server."""
    virtual: bool = False
    """In virtual time, without servers (`bench.virtual`)."""
    lazy: bool = False
    """Under our policies the CPU tier holds what the GPU is about to lose (`runtime.engine.offload.lazy`)."""

    def __post_init__(self) -> None:
        for option, value, least in (("--engines", self.engines, 1), ("--repeats", self.repeats, 1),
                                     ("--cpu-tokens", self.cpu_tokens, 0), ("--concurrency", self.concurrency, 1),
                                     ("--sessions", self.sessions, 1), ("--kv-tokens", self.kv_tokens, 1),
                                     ("--window", self.window, 1024)):
            if value is not None and value < least:
                raise UserError(option, f"is {value}", f"give {least} or more")
        for option, number in (("--load", self.load), ("--time-scale", self.time_scale),
                               ("--expiry-s", self.expiry_s), ("--longest-wait-s", self.longest_wait_s)):
            if number is not None and not 0 < number < float("inf"):
                raise UserError(option, f"is {number}", "give a number above 0")
        if self.lazy and not self.cpu_tokens:
            raise UserError("--lazy-offload", "says how the CPU tier is used, and there is none",
                            "give --cpu-tokens N, or leave it out")
        if (self.concurrency is None) == (self.load is None):
            raise UserError("--concurrency or --load", "is needed, and not both",
                            "say how many sessions are alive at once, or how far they oversubscribe the pools")
        if self.emulate is None and self.model is None:
            raise UserError("--emulate or --model", "is missing", "name a cost profile (`saga-rl profile list`) to "
                            "serve without a GPU, or a model to serve on real devices")
        if self.emulate is None and self.time_scale != 1:
            raise UserError("--time-scale", "is given without --emulate", "leave it out: real devices have their own")
        if self.emulate is None and self.kv_tokens is None and any(a.name == INFINITE for a in self.arms):
            raise UserError("--arms", "names infinite, and a real device's pool cannot hold more than it has",
                            "give --kv-tokens N, a part of the real pool, or leave infinite out")

        if self.virtual:
            self._check_virtual()

    def _check_virtual(self) -> None:
        for bad, option, cause, mend in (
                (self.emulate is None, "--virtual", "is given without --emulate", "name a cost profile"),
                (self.time_scale != 1, "--time-scale", "is given with --virtual", "leave it out: no clock runs"),
                (self.agentx, "--agentx", "is given with --virtual", "leave one of them out: it wants servers"),
                (any(a.router == "program" for a in self.arms), "--arms", "names router-program, a program that keeps "
                 "real time", "leave it out, or --virtual")):
            if bad:
                raise UserError(option, cause, mend)
        for flag in self.flags:
            if flag.startswith("--") and flag.partition("=")[0] not in VIRTUAL_FLAGS:
                raise UserError(flag, "cannot be played with --virtual", f"choose from {', '.join(VIRTUAL_FLAGS)}, or "
                                "leave out --virtual")

    @property
    def costs(self) -> str | None:
        """The cost profile of the devices, real or emulated."""
        return self.emulate or self.profile

    @property
    def block_tokens(self) -> int:
        return int(self.flag("--block-size") or BLOCK_TOKENS)

    def flag(self, name: str) -> str | None:
        """The value of one of vLLM's flags, if it is given."""
        for i, flag in enumerate(self.flags):
            if flag == name and i + 1 < len(self.flags):
                return self.flags[i + 1]
            if flag.startswith(name + "="):
                return flag.partition("=")[2]
        return None

    def identity(self) -> dict[str, Any]:
        """What runs of one journal have in common. Arms and repeats may be added to later."""
        plain = asdict(self)
        for key in ("arms", "repeats", "traces"):
            del plain[key]
        if not self.virtual:
            del plain["virtual"]  # folders of earlier versions do not say it
        return plain | {"model": self.model and (str(Path(self.model).resolve()) if Path(self.model).is_dir()
                                                 else self.model)}

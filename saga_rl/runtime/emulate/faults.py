"""Faults of an emulated device, on request: it dies, hangs, stalls or slows down, at a chosen token of a chosen answer.

A request asks for one by `vllm_xargs: {"saga_fault": "KIND[:SECONDS or FACTOR][@TOKEN]"}`: `die` ends the engine's
process at once, `hang` never finishes a batch again, `stall:5` takes five more seconds of the device for the next
one, `slow:3` takes three times as long from then on (`slow:1` mends it). `@TOKEN` waits for that token of the answer,
counted from 1. `#ENGINE` lets it happen on that engine alone: a request that is sent again to another one does not
break that, too. Nothing else than an emulated device reads the field.
"""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass

log = logging.getLogger("vllm.saga_rl")
FIELD = "saga_fault"
KINDS = ("die", "hang", "stall", "slow")
DIED = 70
"""Exit status of the process of a device that died."""
_FORM = re.compile(r"(?P<kind>[a-z]+)(:(?P<amount>[0-9]+([.][0-9]+)?))?(@(?P<token>[0-9]+))?(#(?P<engine>[0-9]+))?")


@dataclass(frozen=True)
class Fault:
    """One fault: what happens, how much of it, at which token of the answer (1 = the first), on which engine (None: on
    any)."""

    kind: str
    amount: float = math.nan
    token: int = 1
    engine: int | None = None


def parse(text: str) -> Fault:
    """The fault that `text` asks for. Raises `ValueError` with the cause."""
    found = _FORM.fullmatch(text)
    if found is None or found["kind"] not in KINDS:
        raise ValueError(f"{text!r} is no fault; write one of {', '.join(KINDS)}, then :AMOUNT, @TOKEN and #ENGINE")
    amount = float(found["amount"]) if found["amount"] else math.nan
    if found["kind"] in ("stall", "slow") and not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"{text!r} lacks an amount above 0, such as {found['kind']}:3")
    engine = None if found["engine"] is None else int(found["engine"])
    return Fault(found["kind"], amount, int(found["token"] or 1), engine)


class Faults:
    """What ails a device now."""

    def __init__(self) -> None:
        self.slowness = 1.0
        """How many times as long a batch takes."""
        self._stall_s = 0.0

    def happen(self, fault: Fault) -> None:
        """Let it happen. `die` does not return."""
        log.warning("saga-rl: the emulated device %ss on request", fault.kind)
        if fault.kind == "die":
            os._exit(DIED)
        if fault.kind == "slow":
            self.slowness = fault.amount
        else:
            self._stall_s += math.inf if fault.kind == "hang" else fault.amount

    def take_stall(self) -> float:
        """Seconds of the device by which the next batch starts late; none after that."""
        out, self._stall_s = self._stall_s, 0.0 if math.isfinite(self._stall_s) else math.inf
        return out

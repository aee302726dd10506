"""The arms: ways of serving that an operator can choose between, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_rl.errors import UserError, unknown_name

STOCK, TIER, LAZY_TIER, INFINITE, OURS = "stock", "stock+tier", "stock+lazy", "infinite", "ours"
ROUTED = "routed"


@dataclass(frozen=True)
class Arm:
    """One way of serving. policy: what `saga-rl serve --policy` gets; host: the servers that it is played on, shared by
    the arms that name the same."""

    name: str
    policy: str
    host: str
    says: str
    router: str = ""
    """`hash` or `program`: vLLM Router in front of servers of one engine each."""

    @property
    def never_tiered(self) -> bool:
        """Whether the arm has no CPU tier even where the others have one."""
        return self.name in (STOCK, INFINITE)

    @property
    def priority(self) -> bool:
        """Whether requests carry the number of their session's start as vLLM's priority."""
        return self.name == "priority"


ARMS: dict[str, Arm] = {a.name: a for a in (
    Arm(STOCK, "stock", STOCK, "vLLM as it is"),
    Arm(TIER, "stock", TIER, "vLLM with its own KV offloading to CPU memory"),
    Arm(LAZY_TIER, "stock", LAZY_TIER, "vLLM with its other way of offloading, SimpleCPUOffloadConnector, lazy"),
    Arm("sticky", "lru", OURS, "our router: a session stays on its engine; vLLM's eviction and order"),
    Arm("priority", "stock", "priority", "vLLM --scheduling-policy priority: older sessions first"),
    Arm("router", "stock", ROUTED, "vLLM Router, consistent hash by session", router="hash"),
    Arm("router-program", "stock", ROUTED, "vLLM Router, Program scheduling calibrated from the cost profile",
        router="program"),
    Arm("saga", "saga", OURS, "the SAGA paper's policy"),
    Arm("saga+", "saga+", OURS, "the strongest rules found by hand where ends are announced"),
    Arm("likely", "likely", OURS, "rules that keep room for older sessions, whatever it costs; ends not announced"),
    Arm("auto", "auto", OURS, "the default: the same as far as waiting pays, and with memory below the GPU"),
    Arm(INFINITE, "lru", INFINITE, "sticky, with a pool that holds everything: what memory costs at all"),
)}


def resolve(name: str) -> Arm:
    """The arm of that name; a folder is a checkpoint, whose arm is named by its path. Raises `UserError`."""
    if name in ARMS:
        return ARMS[name]
    if Path(name).is_dir():
        from saga_rl.policies.learned.checkpoint import load_parts

        load_parts(name)
        return Arm(name, str(Path(name).resolve()), OURS, "a checkpoint")
    raise unknown_name("arm", name, [*ARMS, "a checkpoint's folder"])


def chosen(names: str, tier: bool, virtual: bool = False) -> tuple[Arm, ...]:
    """The arms in a comma-separated list, in its order; empty: all that apply. Raises `UserError`."""
    wanted = [n.strip() for n in names.split(",") if n.strip()] or [
        n for n, arm in ARMS.items()
        if (tier or n not in (TIER, LAZY_TIER)) and not (virtual and arm.router == "program")]
    arms = tuple(resolve(n) for n in dict.fromkeys(wanted))
    if STOCK not in wanted or len(arms) < 2:
        raise UserError("--arms", "lacks stock or an arm to compare with it", "name stock and at least one more")
    for name in (TIER, LAZY_TIER) if not tier else ():
        if name in wanted:
            raise UserError("--arms", f"names {name}, and there is no tier", "give --cpu-tokens N, or leave it out")
    return arms


def weights(arms: Sequence[Arm]) -> dict[str, str]:
    """SHA-256 of the weights of the arms that are checkpoints."""
    from saga_rl.policies.learned.checkpoint import digest, load_parts

    return {a.name: digest(load_parts(a.policy)) for a in arms if a.name not in ARMS}

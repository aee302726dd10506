"""The configuration that travels to every engine as `additional_config["saga"]`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.base import DECISIONS, PolicySet
from saga_rl.policies.constraints import MOST_FLOORS, Constraints
from saga_rl.policies.parameters import DEFAULT_PRESET, EXPIRY_S
from saga_rl.policies.presets import PRESETS, from_specs, preset, preset_names

STOCK = "stock"
KEY = "saga"
MOST_TENANTS = 512
CHECKS = ("off", "log", "raise")


@dataclass(frozen=True)
class SagaConfig:
    """What a person may set."""

    policy: str | dict[str, str] = DEFAULT_PRESET
    """A preset, a checkpoint's folder, or specs by decision; decisions left out are the preset `lru`'s."""
    record: str | None = None
    """The Trace file to write; engines keep their journals in a folder beside it."""
    record_key: str = ""
    """Secret of this recording: block hashes are salted with it, so that a trace gives no prompt away."""
    record_file_mb: float = 256.0
    record_file_s: float = 3600.0
    """A journal of the recording is followed by another one after so much or so long."""
    statistics: str | None = None
    """Folder in which each engine keeps what it learned in service over restarts."""
    expiry_s: float = EXPIRY_S
    """A chain that nobody heard of for so long is presumed to have ended."""
    budget_s: float = 0.02
    """A policy whose one decision takes longer is replaced by its fallback, see `saga_rl.policies.learned.guard`."""
    metrics: str | None = None
    """Folder for each engine's counters (JSON), written every `metrics_s` seconds."""
    metrics_s: float = 30.0
    poll_s: float = 5.0
    """How often each API server asks its engines for their numbers, for /metrics and /saga/status."""
    metrics_tenants: int = 50
    """Tenants that have labels of their own on /metrics; all others share `other`."""
    events: bool = False
    """Structured logs: one JSON line an event on standard error (`runtime.server.events`)."""
    prefill_tokens_per_s: float | None = None
    """How fast an engine works off its queue, for placement; None: measured as it serves (an emulated device's profile
    says it)."""
    service_gap_tokens: float | None = None
    """Constraints between tenants (`saga_rl.policies.constraints`): how far service may lie apart, None = any."""
    kv_floors: dict[str, float] = field(default_factory=dict)
    """Share of each engine's KV by tenant that others leave alone; "*" = every tenant not named."""
    afs_preempt_s: float | None = None
    """A request that waited for longer makes one of a tenant with a lower Agent Fair Share yield; None = never."""
    preempt_by_policy: bool = False
    """Preempt the running request that the ordering policy puts last instead of the one scheduled last (vLLM's choice,
    and the simulator's). With the ordering `fcfs` it is vLLM's either way."""
    starve_s: float = 600.0
    """A request that waited for longer goes ahead of the ordering policy's choice, longest wait first, and is not asked
    of the admission policy any more: it starts when it fits. Constraints between tenants stand above this."""
    hung_s: float | None = 300.0
    """With several engines, one that owes answers and has said nothing for so long (real seconds) is ended, and its
    requests go to the others; None = never."""
    admin_keys: list[str] = field(default_factory=list)
    """SHA-256 (hex) of the keys that open `/saga/`; those in `SAGA_RL_ADMIN_KEY` do, too."""
    policy_root: str | None = None
    """Folder below which `/saga/policy` may name checkpoints; None: presets and specs only."""
    check: str = "off"
    """Walk all blocks, rows and counters after each step (`runtime.engine.invariants`): "off", "log" or "raise"."""
    allow_untested: bool = False

    @property
    def constraints(self) -> Constraints:
        """`UserError` for values out of range."""
        gap, wait = self.service_gap_tokens, self.afs_preempt_s
        return Constraints(math.inf if gap is None else gap, self.kv_floors, math.inf if wait is None else wait)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def over(flags: SagaConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of the user's (`own`) says, but for what the command line's `flags` set otherwise."""
    defaults = SagaConfig().as_dict()
    return {**own, **{k: v for k, v in flags.as_dict().items() if v != defaults[k]}}


def read_config(additional_config: Any) -> SagaConfig:
    """The configuration in vLLM's `additional_config`; `UserError` for unknown keys and values out of range."""
    raw = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(raw, Mapping):
        raise UserError(f"additional_config[{KEY!r}]", f"is {type(raw).__name__}, not an object",
                        "give keys and values")
    known = {f.name for f in fields(SagaConfig)}
    for key in raw:
        if key not in known:
            raise unknown_name(f"key of additional_config[{KEY!r}]", key, known)
    config = SagaConfig(**raw)
    for key in ("expiry_s", "budget_s", "metrics_s", "starve_s", "poll_s", "record_file_mb", "record_file_s",
                "prefill_tokens_per_s", "hung_s"):
        value = getattr(config, key)
        if value is None and key in ("prefill_tokens_per_s", "hung_s"):
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UserError(f"additional_config[{KEY!r}], {key}", f"is {value!r}", "give a number above 0")
    if not isinstance(config.metrics_tenants, int) or isinstance(config.metrics_tenants, bool) or not (
            0 <= config.metrics_tenants <= MOST_TENANTS):
        raise UserError(f"additional_config[{KEY!r}], metrics_tenants", f"is {config.metrics_tenants!r}",
                        f"give a whole number from 0 to {MOST_TENANTS}")
    if not isinstance(config.events, bool):
        raise UserError(f"additional_config[{KEY!r}], events", f"is {config.events!r}", "give true or false")
    if config.statistics is not None and not isinstance(config.statistics, str):
        raise UserError(f"additional_config[{KEY!r}], statistics", f"is {config.statistics!r}", "name a folder")
    if not isinstance(config.admin_keys, list) or not all(
            isinstance(k, str) and len(k) == 64 and not set(k) - set("0123456789abcdef") for k in config.admin_keys):
        raise UserError(f"additional_config[{KEY!r}], admin_keys", "is not a list of SHA-256 (64 hex digits)",
                        'take the key\'s hash: printf %s "$KEY" | sha256sum')
    root = config.policy_root
    if root is not None and not (isinstance(root, str) and Path(root).is_dir()):
        raise UserError(f"additional_config[{KEY!r}], policy_root", f"is {config.policy_root!r}", "name a folder")
    if config.check not in CHECKS:
        raise unknown_name("check", str(config.check), CHECKS)
    _check_constraints(config)
    return config


def _check_constraints(config: SagaConfig) -> None:
    where = f"additional_config[{KEY!r}]"
    for key in ("service_gap_tokens", "afs_preempt_s"):
        value = getattr(config, key)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise UserError(f"{where}, {key}", f"is {value!r}", "give a number, or leave it out")
    floors = config.kv_floors
    if not isinstance(floors, dict) or not all(
            isinstance(t, str) and isinstance(n, int | float) and not isinstance(n, bool) for t, n in floors.items()):
        raise UserError(f"{where}, kv_floors", f"is {floors!r}",
                        'give shares by tenant, such as {"team-a": 0.2, "*": 0.1}')
    rules = config.constraints
    named = sum(share for tenant, share in rules.kv_floors.items() if tenant != "*")
    if named > MOST_FLOORS + 1e-9:
        raise UserError("KV floors", f"claim {named:.2f} of the pool",
                        f"claim at most {MOST_FLOORS:g} in all: what is left keeps requests going")


def read_floors(given: Iterable[str]) -> dict[str, float]:
    """KV floors by tenant from `[TENANT=]SHARE`; without a tenant, "*"."""
    floors: dict[str, float] = {}
    for text in given:
        tenant, _, share = text.rpartition("=")
        tenant = tenant or "*"
        if tenant in floors:
            raise UserError(f"--kv-floor {text}", f"names {tenant} a second time", "give one share for each tenant")
        try:
            floors[tenant] = float(share)
        except ValueError:
            raise UserError(f"--kv-floor {text}", f"{share!r} is not a number", "write TENANT=SHARE or SHARE") from None
    return floors


def policies_of(policy: str | Mapping[str, str]) -> PolicySet:
    """The four policies that the configuration names; `UserError` lists the valid names, nearest first."""
    if isinstance(policy, str):
        if policy not in PRESETS and not Path(policy).is_dir() and (os.sep in policy or policy.startswith((".", "~"))):
            raise UserError(policy, "is no folder" if Path(policy).exists() else "does not exist",
                            f"name a checkpoint's folder, or one of: {', '.join([*preset_names(), STOCK])}")
        if policy not in PRESETS and not Path(policy).is_dir():
            raise unknown_name("policy", policy, [*preset_names(), STOCK, "a checkpoint's folder"])
        chosen = preset(policy)
    else:
        for decision in policy:
            if decision not in DECISIONS:
                raise unknown_name("decision", decision, DECISIONS)
        chosen = from_specs({**PRESETS["lru"], **policy})
    for decision in DECISIONS:
        if getattr(chosen, decision).oracle:
            raise UserError(f"{decision} policy {getattr(chosen, decision).name!r}", "needs to know the future",
                            "choose one that can serve")
    return chosen


def require_free_order(policies: PolicySet, rules: Constraints, scheduling_policy: str) -> None:
    """`UserError` if vLLM is told to order the queue (`scheduling_policy` is not "fcfs") and so are we."""
    ours = [f"the ordering {policies.ordering.name}"] if policies.ordering.name != "fcfs" else []
    ours += ["the service gap"] if math.isfinite(rules.service_gap_tokens) else []
    ours += ["AFS preemption"] if math.isfinite(rules.afs_preempt_s) else []
    if ours and scheduling_policy != "fcfs":
        raise UserError(f"--scheduling-policy {scheduling_policy}", f"is set beside {ours[0]} of saga-rl",
                        "leave one of them out (policies can be chosen decision by decision, ordering fcfs among them)")

"""What is checked before a model is loaded, and the one line that says what will serve."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.moved import new_name
from saga_rl.policies.base import PolicySet
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.runtime.config import versions
from saga_rl.runtime.config.emulated import active
from saga_rl.runtime.config.ours import SCHEDULER, SYNC_SCHEDULER, is_ours
from saga_rl.runtime.config.settings import KEY, STOCK, SagaConfig, policies_of, read_config, require_free_order
from saga_rl.runtime.server.http.settings import read_settings

OFFLOADS = ("Offload", "LMCache")
"""Words in the names of the connectors that keep KV below the GPU for this very engine."""
MERGES = False
"""Who started this process makes the recording's trace when the server stops."""


def checked(vllm_config: Any) -> SagaConfig | None:
    """The configuration that will be in force; None if that is stock vLLM, whose scheduler is then put in place.
    Raises `UserError`."""
    config = read_config(vllm_config.additional_config)
    if config.policy == STOCK:
        require_recordable(config)
        if is_ours(vllm_config):
            vllm_config.scheduler_config.scheduler_cls = None
        _say(f"vLLM {versions.require_tested(True)} as it is, no hooks")
        announce_device()
        return None
    if not is_ours(vllm_config):
        raise UserError(f"additional_config[{KEY!r}]", "is set, and the engines run another scheduler",
                        f"add --scheduler-cls {SCHEDULER}, or leave it out")
    _require_todays_name(vllm_config)
    versions.require_tested(config.allow_untested)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise UserError("VLLM_USE_RUST_FRONTEND", "is set, and the Rust server routes by itself", "unset it")
    require_free_order(policies_of(config.policy), config.constraints,
                       str(getattr(vllm_config.scheduler_config, "policy", "fcfs")))
    _as_vllm_decided(vllm_config.scheduler_config)
    read_settings(vllm_config.additional_config)  # or tenants would go unchecked, with a line in the log only
    if config.record is not None:
        config = replace(config, record=str(Path(config.record).resolve()),
                         record_key=config.record_key or secrets.token_hex(16))
        vllm_config.additional_config[KEY] = config.as_dict()  # before the engines get it
    return config


def _as_vllm_decided(scheduler_config: Any) -> None:
    """Of our two classes, take the one that goes with the scheduling that vLLM has decided on by now: some drafts, some
    executors and pipelines want the synchronous one, whoever asked for which. A class derived from ours is left."""
    if scheduler_config.scheduler_cls in (SCHEDULER, SYNC_SCHEDULER):
        scheduler_config.scheduler_cls = SCHEDULER if scheduler_config.async_scheduling else SYNC_SCHEDULER


def _require_todays_name(vllm_config: Any) -> None:
    cls = vllm_config.scheduler_config.scheduler_cls
    if isinstance(cls, str) and (new := new_name(cls)) is not None:
        raise UserError(f"--scheduler-cls {cls}", "is the name of an earlier release", f"write {new}")


def require_recordable(config: SagaConfig) -> None:
    if config.policy == STOCK and config.record is not None:
        raise UserError("--record", "needs our scheduler, and --policy stock is vLLM without it",
                        "use --policy lru, which evicts exactly as vLLM does")


def announce(vllm_config: Any, config: SagaConfig) -> None:
    """The line that says what is in force; as an event too, if events are wanted."""
    from saga_rl.runtime.engine.policy_change import hashes, shown
    from saga_rl.runtime.recording.recorder import journal_folder
    from saga_rl.runtime.server import events
    from saga_rl.runtime.server.admin import ADMIN_VARIABLE, admin_digests

    policies = policies_of(config.policy)
    version = versions.installed()[1]
    _say(f"policy {shown(config.policy) if isinstance(config.policy, str) else 'custom'} ({_names(policies)}), "
         f"checkpoint {' '.join(h[:12] for h in hashes(policies).values()) or 'none'}, "
         f"constraints {_constraints(config)}, vLLM {version}")
    if config.record is not None and not MERGES:
        folder = journal_folder(config.record)
        _say(f"recording into {folder}; when the server has stopped, make the trace with `saga-rl merge-recording "
             f"{folder} -o {config.record}` (`saga-rl serve` does it itself)")
    for hint in (tier_hint(vllm_config, policies), caching_hint(vllm_config, policies)):
        if hint is not None:
            _say(hint)
    if not admin_digests(config):
        _say(f"no admin key ({ADMIN_VARIABLE}): /saga/policy and the kill switch /saga/stock are off")
    announce_device()
    events.enable(config.events)
    settings = active()
    events.emit("start", device="real" if settings is None else settings.described(),
                policy=shown(config.policy), policies=policies.names(), checkpoints=hashes(policies),
                constraints=_constraints(config), vllm=version,
                engines=vllm_config.parallel_config.data_parallel_size)


def tier_hint(vllm_config: Any, policies: PolicySet) -> str | None:
    """What an operator should know who offloads KV below the GPU and takes an admission that does not reckon with it;
    None where there is nothing to say. It measured slower than stock there (docs/explanation/no-harm.md)."""
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    connector = str(getattr(transfer, "kv_connector", None) or "")
    if not any(word in connector for word in OFFLOADS):
        return None
    admission = policies.admission
    if admission.name != "reserve-older" or "tier" in admission.doc:
        return None
    return (f"note: {connector} keeps KV below the GPU, and this policy holds requests back as if nothing came back "
            f"from there, which can be slower than vLLM alone; --policy {DEFAULT_PRESET} reckons with it")


def caching_hint(vllm_config: Any, policies: PolicySet) -> str | None:
    """What an operator should know who took an eviction policy and has no prefix cache, by a flag or because vLLM has
    none for the model; None where there is nothing to say."""
    cache = getattr(vllm_config, "cache_config", None)
    if getattr(cache, "enable_prefix_caching", True) or policies.eviction.name == "lru":
        return None
    return ("note: prefix caching is off, so no KV outlives its request and the eviction policy decides nothing; "
            "placement, ordering and admission work as ever")


def announce_device() -> None:
    """Say it where the devices are emulated: nobody should take such figures for a GPU's."""
    settings = active()
    if settings is None:
        return
    d = settings.described()
    _say(f"EMULATED device: {d['profile']} ({d['profile_kind']}; {d['gpus']} x {d['gpu']}), KV pool {d['kv_tokens']:,} "
         f"tokens unless a flag says otherwise, {d['time_scale']:g} of its seconds in one real second; no model is "
         "computed, and answers mean nothing")


def _names(policies: PolicySet) -> str:
    return ", ".join(f"{decision} {name}" for decision, name in policies.names().items())


def _say(text: str) -> None:
    print(f"saga-rl: {text}", file=sys.stderr, flush=True)


def _constraints(config: SagaConfig) -> str:
    on = []
    if config.service_gap_tokens is not None:
        on.append(f"service gap {config.service_gap_tokens:g} tokens")
    on += [f"KV floor {tenant}={share:g}" for tenant, share in config.kv_floors.items() if share]
    if config.afs_preempt_s is not None:
        on.append(f"AFS preemption after {config.afs_preempt_s:g} s")
    return ", ".join(on) or "none"

"""Other policies in an engine that serves, all of it or nothing; back to the ones before; and the kill switch.

`stock` is the preset `lru` without any constraint between tenants: what vLLM does, through our queues. Constraints come
back with the next policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.policies.base import DECISIONS, PolicySet
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.presets import PRESETS
from saga_rl.runtime.config.settings import STOCK, policies_of

MOST_LENGTH = 4096
"""Characters of a policy's name, path or spec."""
BEFORE, FULL, SPEC = "saga_before", "saga_rules", "saga_spec"
"""Attributes of a scheduler: what `revert` restores; its constraints and floors; the policy as it was asked for."""

Spec = str | dict[str, str]


def read_spec(given: Any) -> Spec:
    """A policy as a person wrote it, checked for its form, paths made absolute. Raises `UserError`."""
    if isinstance(given, str):
        _length(given)
        return given if given in PRESETS or given == STOCK else _path(given)
    if not isinstance(given, Mapping) or not given or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in given.items()):
        raise UserError("policy", f"is {str(given)[:80]!r}",
                        'give a name, a checkpoint\'s folder, or specs by decision such as {"eviction": "lru"}')
    out = {}
    for decision, spec in given.items():
        _length(spec)
        name, colon, rest = spec.partition(":")
        out[decision] = f"{name}:{_path(rest)}" if name == "learned" and colon else spec
    return out


def _length(text: str) -> None:
    if len(text) > MOST_LENGTH or not text or "\0" in text:
        raise UserError("policy", f"has a name of {len(text)} characters" if text and "\0" not in text else
                        "has no name, or one with a zero byte", f"give 1 to {MOST_LENGTH} characters")


def _path(text: str) -> str:
    path = Path(text)
    try:
        return str(path.resolve()) if path.is_dir() else text
    except (OSError, RuntimeError, ValueError):
        return text


def load(spec: Spec) -> PolicySet:
    """The policies of `spec`; `UserError` with one line for anything that is wrong with it, whatever a file holds."""
    try:
        return policies_of("lru" if spec == STOCK else spec)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError, LookupError) as e:
        detail = str(e).splitlines()[0][:200] if str(e) else ""
        raise UserError(str(spec)[:200], f"cannot be used ({type(e).__name__}: {detail})",
                        "name a preset or a sound checkpoint") from None


def hashes(policies: PolicySet) -> dict[str, str]:
    """SHA-256 of the weights by decision, for decisions that are learned."""
    found = {decision: getattr(policies, decision).doc.get("sha256") for decision in DECISIONS}
    return {decision: str(sha) for decision, sha in found.items() if sha}


def described(scheduler: Any) -> dict[str, Any]:
    """The policy in force as it was asked for, and its checkpoints' hashes."""
    spec = scheduler.__dict__.get(SPEC, scheduler.saga_config.policy)
    return {"spec": spec, "checkpoints": hashes(scheduler.policies)}


def change(scheduler: Any, given: Any, expect: Mapping[str, str] | None = None, token: str = "") -> dict[str, Any]:
    """Put the policy `given` in force from the next step on. expect: `hashes` as the caller read them; token: names
    this change for `revert`. Raises `UserError`; then nothing has changed."""
    spec = read_spec(given)
    policies = load(spec)
    if expect is not None and dict(expect) != hashes(policies):
        raise UserError(str(spec)[:200], "is another checkpoint in this engine than in the API server",
                        "give every machine the same files, and do not write while they are read")
    before = scheduler.policies, scheduler.shown, described(scheduler)["spec"], scheduler.rules, _floors(scheduler)
    scheduler.__dict__.setdefault(FULL, (scheduler.rules, _floors(scheduler)))
    rules = (Constraints(), None) if spec == STOCK else scheduler.__dict__[FULL]
    _put(scheduler, policies, shown(spec), spec, *rules)
    scheduler.__dict__[BEFORE] = token, before
    return {"policy": scheduler.shown, **described(scheduler), "policies": policies.names()}


def revert(scheduler: Any, token: str = "") -> dict[str, Any]:
    """Undo the change `token`, if it is the last one and was not undone. Raises `UserError`."""
    name, before = scheduler.__dict__.get(BEFORE, (None, None))
    if before is None or name != token:
        raise UserError("revert", "nothing to undo in this engine", "name the policy that you want")
    _put(scheduler, *before)
    del scheduler.__dict__[BEFORE]
    return {"policy": scheduler.shown, **described(scheduler)}


def shown(spec: Spec) -> str:
    """What an operator calls a policy."""
    return spec if isinstance(spec, str) else str(spec)


def _put(scheduler: Any, policies: PolicySet, name: str, spec: Spec, rules: Constraints, floors: Any) -> None:
    old = scheduler.rules, _floors(scheduler)
    scheduler.rules, scheduler.block_queue.floors = rules, floors
    try:
        scheduler.swap(policies, name)
    except BaseException:
        scheduler.rules, scheduler.block_queue.floors = old
        raise
    scheduler.__dict__[SPEC] = spec


def _floors(scheduler: Any) -> Any:
    return scheduler.block_queue.floors

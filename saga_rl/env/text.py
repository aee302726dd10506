"""Options of an environment as plain values, so that `env.spec` can be written down and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.constraints import Constraints
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile, load_profile, profile_names


def config_of(given: SimConfig | Mapping[str, Any] | None) -> SimConfig:
    """Read a configuration, or its fields by name: `profile` by name, path or fields, `constraints` by fields. Raises
    `UserError`."""
    if given is None or isinstance(given, SimConfig):
        return given or SimConfig()
    made = _known("config", SimConfig, given)
    if "profile" in made:
        made["profile"] = _profile(made["profile"])
    if "constraints" in made:
        made["constraints"] = constraints_of(made["constraints"])
    return SimConfig(**made)


def constraints_of(given: Constraints | Mapping[str, Any] | None) -> Constraints:
    """Read constraints, or their fields by name. Raises `UserError`."""
    if given is None or isinstance(given, Constraints):
        return given or Constraints()
    return Constraints(**_known("constraints", Constraints, given))


def config_text(config: SimConfig) -> dict[str, Any]:
    """Write what of the configuration is not usual, as `config_of` reads it."""
    out = _unusual(config, SimConfig())
    if "profile" in out:
        name = config.profile.name
        shipped = name in profile_names() and load_profile(name) == config.profile
        out["profile"] = name if shipped else _unusual(config.profile, None)
    if "constraints" in out:
        out["constraints"] = _unusual(config.constraints, Constraints())
    return out


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Write an environment's options with values that JSON has; a trace in memory stays as it is."""
    out = dict(options)
    for name, value in options.items():
        if isinstance(value, SimConfig):
            out[name] = config_text(value)
        elif isinstance(value, Constraints):
            out[name] = _unusual(value, Constraints())
        elif isinstance(value, Path):
            out[name] = str(value)
        elif isinstance(value, Mapping):
            out[name] = dict(value)
        elif hasattr(value, "item") and getattr(value, "ndim", None) == 0:
            out[name] = value.item()
    return out


class Spec(EnvSpec):
    """An environment's spec with plain options. `to_json` raises `UserError` for a trace that is in memory only."""

    @classmethod
    def of(cls, spec: EnvSpec | None) -> EnvSpec | None:
        """Make one of the spec that Gymnasium gives an environment."""
        if spec is None or isinstance(spec, cls):
            return spec
        made = cls(**{f.name: getattr(spec, f.name) for f in fields(EnvSpec) if f.init})
        made.kwargs = plain(spec.kwargs)
        return made

    def to_json(self) -> str:
        for name, value in self.kwargs.items():
            if isinstance(value, Trace):
                raise UserError(name, f"{value.meta.name!r} is in memory, so the environment cannot be written down",
                                "name a trace file (`aeg.io.write_trace`), or a generator and its params")
        return super().to_json()


def _known(what: str, kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    if not isinstance(given, Mapping):
        raise UserError(what, f"is {type(given).__name__}", f"give a {kind.__name__} or its fields by name")
    for name in given:
        if name not in names:
            raise unknown_name(f"{what} field", name, names)
    return dict(given)


def _profile(given: Any) -> CostProfile:
    if isinstance(given, CostProfile):
        return given
    if not isinstance(given, Mapping):
        return load_profile(given)
    made: dict[str, Any] = {}
    for name, value in _known("profile", CostProfile, given).items():
        made[name] = tuple(value) if isinstance(value, list) else value
    if "fitted" in made:
        made["fitted"] = {k: tuple(v) for k, v in made["fitted"].items()}
    return CostProfile(**made)


def _unusual(value: Any, usual: Any) -> dict[str, Any]:
    """Fields that differ from `usual`; all of them if there is none."""
    whole = {f.name: getattr(value, f.name) for f in fields(value)}
    out = {k: v for k, v in whole.items() if usual is None or v != getattr(usual, k)}
    return {k: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for k, v in out.items()}

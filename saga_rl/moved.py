"""Old names of what people import, and where each is now: an import of an old one raises with the new one.

Only modules that documentation or a command line named. Imports nothing of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

MODULES = {
    "aeg.infer": "aeg.inference.predict", "aeg.infer_stream": "aeg.inference.stream",
    "bench": "experiments.bench", "compare": "experiments.compare",
    "learn.actors": "learn.online.actors", "learn.collect": "learn.data.collect", "learn.dataset": "learn.data.dataset",
    "learn.data.games": "learn.data.rollouts", "learn.evaluation": "learn.judge.evaluation",
    "learn.games": "learn.data.rollouts",
    "learn.genome": "learn.search.parameter_vector", "learn.learners": "learn.offline.learners",
    "learn.native": "learn.online.sb3_vector", "learn.onnx_export": "learn.offline.onnx_export",
    "learn.protocol": "learn.judge.protocol", "learn.rounds": "learn.offline.dagger", "learn.sb3": "learn.online.sb3",
    "learn.sweep": "learn.offline.sweep", "learn.train": "learn.offline.train",
    "learn.workloads": "learn.judge.workloads",
    "policies.chains": "policies.state.chains", "policies.checkpoint": "policies.learned.checkpoint",
    "policies.fairness": "policies.state.agent_fair_share", "policies.guard": "policies.learned.guard",
    "policies.mlp": "policies.learned.mlp", "policies.tables": "policies.state.tables",
    "runtime.calibrate": "replay.calibrate", "runtime.hints": "runtime.sessions.hints",
    "runtime.http": "runtime.server.http", "runtime.offload": "runtime.engine.offload",
    "runtime.plugin": "runtime.launch.plugin", "runtime.replay": "replay.run",
    "runtime.replay_drive": "replay.drive", "runtime.replay_text": "replay.text",
    "runtime.router": "runtime.routing.router", "runtime.scheduler": "runtime.engine.scheduler",
    "runtime.serve": "runtime.launch.serve", "runtime.tiny_model": "replay.tiny_model",
    "runtime.tracker": "runtime.sessions.tracker",
    "sim.bound": "sim.openloop.bound", "sim.cost_fit": "sim.cost.fit", "sim.iteration_cost": "sim.cost.iteration",
    "sim.metrics": "sim.results.metrics", "sim.models": "sim.cost.models", "sim.record": "sim.openloop.record",
    "sim.replay": "sim.openloop.replay", "sim.script": "sim.openloop.script",
    "sim.stepper": "sim.stepping.replay_stepper", "sim.unit": "sim.openloop.unit",
}
"""Below `saga_rl`, old -> new; of a folder, all that is in it."""


def new_name(old: str) -> str | None:
    """Return the full new name of a module of ours that was called `old`; None if it has not moved."""
    parts = old.split(".")
    for n in range(len(parts), 1, -1):
        new = MODULES.get(".".join(parts[1:n]))
        if parts[0] == "saga_rl" and new is not None:
            return ".".join(["saga_rl", new, *parts[n:]])
    return None


class _Moved(MetaPathFinder):
    """Asked last, so only for what is nowhere."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        new = new_name(fullname)
        if new is not None:
            raise ImportError(f"{fullname} is now {new}", name=fullname)  # ModuleNotFoundError would be swallowed
        return None


def watch_imports() -> None:
    """Make imports of old names say the new ones, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())


def names_in(package: str, module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a folder that has the name of a file that was: what that file held is in `module`."""

    def __getattr__(name: str) -> NoReturn:
        if not name.startswith("_"):
            try:
                there = hasattr(import_module(module), name)
            except ImportError:
                there = False
            if there:
                raise ImportError(f"{name} of {package} is now in {module}", name=package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__

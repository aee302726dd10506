"""Who runs the trials of a sweep: this process, Ray Tune, or W&B. Each yields the trials' records as they finish."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.pool import Jobs, result, submit, workers
from saga_rl.files import write_json
from saga_rl.learn.offline.from_datasets import Loaded, load
from saga_rl.learn.offline.sweep import Dimension, draw, space, trial

CONCURRENT = 2
"""Most trials of Ray Tune at once."""
BACKENDS = ("local", "tune", "wandb")


@dataclass(frozen=True)
class Plan:
    """A sweep, as a process that runs one of its trials must know it."""

    algo: str
    trials: int
    folders: tuple[str, ...]
    reward: str
    clone: str
    epochs: int
    validation: float
    seed: int
    trials_dir: str
    others: dict[str, str]

    def checkpoint(self, number: int) -> Path:
        return Path(self.trials_dir) / f"trial-{number:03d}"

    def run(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        """One trial, from the datasets to its checkpoint and its record beside it."""
        loaded = _loaded(self.folders, self.clone, self.reward)
        record = trial(number, self.algo, values, loaded, self.epochs, self.validation, self.seed,
                       self.checkpoint(number), self.others)
        write_json(self.checkpoint(number) / "trial.json", {**record, "plan": self.identity()})
        return record

    def identity(self) -> dict[str, Any]:
        """What a trial's record follows from, besides its number and values."""
        return {"algo": self.algo, "datasets": [Path(f).name for f in self.folders], "reward": self.reward,
                "clone": self.clone, "epochs": self.epochs, "validation": self.validation, "seed": self.seed}

    def done(self, number: int) -> dict[str, Any] | None:
        """The record of a trial that an earlier run of the same plan finished."""
        path = self.checkpoint(number) / "trial.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        if record.pop("plan") != self.identity():
            raise UserError(path, "is of another sweep", "name another --trials-dir, or delete it")
        return record


@lru_cache(maxsize=1)
def _loaded(folders: tuple[str, ...], clone: str, reward: str) -> Loaded:
    """Read once a process."""
    return load([Path(f) for f in folders], clone, reward)


def local(plan: Plan, jobs: Jobs = 1) -> Iterator[dict[str, Any]]:
    """One after the other, here, or side by side on a cluster, in the order of their numbers. Trials that are there
    already are taken as they are."""
    if isinstance(jobs, int):
        for number in range(plan.trials):
            yield plan.done(number) or plan.run(number, draw(plan.algo, plan.seed, number))
        return
    there = [plan.done(number) for number in range(plan.trials)]
    with workers(jobs) as executor:
        waiting = [record or submit(executor, plan.run, number, draw(plan.algo, plan.seed, number))
                   for number, record in enumerate(there)]
        for trial_or_record in waiting:
            yield trial_or_record if isinstance(trial_or_record, dict) else result(trial_or_record)


def tune(plan: Plan) -> Iterator[dict[str, Any]]:
    """Ray Tune's random search, in at most `CONCURRENT` processes on this machine; nothing leaves it, and there is no
    dashboard. Raises `UserError` without ray, or if a trial failed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
        from ray import tune as rt
        from ray.tune.search.basic_variant import BasicVariantGenerator
    except ImportError:
        raise UserError("--backend tune", "Ray Tune is not installed", "install the extra saga-rl[ray]") from None
    logs = Path(plan.trials_dir) / "ray"
    ray.init(address="local", num_cpus=CONCURRENT, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, configure_logging=False)
    try:
        tuner = rt.Tuner(
            rt.with_resources(rt.with_parameters(_tune_trial, plan=plan), {"cpu": 1}),
            param_space={**{d.name: _tune_domain(rt, d) for d in space(plan.algo)},
                         NUMBER: rt.sample_from(_next_number(plan.trials))},
            tune_config=rt.TuneConfig(num_samples=plan.trials, search_alg=BasicVariantGenerator(
                random_state=plan.seed, max_concurrent=CONCURRENT)),
            run_config=rt.RunConfig(storage_path=str(logs.resolve()), name="sweep", verbose=0))
        results = tuner.fit()
    finally:
        ray.shutdown()
    for at in range(len(results)):
        result = results[at]
        if result.error is not None:
            raise UserError("--backend tune", f"a trial failed ({result.error})", f"look into {logs}")
        found = plan.done(int((result.config or {})[NUMBER]))
        assert found is not None
        yield found


NUMBER = "trial_number"


def _next_number(trials: int) -> Any:
    numbers = iter(range(trials))
    return lambda spec: next(numbers)


def _tune_trial(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Runs in a process of Ray's."""
    number = int(config[NUMBER])
    record = plan.run(number, {k: v for k, v in config.items() if k != NUMBER})
    return {"score": record["score"], "decisions_seen": record["decisions_seen"]}


def _tune_domain(rt: Any, d: Dimension) -> Any:
    if d.choices:
        return rt.choice(list(d.choices))
    if d.whole:
        return rt.lograndint(int(d.low), int(d.high) + 1) if d.log else rt.randint(int(d.low), int(d.high) + 1)
    return rt.loguniform(d.low, d.high) if d.log else rt.uniform(d.low, d.high)


def wandb_config(plan: Plan) -> dict[str, Any]:
    """The sweep as W&B wants it told."""
    parameters: dict[str, Any] = {}
    for d in space(plan.algo):
        if d.choices:
            parameters[d.name] = {"values": list(d.choices)}
        elif d.whole:
            parameters[d.name] = {"distribution": "q_log_uniform_values" if d.log else "int_uniform", "min": int(d.low),
                                  "max": int(d.high), **({"q": 1} if d.log else {})}
        else:
            parameters[d.name] = {"distribution": "log_uniform_values" if d.log else "uniform", "min": d.low,
                                  "max": d.high}
    return {"method": "random", "metric": {"name": "score", "goal": "maximize"}, "parameters": parameters}


def wandb(plan: Plan, project: str) -> Iterator[dict[str, Any]]:
    """A sweep that W&B's server draws and an agent here runs. Raises `UserError` where no server can be asked."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        raise UserError("--backend wandb", "W&B sweeps are drawn by its server, and WANDB_MODE forbids to ask it",
                        "log in and unset WANDB_MODE, or pass --backend local or tune")
    try:
        import wandb as client
    except ImportError:
        raise UserError("--backend wandb", "the package wandb is not installed", "install saga-rl[train]") from None
    if client.api.api_key is None:
        raise UserError("--backend wandb", "W&B sweeps are drawn by its server, and nobody is logged in",
                        "run `wandb login`, or pass --backend local or tune")
    records: list[dict[str, Any]] = []

    def one() -> None:
        with client.init(project=project, dir=plan.trials_dir) as run:
            records.append(plan.run(len(records), dict(run.config)))
            run.log({"score": records[-1]["score"], **records[-1]["figures"]})

    try:
        sweep = client.sweep(wandb_config(plan), project=project)
        client.agent(sweep, function=one, count=plan.trials, project=project)
    except Exception as e:  # wandb wraps network, login and quota failures in many types
        raise UserError("--backend wandb", f"the sweep stopped ({e})", "pass --backend local or tune") from None
    if not records:
        raise UserError("--backend wandb", "no trial finished", "look at the sweep's page, or pass --backend local")
    yield from records

"""`saga-rl serve --ray FILE`: what our scheduler and router need is filled into a file of Ray Serve, then Ray runs it.

The file is one that `serve run` takes, with models under `applications[].args.llm_configs`. What it says of its own
stays; what could not work is told before Ray starts.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import must_exist
from saga_rl.policies.presets import preset_names
from saga_rl.runtime.config.emulated import Settings
from saga_rl.runtime.config.ours import EMULATE, SCHEDULER
from saga_rl.runtime.config.settings import KEY, STOCK, SagaConfig, over, policies_of, read_config

ROUTER = "saga_rl.runtime.ray.SagaRequestRouter"
TRIED = "2.60."
CONNECT_S, ASK_S = 5.0, 120.0
ASK = "import json, ray; ray.init(log_to_driver=False); print(json.dumps(ray.cluster_resources()))"


def run(path: Path, config: SagaConfig, emulate: Settings | None) -> None:
    """Fill in what is missing in the file at `path`, and put `serve run` in the place of this process. Raises
    `UserError` for what is wrong with Ray, the file or the cluster."""
    require_ray(config.allow_untested)
    whole = completed(read(path), str(path), config, emulate)
    require_room(whole, str(path))
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.saga-", suffix=".yaml")
    with os.fdopen(handle, "w") as file:
        json.dump(whole, file, indent=1)  # JSON is YAML, too
    print(f"saga-rl: Ray Serve runs {name}", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "ray.serve.scripts", "run", name])


def require_ray(allow_untested: bool) -> None:
    """Raise `UserError` unless Ray Serve is installed in a version that was tried."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        found = ""
    if not found or find_spec("ray.serve") is None or find_spec("jsonref") is None:
        raise UserError("Ray Serve LLM", "is not installed", "pip install 'saga-rl[ray-serve]'")
    if not found.startswith(TRIED) and not allow_untested:
        raise UserError(f"Ray {found}", f"was not tried; {TRIED}x was", "install that, or add --allow-untested")


def read(path: Path) -> dict[str, Any]:
    """The file's content; `UserError` for one that is no YAML object."""
    import yaml

    try:
        content = yaml.safe_load(must_exist(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(path, f"is not YAML ({str(e).splitlines()[0]})", "give a file that `serve run` takes") from None
    if not isinstance(content, dict):
        raise UserError(path, "is not an object with `applications`", "give a file that `serve run` takes")
    return content


def completed(content: Mapping[str, Any], where: str, config: SagaConfig, emulate: Settings | None) -> dict[str, Any]:
    """`content` with our scheduler in every model's engines and our router before its replicas, where the file names no
    other. Flags of the command line (`config`) win over the file's own `additional_config`. Raises `UserError`."""
    whole = copy.deepcopy(dict(content))
    applications = whole.get("applications")
    if not isinstance(applications, list) or not applications:
        raise UserError(where, "has no applications", "give a file that `serve run` takes")
    for i, application in enumerate(applications):
        place = f"{where}, applications[{i}].args.llm_configs"
        args = application.get("args") if isinstance(application, dict) else None
        models = args.get("llm_configs") if isinstance(args, dict) else None
        if not isinstance(models, list) or not models:
            raise UserError(place, "names no models", "list them there, as `ray.serve.llm:build_openai_app` takes them")
        for j, model in enumerate(models):
            if not isinstance(model, dict):
                raise UserError(f"{place}[{j}]", "is not an object", "write the model's settings there, not a path")
            _complete(model, f"{place}[{j}]", config, emulate)
    return whole


def _complete(model: dict[str, Any], where: str, config: SagaConfig, emulate: Settings | None) -> None:
    if emulate is not None:
        model.setdefault("runtime_env", {}).setdefault("env_vars", {})[EMULATE] = emulate.value()
        model.setdefault("placement_group_config", {"bundles": [{"CPU": 1}]})
    if config.policy == STOCK:
        return
    engine = model.setdefault("engine_kwargs", {})
    scheduler = engine.setdefault("scheduler_cls", SCHEDULER)
    if not str(scheduler).startswith("saga_rl."):
        raise UserError(f"{where}.engine_kwargs.scheduler_cls", f"is {scheduler!r}, and a policy needs ours",
                        "leave it out, or serve with --policy stock")
    given = engine.setdefault("additional_config", {})
    given[KEY] = {"policy": config.policy} | over(config, given.get(KEY) or {})
    try:
        merged = read_config({KEY: given[KEY]})
        policies_of(merged.policy)
    except UserError as e:
        raise UserError(f"{where}: {e.where}", e.cause, e.mend) from None
    if isinstance(merged.policy, str) and merged.policy not in preset_names():
        given[KEY]["policy"] = str(Path(merged.policy).resolve())
    _route(model, given[KEY], engine, emulate)


def _route(model: dict[str, Any], saga: dict[str, Any], engine: dict[str, Any], emulate: Settings | None) -> None:
    """Our router, if the file names none."""
    deployment = model.setdefault("deployment_config", {})
    router = deployment.setdefault("request_router_config", {"request_router_class": ROUTER})
    if router.get("request_router_class") != ROUTER:
        return
    told = router.setdefault("request_router_kwargs", {})
    told.setdefault("saga", {k: v for k, v in saga.items() if k != "record"})
    if "max_num_seqs" in engine:
        told.setdefault("max_num_seqs", engine["max_num_seqs"])
    if emulate is not None:
        told.setdefault("kv_tokens", emulate.described()["kv_tokens"])


def wanted(whole: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs that the replicas of all models ask for, at least."""
    out = {"CPU": 0.0, "GPU": 0.0}
    for application in whole["applications"]:
        for model in application["args"]["llm_configs"]:
            deployment, engine = model.get("deployment_config") or {}, model.get("engine_kwargs") or {}
            scaling = deployment.get("autoscaling_config") or {}
            replicas = deployment.get("num_replicas", scaling.get("min_replicas", 1))
            count = 1 if not isinstance(replicas, int) else replicas
            bundles = (model.get("placement_group_config") or {}).get("bundles") or [
                {"GPU": 1}] * (engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1))
            for bundle in bundles:
                for kind in out:
                    out[kind] += count * float(bundle.get(kind, 0))
    return out


def require_room(whole: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` if the cluster of RAY_ADDRESS does not answer or has less than the replicas ask for. Without
    that variable Ray starts one on this machine, and says so itself."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
        asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=ASK_S, check=True)
        there = json.loads(asked.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as e:
        raise UserError(f"RAY_ADDRESS={address}", f"no cluster answers there ({type(e).__name__})",
                        "start it, correct the address, or unset the variable to use this machine") from None
    for kind, count in wanted(whole).items():
        if count > there.get(kind, 0):
            raise UserError(where, f"asks for {count:g} {kind}s, and the cluster has {there.get(kind, 0):g}",
                            "add nodes, or ask for fewer replicas")

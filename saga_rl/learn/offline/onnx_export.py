"""A checkpoint's network as an ONNX graph: rows (N, F) float32 -> scores (N,) float32.

The graph is the network of `policies.learned.mlp`: scaling, clipping, layers. What a decision settles outside its
network (the tiers of learned eviction, `policies.learned.settled`) is not part of it. Written from the weights, without
torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saga_rl.files import atomic, check_target
from saga_rl.policies.learned.checkpoint import Checkpoint
from saga_rl.policies.learned.mlp import CLIP

OPSET, IR = 17, 9


def onnx_bytes(checkpoint: Checkpoint) -> bytes:
    """The serialised model, checked by the package `onnx`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)

    n = len(checkpoint.mean)
    weights = [constant("mean", checkpoint.mean), constant("std", checkpoint.std), constant("low", np.array(-CLIP)),
               constant("high", np.array(CLIP)),
               numpy_helper.from_array(np.array([1], np.int64), "column")]
    nodes = [helper.make_node("Sub", ["rows", "mean"], ["centred"]),
             helper.make_node("Div", ["centred", "std"], ["scaled"]),
             helper.make_node("Clip", ["scaled", "low", "high"], ["x0"])]
    for i, (w, b) in enumerate(checkpoint.layers):
        weights += [constant(f"w{i}", w), constant(f"b{i}", b)]
        last = i == len(checkpoint.layers) - 1
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"], [f"y{i}"], transB=1))
        nodes.append(helper.make_node("Squeeze", [f"y{i}", "column"], ["scores"]) if last else
                     helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    graph = helper.make_graph(
        nodes, f"saga_rl_{checkpoint.decision}",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["candidates", n])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["candidates"])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="saga-rl")
    model.ir_version = IR  # what widely deployed runtimes still read
    for key, value in (("seam", checkpoint.decision), ("sha256", checkpoint.sha256)):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def export(checkpoint: Checkpoint, path: Path) -> None:
    """Write the model to `path`, whole or not at all."""
    check_target(path)
    data = onnx_bytes(checkpoint)
    with atomic(path) as tmp:
        tmp.write_bytes(data)

"""Writes the models of the runtime tests to tests/fixtures/runtime/.

affine.onnx    y = x·weight + bias for x of shape (batch, 3); weight lies in affine.data, bias inside.
half.onnx      y = x + x in 16-bit floats, n = the shape of x (int64), b = x > 0.
shared.onnx    y = x·weight with a weight of 2048×2048 in shared.data, which the test itself writes (16 MiB).
"""

import argparse
import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper


def external(name, dims, location):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    length = 4 * int(np.prod(dims))
    for key, value in [("location", location), ("offset", "0"), ("length", str(length))]:
        tensor.external_data.add(key=key, value=value)
    return tensor


def save(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default="tests/fixtures/runtime")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    info = helper.make_tensor_value_info
    float32, float16, int64, boolean = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL

    weight = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    (folder / "affine.data").write_bytes(weight.tobytes())
    save(
        folder / "affine.onnx",
        [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("Add", ["h", "bias"], ["y"])],
        [info("x", float32, ["batch", 3])],
        [info("y", float32, ["batch", 2])],
        [external("weight", [3, 2], "affine.data"), numpy_helper.from_array(np.float32([10, 20]), "bias")],
    )
    half = save(
        folder / "half.onnx",
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("Shape", ["x"], ["n"]),
            helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float16(0))),
            helper.make_node("Greater", ["x", "zero"], ["b"]),
        ],
        [info("x", float16, [2, 2])],
        [info("y", float16, [2, 2]), info("n", int64, [2]), info("b", boolean, [2, 2])],
    )
    checker.check_model(half, full_check=True)
    save(
        folder / "shared.onnx",
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        [info("x", float32, [1, 2048])],
        [info("y", float32, [1, 2048])],
        [external("weight", [2048, 2048], "shared.data")],
    )


if __name__ == "__main__":
    main()

"""Writing a reward's folder: networks as ONNX, compared with PyTorch, and the manifest."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

OPSET = 17
TOLERANCE = {False: 2e-4, True: 5e-2}  # of the largest value; by whether weights are fp16
LARGEST_FILE = 1_500_000_000  # ONNX files end at 2 GiB; larger ones keep weights beside them


def export(module, path: Path, inputs: dict[str, torch.Tensor], output: str, fp16: bool, kept: tuple[str, ...] = ()) -> None:
    """One network with an open batch; with `fp16` in half precision but for operators in `kept`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.mha.set_fastpath_enabled(False)
    arguments = tuple(inputs.values())
    with torch.no_grad():
        torch.onnx.export(
            module, arguments, str(path), input_names=list(inputs), output_names=[output], opset_version=OPSET, dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in [*inputs, output]},
        )
        expected = module(*arguments).numpy()
    tidy(path, output, expected.shape[1:], fp16, kept)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([output], {name: value.numpy() for name, value in inputs.items()})[0]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[fp16], f"{path}: differs from PyTorch by {error:.1e} of its largest value"
    print(f"{path}: differs from PyTorch by {error:.1e} of the largest value", flush=True)


def tidy(path: Path, output: str, shape: tuple[int, ...], fp16: bool, kept: tuple[str, ...]) -> None:
    """State the output's shape, convert to fp16, and put large weights into one file beside the model."""
    model = onnx.load(str(path))
    kind = model.graph.output[0].type.tensor_type.elem_type
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(output, kind, ["batch", *shape]))
    if fp16:
        model = to_fp16(model, kept)
    for leftover in path.parent.iterdir():  # weights that the exporter wrote one by one
        if leftover.name.startswith(("onnx__", "model.", "vision_", "visual", "text_")) and leftover.suffix not in (".onnx", ".yaml"):
            leftover.unlink()
    large = sum(len(t.raw_data) for t in model.graph.initializer) > LARGEST_FILE
    onnx.save(model, str(path), save_as_external_data=large, location=f"{path.name}_data")


def to_fp16(model, kept: tuple[str, ...]):
    """Weights and arithmetic in half precision, but for operators in `kept`; inputs and outputs in single."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    large = model.ByteSize() > LARGEST_FILE
    blocked = [*DEFAULT_OP_BLOCK_LIST, *kept]
    converted = convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, disable_shape_infer=large)
    in_order = OnnxModel(converted)  # the conversion appends its casts at the end
    in_order.topological_sort()
    return in_order.model


def plain(value) -> str:
    return json.dumps(value)


def flow(entries: dict) -> str:
    """A mapping in one line."""
    return "{" + ", ".join(f"{key}: {value if isinstance(value, str) else plain(value)}" for key, value in entries.items()) + "}"


def steps(entries: list[dict], indent: int) -> str:
    return "".join(f"{' ' * indent}- {flow(entry)}\n" for entry in entries)


def image_section(preprocessing: list[dict], model="image.onnx", output="image_embeds") -> str:
    return (
        f"  image:\n    model: {model}\n    input: pixel_values\n    output: {output}\n    preprocessing:\n"
        + steps(preprocessing, 6)
    )


def write_manifest(folder: Path, about: dict[str, str], scorer: str) -> None:
    """`reward.yaml`; docs/reward.md of ortdpo explains it."""
    head = "".join(f"{key}: {plain(value)}\n" for key, value in about.items())
    (folder / "reward.yaml").write_text(f"{head}scorer:\n{scorer}")

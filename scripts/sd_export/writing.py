"""A part as an ONNX file with its weights in one file beside it, checked against PyTorch."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from .parts import Part

ALIGNMENT = 4096  # weights begin at page boundaries, so that they can be mapped
EXTERNAL = 1024  # bytes above which a tensor is a weight that lies in the data file
TOLERANCE = {False: 2e-4, True: 2e-2}  # of the largest value, in fp32 and fp16


class Mismatch(Exception):
    """A part's file does not give what PyTorch gives in float32."""


def write_part(part: Part, output: Path, opset: int, half: bool) -> None:
    """Export, check and write a part; nothing is left where the check fails."""
    expected = run(part)
    if half:
        part.module.half()
        part.inputs = {name: to_half(value) for name, value in part.inputs.items()}
        # ONNX Runtime computes in float32 between half-precision tensors on the CPU, where a GPU would overflow.
        found = {"nan" if np.isnan(value).any() else "inf" for value in run(part) if not np.isfinite(value).all()}
        if found:
            raise Mismatch(f"overflows in half precision ({max(found)})")
    folder = output / part.folder
    folder.mkdir()
    try:
        export(part, folder, opset)
        check(part, folder, expected, half)
    except BaseException:
        shutil.rmtree(folder)
        raise


def run(part: Part) -> list[np.ndarray]:
    """What PyTorch gives for the part's inputs."""
    with torch.no_grad():
        values = part.module(*part.inputs.values())
    return [value.float().numpy() for value in (values if isinstance(values, (tuple, list)) else (values,))]


def to_half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def export(part: Part, folder: Path, opset: int) -> None:
    """Write `model.onnx`, its weights and `config.json`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "model.onnx"
        with torch.no_grad():
            torch.onnx.export(
                part.module,
                tuple(part.inputs.values()),
                str(path),  # a path of another type is taken for a buffer, which has a limit of 2 GB
                dynamo=False,
                opset_version=opset,
                input_names=list(part.inputs),
                output_names=part.outputs,
                dynamic_axes=part.axes,
            )
        consolidate(path, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(part.config, indent=2) + "\n")


def check(part: Part, folder: Path, expected: list[np.ndarray], half: bool) -> None:
    """Compare the file with what PyTorch gave in float32."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in part.inputs.items()})
    worst = 0.0
    for name, a, b in zip(part.outputs, found, expected, strict=True):
        error = float(np.abs(a.astype(np.float32) - b).max() / np.abs(b).max())
        if not error < TOLERANCE[half]:
            precision = " in half precision" if half else ""
            raise Mismatch(f"{name} differs from PyTorch by {error:.1e} of its largest value{precision}")
        worst = max(worst, error)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{part.folder}: {size / 1e9:.2f} GB, differs from PyTorch by at most {worst:.1e}", flush=True)


def consolidate(source: Path, target: Path) -> None:
    """Move a model, whose weights may be spread over many files beside it, to `target` and one `target`_data.

    Weights are copied one at a time; none is kept in memory.
    """
    model = onnx.load(str(source), load_external_data=False)
    data = target.with_name(target.name + "_data")
    with data.open("wb") as out:
        for tensor in model.graph.initializer:
            is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
            if not is_external and len(tensor.raw_data) < EXTERNAL:
                continue
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            offset = out.tell()
            if is_external:
                place = {entry.key: entry.value for entry in tensor.external_data}
                file = source.parent / place["location"]
                with file.open("rb") as weights:
                    shutil.copyfileobj(weights, out, length=1 << 24)
                file.unlink()
            else:
                out.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            entries = {"location": data.name, "offset": offset, "length": out.tell() - offset}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    target.write_bytes(model.SerializeToString())

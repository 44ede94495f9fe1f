#!/usr/bin/env python3
"""Exports a Stable Diffusion UNet with seeded random weights, to measure speed and memory on the real architecture.

    scripts/export_sd.py --random sd15 --output DIR [--opset 17] [--seed 0]

Writes DIR/unet/{model.onnx, model.onnx_data, config.json}, DIR/scheduler/scheduler_config.json and
DIR/model_index.json. All weights are in the one file `model.onnx_data`, each at a page boundary. The batch, height,
width and text length are open; `timestep` has one entry per sample. Weights are those of PyTorch's own
initialisation, with random normalisations, after `torch.manual_seed(seed)`: `random_unet` gives the same model again.

SD1.5 needs 3.4 GB of disk and 4.4 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
import warnings
from pathlib import Path

import onnx
import torch

ALIGNMENT = 4096

# What differs from the defaults of diffusers' UNet2DConditionModel in the published configs, and how many parameters
# the published models have.
ARCHITECTURES = {
    "sd15": (dict(sample_size=64, cross_attention_dim=768), 859_520_964),
}


def random_unet(architecture: str, seed: int = 0):
    """The architecture with PyTorch's initial weights, and normalisations that differ from ones and zeros.

    The legacy exporter would store all equal normalisations once, which a trained model does not have.
    """
    from diffusers import UNet2DConditionModel

    settings, parameters = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**settings).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if parameter.dim() == 1 and "norm" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert sum(p.numel() for p in unet.parameters()) == parameters
    return unet


def example_inputs(unet) -> dict[str, torch.Tensor]:
    """Small inputs for tracing: two samples, so that no dimension is one by accident."""
    return {
        "sample": torch.randn(2, unet.config.in_channels, 16, 16),
        "timestep": torch.tensor([1, 999]),
        "encoder_hidden_states": torch.randn(2, 7, unet.config.cross_attention_dim),
    }


def export(unet, path: Path, opset: int) -> None:
    """Trace with the legacy exporter; above 2 GB it writes one file per weight beside `path`."""

    def forward(sample, timestep, encoder_hidden_states):
        return type(unet).forward(unet, sample, timestep, encoder_hidden_states, return_dict=False)[0]

    unet.forward = forward
    inputs = example_inputs(unet)
    image = {0: "batch_size", 2: "height", 3: "width"}
    torch.onnx.export(
        unet,
        tuple(inputs.values()),
        str(path),  # a path of another type is taken for a buffer, which has a limit of 2 GB
        dynamo=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=["out_sample"],
        dynamic_axes={
            "sample": image,
            "timestep": {0: "batch_size"},
            "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
            "out_sample": image,
        },
    )


def consolidate(source: Path, target: Path) -> None:
    """Move a model whose weights are spread over many files beside it to `target` and one `target`_data.

    Weights are copied file to file, one at a time; none is kept in memory.
    """
    model = onnx.load(source, load_external_data=False)
    data = target.with_name(target.name + "_data")
    with data.open("wb") as out:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            file = source.parent / place["location"]
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            offset = out.tell()
            with file.open("rb") as weights:
                shutil.copyfileobj(weights, out, length=1 << 24)
            file.unlink()
            del tensor.external_data[:]
            entries = {"location": data.name, "offset": offset, "length": out.tell() - offset}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    target.write_bytes(model.SerializeToString())


def write_configs(unet, folder: Path) -> None:
    """The files by which a pipeline folder is recognised."""
    from diffusers import DDIMScheduler

    unet.save_config(folder / "unet")
    scheduler = DDIMScheduler(  # as published with SD1.5
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    scheduler.save_config(folder / "scheduler")
    index = {
        "_class_name": "OnnxStableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "OnnxRuntimeModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", required=True, choices=list(ARCHITECTURES), help="architecture to make")
    parser.add_argument("--output", required=True, type=Path, help="pipeline folder to write")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    warnings.simplefilter("ignore")
    started = time.monotonic()
    scratch = options.output / "unet.export"
    scratch.mkdir(parents=True, exist_ok=True)
    (options.output / "unet").mkdir(exist_ok=True)
    unet = random_unet(options.random, options.seed)
    export(unet, scratch / "model.onnx", options.opset)
    write_configs(unet, options.output)
    consolidate(scratch / "model.onnx", options.output / "unet" / "model.onnx")
    shutil.rmtree(scratch)
    size = sum(os.path.getsize(file) for file in (options.output / "unet").iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = time.monotonic() - started
    print(f"{options.output}: {size / 1e9:.2f} GB in {seconds:.0f} s, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()

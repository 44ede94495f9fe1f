#!/usr/bin/env python3
"""Exports a Stable Diffusion 1.x, 2.x or XL pipeline to ONNX, each part checked against PyTorch.

    scripts/export_sd.py --model DIR_OR_ID --output sd15-onnx            a diffusers folder, or a name on the model hub
    scripts/export_sd.py --model FILE.safetensors --output sd15-onnx     a single-file checkpoint [--config DIR]
    scripts/export_sd.py --random sdxl --output DIR                      the architecture with seeded random weights
    scripts/export_sd.py --random sd15 --only unet --output DIR          some parts alone

Writes a pipeline folder as `optimum-cli export onnx` does: `unet/`, `vae_encoder/`, `vae_decoder/`, `text_encoder/` and, for SDXL,
`text_encoder_2/`, each with `model.onnx`, `config.json` and all weights in `model.onnx_data`; `tokenizer/`, `scheduler/` and
`model_index.json`. Batch, height, width and (in the UNet) text length are open. Folders that optimum wrote work as well; these have
one timestep per sample and the moments of latents, which spares `ortdpo` some rewriting.

`--fp16` writes half precision: half the disk and memory. Training then computes in float32 from weights stored in half precision.

With `--random`, weights are PyTorch's own initialisation with random normalisations after `torch.manual_seed(seed)`, and captions
become single letters: CLIP's vocabulary comes with real weights only. The UNet of SD1.5 takes 3.4 GB of disk and 4.4 GB of memory,
SDXL's 10.3 GB of disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sd_export import parts, writing  # noqa: E402
from sd_export.architectures import ARCHITECTURES, RandomPipeline  # noqa: E402
from sd_export.sources import LoadedPipeline  # noqa: E402

NETWORKS = ["unet", "vae_encoder", "vae_decoder", "text_encoder", "text_encoder_2"]


def networks(source, only: list[str]):
    """The parts that are wanted, one at a time: each leaves memory before the next is made."""
    if "unet" in only:
        yield parts.unet(source.unet(), source.is_xl)
    vae_parts = [name for name in ("vae_encoder", "vae_decoder") if name in only]
    if vae_parts:
        vae = source.vae()
        for name in vae_parts:
            yield getattr(parts, name)(vae)
            vae = vae.float()
    for index in range(2 if source.is_xl else 1):
        if NETWORKS[3 + index] in only:
            yield parts.text_encoder(source.text_encoder(index), index, source.is_xl)


def write_rest(source, output: Path) -> None:
    """Tokenizers, schedule, and the file by which a pipeline folder is recognised."""
    for index in range(2 if source.is_xl else 1):
        folder = output / ("tokenizer" + ("_2" if index == 1 else ""))
        source.tokenizer(index, folder).save_pretrained(folder)
    scheduler = source.scheduler()
    scheduler.save_config(output / "scheduler")
    entries = {"scheduler": ["diffusers", type(scheduler).__name__], "unet": ["diffusers", "UNet2DConditionModel"]}
    entries |= {"vae": ["diffusers", "AutoencoderKL"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    entries["text_encoder"] = ["transformers", "CLIPTextModel"]
    if source.is_xl:
        entries["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        entries["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    name = "StableDiffusionXLPipeline" if source.is_xl else "StableDiffusionPipeline"
    index = {"_class_name": name, **dict(sorted(entries.items()))}
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="diffusers folder, name on the hub, or single-file checkpoint")
    source.add_argument("--random", choices=list(ARCHITECTURES), help="architecture to make with random weights")
    parser.add_argument("--config", help="diffusers folder that says what a single-file checkpoint is of")
    parser.add_argument("--output", required=True, type=Path, help="pipeline folder to write; must not exist, or be empty")
    parser.add_argument("--only", type=lambda text: text.split(","), default=NETWORKS, help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--fp16", action="store_true", help="half precision")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0, help="of --random")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in NETWORKS]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(NETWORKS)}")
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"--output: {options.output} is not empty")
    return options


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    source = RandomPipeline(options.random, options.seed) if options.random else LoadedPipeline(options.model, options.config)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed + 1000)
    for part in networks(source, options.only):
        writing.write_part(part, options.output, options.opset, options.fp16)
        del part
        gc.collect()
    write_rest(source, options.output)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.output}: {size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Exports a Stable Diffusion 1.x, 2.x or XL pipeline to ONNX, each part checked against PyTorch.

    scripts/export_sd.py --model DIR_OR_ID --output sd15-onnx            a diffusers folder, or a name on the model hub
    scripts/export_sd.py --model FILE.safetensors --output sd15-onnx     a single-file checkpoint [--config DIR]
    scripts/export_sd.py --model DIR --variant fp16 --output sd15-onnx   a folder of `.fp16.safetensors` files
    scripts/export_sd.py --random sdxl --output DIR                      the architecture with seeded random weights
    scripts/export_sd.py --random sd15 --only unet --output DIR          some parts alone

Writes a pipeline folder as `optimum-cli export onnx` does: `unet/`, `vae_encoder/`, `vae_decoder/`, `text_encoder/`
and, for SDXL, `text_encoder_2/`, each with `model.onnx`, `config.json` and all weights in `model.onnx_data`;
`tokenizer/`, `scheduler/` and `model_index.json`. Batch, height, width and (in the UNet) text length are open. Folders
that optimum wrote work as well; these have one timestep per sample and the moments of latents, which spares `ortdpo`
some rewriting.

`--fp16` writes half precision: half the disk and memory. Training then computes in float32 from weights stored in half
precision. A part that overflows or is too inexact in half precision is written in single precision beside the others,
and so are those named with `--fp32 PART[,PART]`; SDXL's VAE always is, unless its configuration says `"force_upcast":
false` as repaired ones do.

A single file does not say whether it predicts noise or velocity. Without `--config`, 2.x is taken for the 768-pixel
models, which predict velocity, and 1.x and XL for models that predict noise.

Networks are loaded and exported one at a time, and the folder bears its name only when all of it is written.

With `--random`, weights are PyTorch's own initialisation with random normalisations after `torch.manual_seed(seed)`,
and captions become single letters: CLIP's vocabulary comes with real weights only. The UNet of SD1.5 takes 3.4 GB of
disk and 4.4 GB of memory, SDXL's 10.3 GB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sd_export import parts, writing  # noqa: E402
from sd_export.architectures import ARCHITECTURES, RandomPipeline  # noqa: E402
from sd_export.checkpoints import fail  # noqa: E402
from sd_export.sources import LoadedPipeline  # noqa: E402

NETWORKS = ["unet", "vae_encoder", "vae_decoder", "text_encoder", "text_encoder_2"]
INDEX = "model_index.json"  # by which a pipeline folder is recognised


def makers(source) -> dict[str, Callable[[], parts.Part]]:
    """How the parts are made: anew for each export, which may change the weights' precision."""
    made = {
        "unet": lambda: parts.unet(source.unet(), source.is_xl),
        "vae_encoder": lambda: parts.vae_encoder(source.vae()),
        "vae_decoder": lambda: parts.vae_decoder(source.vae()),
        "text_encoder": lambda: parts.text_encoder(source.text_encoder(0), 0, source.is_xl),
    }
    if source.is_xl:
        made["text_encoder_2"] = lambda: parts.text_encoder(source.text_encoder(1), 1, True)
    return made


def write_network(name: str, make: Callable[[], parts.Part], is_xl: bool, folder: Path, options: argparse.Namespace) -> None:
    """Export a part, in half precision where that is asked for and possible."""
    part, reason = make(), None
    half = options.fp16 and name not in options.fp32
    if half and is_xl and part.config.get("force_upcast"):
        half, reason = False, "overflows in half precision, as its configuration says (force_upcast)"
    else:
        try:
            writing.write_part(part, folder, options.opset, half)
        except writing.Mismatch as error:
            reason = str(error)
            if not half:
                fail(f"{name}: {reason}. Try another --opset.")
            # The failed export's weights are rounded, and leave memory before they are loaded again.
            part = None
    if reason:
        print(f"{name}: {reason}; written in single precision", flush=True)
        try:
            writing.write_part(part or make(), folder, options.opset, False)
        except writing.Mismatch as error:
            fail(f"{name}: {error}. Try another --opset.")


@contextlib.contextmanager
def unfinished(output: Path):
    """A folder whose content is `output`'s in the end, or that is gone with all that was made for it."""
    # A folder that exists may be a mount point, which cannot be replaced: the work is done inside it.
    place = output if output.exists() else output.parent
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{output.name}.unfinished-"))
    try:
        yield folder
        if place == output:
            for file in sorted(folder.iterdir(), key=lambda file: file.name == INDEX):
                file.rename(output / file.name)
            folder.rmdir()
        else:
            mask = os.umask(0)
            os.umask(mask)
            folder.chmod(0o777 & ~mask)
            folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


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
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def part_names(text: str) -> list[str]:
    """Names of parts, separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(NETWORKS)}")
    return names


def parse(arguments: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="export_sd.py", description=__doc__, formatter_class=form)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="diffusers folder, name on the hub, or single-file checkpoint")
    source.add_argument("--random", choices=list(ARCHITECTURES), help="architecture to make with random weights")
    parser.add_argument("--config", help="diffusers folder that says what a single-file checkpoint is of")
    parser.add_argument("--variant", help="of the files in a diffusers folder: fp16 for unet/….fp16.safetensors")
    parser.add_argument("--output", required=True, type=Path, help="pipeline folder to write; must not exist, or be empty")
    listed = dict(type=part_names, metavar="PART[,PART]")
    parser.add_argument("--only", **listed, default=NETWORKS, help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--fp16", action="store_true", help="half precision")
    parser.add_argument("--fp32", **listed, default=[], help="parts in single precision beside --fp16")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0, help="of --random")
    options = parser.parse_args(arguments)
    if options.fp32 and not options.fp16:
        parser.error("--fp32: all parts are in single precision without --fp16")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: {options.output} is not a folder")
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"--output: {options.output} is not empty")
    return options


def write_pipeline(source, options: argparse.Namespace) -> None:
    with unfinished(options.output.resolve()) as folder:
        torch.manual_seed(options.seed + 1000)
        for name, make in makers(source).items():
            if name in options.only:
                write_network(name, make, source.is_xl, folder, options)
                gc.collect()
        write_rest(source, folder)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.simplefilter("ignore")
    started = time.monotonic()
    if options.random:
        source = RandomPipeline(options.random, options.seed)
    else:
        source = LoadedPipeline(options.model, options.config, options.variant)
    try:
        write_pipeline(source, options)
    except OSError as error:
        fail(f"{options.output}: cannot be written ({error}). Is there room, and may this user write there?")
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.output}: {size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is unfinished is removed
    try:
        main()
    except KeyboardInterrupt:
        print("export_sd.py: interrupted; nothing is left behind", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)

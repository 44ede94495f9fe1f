#!/usr/bin/env python3
"""Times image generation in diffusers and in ortdpo, side by side.

    scripts/bench_generate.py --ortdpo target/release/ortdpo --model models/tiny-sd [--images 64] [--batch 16] \
        [--steps 20] [--guidance 3] [--rounds 2] [--threads 2] [--json FILE]

Both sides have the same networks, prompts, sampler, steps, guidance and batch, and
write PNG files. They take turns, each in a process of its own; figures are the best round of each, in images a second,
without loading. diffusers runs eagerly in float32 on the folder's architectures; UNet and text encoder are filled in
from the ONNX files, the VAE keeps random weights, on which its time does not depend. Only pipelines of the Stable
Diffusion 1.x and 2.x kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))


def load_pipeline(folder: Path):
    """diffusers' pipeline with the weights of the ONNX files."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from weights import load_weights

    def config(part: str) -> dict:
        return json.loads((folder / part / "config.json").read_text())

    unet = UNet2DConditionModel.from_config(config("unet")).eval()
    load_weights(unet, folder / "unet" / "model.onnx")
    text = CLIPTextModel(CLIPTextConfig(**config("text_encoder"))).eval()
    vae = AutoencoderKL.from_config(config("vae_decoder")).eval()
    load_weights(text, folder / "text_encoder" / "model.onnx")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def measure_torch(options: argparse.Namespace, prompts: list[str]) -> float:
    """Images a second of diffusers."""
    import torch

    torch.set_num_threads(options.threads)
    pipeline = load_pipeline(options.model)
    pipeline.set_progress_bar_config(disable=True)
    settings = dict(num_inference_steps=options.steps, guidance_scale=options.guidance)
    pipeline(prompts[: options.batch], **settings | {"num_inference_steps": 2})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for start in range(0, len(prompts), options.batch):
            images = pipeline(prompts[start : start + options.batch], **settings).images
            for i, image in enumerate(images):
                image.save(f"{folder}/{start + i}.png")
        return len(prompts) / (time.perf_counter() - started)


def measure_ortdpo(options: argparse.Namespace, prompts: list[str]) -> float:
    """Images a second of ortdpo."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "prompts.txt"
        listed.write_text("\n".join(prompts) + "\n")
        command = [options.ortdpo, "generate", "--quiet", "--format", "json", "--model", options.model]
        command += ["--prompts", listed, "--output", f"{folder}/out", "--steps", options.steps]
        command += ["--guidance", options.guidance, "--batch", options.batch, "--threads", options.threads]
        return run_json(command)["images_per_second"]


def run_json(command: list) -> dict:
    """Run a command and parse the JSON object that it prints."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"bench_generate.py: `{command[0]}` failed with exit code {done.returncode}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="pipeline folder")
    parser.add_argument("--ortdpo", type=Path, help="the program; without it only diffusers is measured")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prompts = [f"a small apple {i}" for i in range(options.images)]
    if options.worker:
        warnings.simplefilter("ignore")
        print(json.dumps({"images_per_second": measure_torch(options, prompts)}))
        return
    rates: dict[str, list[float]] = {"diffusers": [], "ortdpo": []}
    for _ in range(options.rounds):
        rates["diffusers"].append(run_json([sys.executable, *sys.argv, "--worker"])["images_per_second"])
        if options.ortdpo:
            rates["ortdpo"].append(measure_ortdpo(options, prompts))
    best = {side: max(found) for side, found in rates.items() if found}
    print(f"{options.model}: {options.images} images in batches of {options.batch}, {options.steps} steps")
    for side, rate in best.items():
        print(f"  {side:10} {rate:6.2f} images/s   (rounds: {', '.join(f'{r:.2f}' for r in rates[side])})")
    if "ortdpo" in best:
        print(f"  ortdpo / diffusers: {best['ortdpo'] / best['diffusers']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()

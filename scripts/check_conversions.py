"""Checks what `ortdpo adapter` writes with its readers: diffusers, PEFT and ONNX Runtime.

names      For every layer that sd-scripts can train in the UNets and text encoders of Stable Diffusion 1.5 and XL, of
           their real sizes: the file that ortdpo writes in Kohya's form is read by diffusers' own converter, which
           must give the same layers, factors and alphas; converted back, every tensor has the same bytes.
pipelines  Random adapters on small pipelines (models/tiny-sd and the test fixtures'): converted, resized and merged
           files load in diffusers without a missing or unexpected key, have their scales there, and change the noise
           prediction as they do when ortdpo merges them into ONNX weights.
onnx       ONNX Runtime reads the .onnx_adapter with the same numbers, and predicts the same with the exported base.
images     From the same noise `ortdpo generate` and diffusers make the same images with an adapter, in a few steps of DDIM.
full       Whole weights: a folder as full fine-tuning leaves it loads in diffusers, and merged they predict the same.

Usage: python scripts/check_conversions.py [--ortdpo target/release/ortdpo]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    logging,
)
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "fixtures")]

import bench_generate  # noqa: E402
import optimum_sd  # noqa: E402
import optimum_sdxl  # noqa: E402
from structures import shapes_only  # noqa: E402

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv_shortcut"]
TEXT_TARGETS = ["q_proj", "v_proj", "out_proj", "fc1"]
# Classes below which sd-scripts looks for layers: always the first, for 3x3 convolutions (conv_dim) the others.
TRAINED_BY_SD_SCRIPTS = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")


class Program:
    """The ortdpo binary."""

    def __init__(self, path: Path):
        self.path = path.resolve()

    def __call__(self, *arguments) -> str:
        done = subprocess.run([self.path, "--quiet", *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout


class Warnings(logging.logging.Handler):
    """Collects what diffusers complains of: it warns of missing and unexpected keys."""

    def __init__(self):
        super().__init__(level=logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def load(pipeline, path: Path) -> None:
    """Load an adapter file as users do; any complaint is an error."""
    complaints = Warnings()
    logging.get_logger("diffusers").addHandler(complaints)
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="trained")
    logging.get_logger("diffusers").removeHandler(complaints)
    # Not about keys: the readers of Kohya's form look whether the adapter is of one they know.
    assert not complaints.texts, complaints.texts


def loaded(pipeline) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """A, B and scale of every adapted module, with its component."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipeline, part, torch.nn.Module()).named_modules():
            if isinstance(module, LoraLayer) and "trained" in module.lora_A:
                a, b = module.lora_A["trained"].weight.detach(), module.lora_B["trained"].weight.detach()
                found[f"{part}.{name}"] = (a, b, module.scaling["trained"])
    return found


# --- names ---


def layers(model: torch.nn.Module, trained: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """The linear layers and convolutions below modules of these classes, by path, as sd-scripts collects them."""
    found = {}
    for outer_name, outer in model.named_modules():
        if outer.__class__.__name__ in trained:
            for name, module in outer.named_modules():
                if module.__class__.__name__ in ("Linear", "LoRACompatibleLinear", "Conv2d", "LoRACompatibleConv"):
                    found[f"{outer_name}.{name}".strip(".")] = module
    return found


def rank_one(module: torch.nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs, *kernel = module.weight.shape
    ones = [1] * len(kernel)
    return (
        torch.randn(1, inputs, *kernel, generator=generator).half(),
        torch.randn(outputs, 1, *ones, generator=generator).half(),
    )


def text_encoder(width: int, depth: int) -> CLIPTextModel:
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(hidden_size=width, num_hidden_layers=depth, intermediate_size=4 * width))


def check_names(run: Program, architecture: str, folder: Path) -> None:
    unet = shapes_only(architecture)
    parts = {"unet": layers(unet, TRAINED_BY_SD_SCRIPTS)}
    text = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
    parts["text_encoder"] = layers(text_encoder(768, 12), text)
    if architecture == "sdxl":
        parts["text_encoder_2"] = layers(text_encoder(1280, 32), text)
    generator = torch.Generator().manual_seed(1)
    tensors, alphas, config = {}, {}, {}
    for part, modules in parts.items():
        for number, (path, module) in enumerate(modules.items()):
            a, b = rank_one(module, generator)
            tensors |= {f"{part}.{path}.lora_A.weight": a, f"{part}.{path}.lora_B.weight": b}
            alphas[f"{part}.{path}"] = 0.5 if number % 2 else 1.0
        pattern = {path: 0.5 for number, path in enumerate(modules) if number % 2}
        config |= {f"{part}.r": 1, f"{part}.lora_alpha": 1.0, f"{part}.alpha_pattern": pattern}
    ours = folder / f"{architecture}.safetensors"
    save_file(tensors, ours, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    for naming in ["auto"] + ["diffusers"] * (architecture == "sdxl"):
        kohya, back = folder / f"{architecture}-{naming}.safetensors", folder / "back.safetensors"
        run("adapter", "convert", ours, kohya, "--to", "kohya", "--naming", naming)
        run("adapter", "convert", kohya, back, "--to", "diffusers", "--replace")
        returned = load_file(back)
        assert returned.keys() == tensors.keys(), returned.keys() ^ tensors.keys()
        for key, value in tensors.items():
            assert value.dtype == returned[key].dtype and torch.equal(value, returned[key]), key
        read_by_diffusers(architecture, kohya, unet, tensors, alphas)
        ldm = any("input_blocks" in key for key in load_file(kohya))
        assert ldm == (architecture == "sdxl" and naming == "auto")
        counts = ", ".join(f"{len(modules)} of {part}" for part, modules in parts.items())
        print(f"names: {architecture}, {'LDM' if ldm else 'diffusers'} names: {counts}")


def read_by_diffusers(architecture, kohya, unet, tensors, alphas) -> None:
    """diffusers' converter of Kohya's form gives names of PEFT after its own next step, which is part of loading."""
    if architecture == "sdxl":
        state, read_alphas = StableDiffusionXLPipeline.lora_state_dict(
            kohya.parent, weight_name=kohya.name, unet_config=unet.config
        )
    else:
        state, read_alphas = StableDiffusionPipeline.lora_state_dict(kohya.parent, weight_name=kohya.name)
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        if own and part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        elif own:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        found |= {f"{part}.{key}": value for key, value in own.items()}
    assert found.keys() == tensors.keys(), sorted(found.keys() ^ tensors.keys())[:9]
    for key, value in tensors.items():
        assert torch.equal(found[key], value), key
    assert len(read_alphas) == len(alphas) and sum(read_alphas.values()) == sum(alphas.values())


# --- pipelines and onnx ---


def save_random(pipeline, path: Path, seed: int, rank: int, alpha: float) -> None:
    """An adapter of all networks, as diffusers' training scripts save it."""
    layers, adapted = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipeline, part, None)
        if model is None:
            continue
        targets = UNET_TARGETS if part == "unet" else TEXT_TARGETS
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                size = 1 / parameter[0].numel() ** 0.5 if "lora_A" in name else 0.2
                parameter.data = size * torch.randn(parameter.shape, generator=generator)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
        adapted[part] = model
    pipeline.save_lora_weights(path.parent, weight_name=path.name, **layers, **_collate_lora_metadata(adapted))


def inputs(unet) -> dict[str, np.ndarray]:
    config, random = unet.config, np.random.default_rng(3)
    side, sdxl = config.sample_size, config.addition_embed_type == "text_time"
    # An export of optimum takes one timestep for all samples.
    made = {
        "sample": random.standard_normal((2, config.in_channels, side, side), np.float32),
        "timestep": np.array(500, np.float32),
        "encoder_hidden_states": random.standard_normal((2, 16, config.cross_attention_dim), np.float32),
    }
    if sdxl:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        made["text_embeds"] = random.standard_normal((2, pooled), np.float32)
        made["time_ids"] = np.array([[64, 64, 0, 0, 64, 64]] * 2, np.float32)
    return made


def predict_torch(unet, given) -> np.ndarray:
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}
    added = {name: tensors.pop(name) for name in ("text_embeds", "time_ids") if name in tensors}
    with torch.no_grad():
        return unet(**tensors, added_cond_kwargs=added or None).sample.numpy()


def predict_onnx(folder: Path, given, adapter: Path | None = None) -> np.ndarray:
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "unet" / "model.onnx", quiet)
    options = onnxruntime.RunOptions()
    if adapter is not None:
        weights = onnxruntime.LoraAdapter()
        weights.Load(str(adapter))
        options.add_active_adapter(weights)
    given = dict(given)
    timestep = next(i for i in session.get_inputs() if i.name == "timestep")
    if timestep.type == "tensor(int64)":
        given["timestep"] = given["timestep"].astype(np.int64)
    if timestep.shape:
        given["timestep"] = np.broadcast_to(given["timestep"], (2,))
    return session.run(None, given, options)[0]


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def check_pipeline(run: Program, name: str, model: Path, build, folder: Path) -> None:
    first, second = folder / f"{name}-first.safetensors", folder / f"{name}-second.safetensors"
    save_random(build(), first, seed=5, rank=4, alpha=8)
    save_random(build(), second, seed=6, rank=2, alpha=2)
    files = {key: folder / f"{name}-{key}.safetensors" for key in ("kohya", "back", "smaller", "merged", "half")}
    run("adapter", "convert", first, files["kohya"], "--to", "kohya", "--naming", "diffusers")
    run("adapter", "convert", files["kohya"], files["back"], "--to", "diffusers")
    run("adapter", "convert", first, files["half"], "--to", "kohya", "--naming", "diffusers", "--dtype", "f16")
    run("adapter", "resize", first, files["smaller"], "--energy", "0.8")
    run("adapter", "merge", f"{first}:0.7", f"{second}:-0.5", files["merged"])
    plain = build()
    given = inputs(plain.unet)
    before = predict_torch(plain.unet, given)
    original = build()
    load(original, first)
    expected, after = loaded(original), predict_torch(original.unet, given)
    assert off(after, before) > 1e-2, "the adapter does nothing"
    print(f"{name}: {len(expected)} modules, the adapter changes the prediction by {off(after, before):.2g}")
    for key, file in files.items():
        pipeline = build()
        load(pipeline, file)
        if key in ("kohya", "back"):
            found = loaded(pipeline)
            assert found.keys() == expected.keys()
            for module, (a, b, scale) in expected.items():
                assert torch.equal(found[module][0], a) and torch.equal(found[module][1], b), module
                assert found[module][2] == scale, module
        by_diffusers = predict_torch(pipeline.unet, given)
        if key == "merged":
            both = build()
            both.load_lora_weights(first.parent, weight_name=first.name, adapter_name="first")
            both.load_lora_weights(second.parent, weight_name=second.name, adapter_name="second")
            both.set_adapters(["first", "second"], [0.7, -0.5])
            error = off(by_diffusers, predict_torch(both.unet, given))
            assert error < 1e-5, error
            print(f"  merged: off from both adapters in diffusers by {error:.1e}")
        merged = folder / f"{name}-{key}"
        run("merge", "--model", model, "--adapter", file, "--output", merged)
        error = off(by_diffusers, predict_onnx(merged, given))
        assert error < 2e-5, error
        print(f"  {key}: loads in diffusers, off from ortdpo by {error:.1e}")
    check_onnx(run, name, model, first, expected, given, folder)
    check_full(run, name, model, build(), given, folder)


def check_full(run: Program, name: str, model: Path, pipeline, given, folder: Path) -> None:
    """Whole weights that differ from the model's, in the folder that full fine-tuning leaves."""
    tuned = folder / f"{name}-full"
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    pipeline.unet.save_pretrained(tuned)
    loaded_again, report = UNet2DConditionModel.from_pretrained(tuned, output_loading_info=True)
    assert not any(report.values()), report
    run("merge", "--model", model, "--adapter", tuned, "--output", folder / f"{name}-full-merged")
    error = off(predict_torch(loaded_again, given), predict_onnx(folder / f"{name}-full-merged", given))
    assert error < 2e-5, error
    print(f"  full: all weights, off from ortdpo by {error:.1e}")


def check_images(run: Program, name: str, model: Path, build, folder: Path) -> None:
    """Images of both programs from the same noise; levels of 255 may differ by one where rounding decides."""
    adapter, out = folder / f"{name}-first.safetensors", folder / f"{name}-images"
    steps, guidance, prompt = 4, 3.0, "ab cd"
    noise = folder / f"{name}-noise.safetensors"
    settings = ("--steps", steps, "--guidance", guidance, "--sampler", "ddim", "--prompt", prompt)
    run("generate", "--model", model, "--adapter", adapter, *settings, "--noise", noise, "--output", out)
    pipeline = build()
    load(pipeline, adapter)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(json.loads((model / "scheduler" / "scheduler_config.json").read_text()))
    latents = load_file(noise)["00000-0"][None]
    theirs = pipeline(
        prompt, num_inference_steps=steps, guidance_scale=guidance, latents=latents, output_type="np"
    ).images[0]
    ours = np.asarray(Image.open(out / "images" / "00000-0.png")).astype(int)
    difference = np.abs(ours - np.round(255 * theirs).astype(int))
    assert ours.std() > 5, "the image shows nothing"
    assert difference.max() <= 1 and difference.mean() < 0.01, (difference.max(), difference.mean())
    print(f"  images: {ours.shape[1]}x{ours.shape[0]}, {(difference > 0).sum()} of {ours.size} levels differ, by 1 at most")


def check_onnx(run: Program, name: str, model: Path, first: Path, expected, given, folder: Path) -> None:
    adapter, base = folder / f"{name}.onnx_adapter", folder / f"{name}-base"
    run("adapter", "convert", first, adapter, "--to", "onnx")
    run("adapter", "export-base", model, base, "--adapter", first)
    read = {}
    for file in folder.glob(f"{name}*.onnx_adapter"):
        read |= onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    assert len(read) == 2 * len(expected)
    for module, (a, b, scale) in expected.items():
        for side, tensor in (("lora_A", a), ("lora_B", b * scale)):
            value = read[f"{module}.{side}"].numpy()
            tensor = tensor.T if tensor.ndim == 2 else tensor
            assert np.array_equal(value, tensor.numpy()), f"{module}.{side}"
    of_unet = folder / f"{name}.unet.onnx_adapter"
    without, plain = predict_onnx(base, given), predict_onnx(model, given)
    assert np.array_equal(without, plain), "the base computes something else without an adapter"
    error = off(predict_onnx(base, given, of_unet), predict_onnx(folder / f"{name}-back", given))
    assert error < 2e-5, error
    print(f"  onnx: {len(read)} parameters read by ONNX Runtime, off from merged weights by {error:.1e}")


def check_ldm(run: Program, folder: Path) -> None:
    """A small UNet with as many layers per block as SDXL's, whose numbering Stability's names presume."""

    def build():
        with tempfile.TemporaryDirectory() as scratch:
            pipeline = optimum_sdxl.tiny_pipeline(Path(scratch))
        torch.manual_seed(4)
        config = dict(pipeline.unet.config) | {"layers_per_block": 2}
        pipeline.register_modules(unet=UNet2DConditionModel.from_config(config).eval())
        return pipeline

    first, ldm = folder / "ldm-first.safetensors", folder / "ldm.safetensors"
    save_random(build(), first, seed=7, rank=2, alpha=3)
    run("adapter", "convert", first, ldm, "--to", "kohya", "--naming", "ldm")
    original, converted = build(), build()
    load(original, first)
    load(converted, ldm)
    expected, found = loaded(original), loaded(converted)
    assert found.keys() == expected.keys()
    for module, (a, b, scale) in expected.items():
        assert torch.equal(found[module][0], a) and torch.equal(found[module][1], b), module
        assert found[module][2] == scale, module
    given = inputs(original.unet)
    assert np.array_equal(predict_torch(original.unet, given), predict_torch(converted.unet, given))
    print(f"ldm: {len(found)} modules load in diffusers, the same prediction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ortdpo", type=Path, default=ROOT / "target" / "release" / "ortdpo")
    run = Program(parser.parse_args().ortdpo)
    logging.set_verbosity_warning()

    def tiny(module):
        def build():
            with tempfile.TemporaryDirectory() as scratch:
                return module.tiny_pipeline(Path(scratch))

        return build

    fixtures = ROOT / "tests" / "fixtures"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for architecture in ("sd15", "sdxl"):
            check_names(run, architecture, folder)
        check_pipeline(run, "sd", fixtures / "optimum-sd", tiny(optimum_sd), folder)
        check_images(run, "sd", fixtures / "optimum-sd", tiny(optimum_sd), folder)
        check_pipeline(run, "xl", fixtures / "optimum-sdxl", tiny(optimum_sdxl), folder)
        check_images(run, "xl", fixtures / "optimum-sdxl", tiny(optimum_sdxl), folder)
        model = ROOT / "models" / "tiny-sd"
        check_pipeline(run, "tiny-sd", model, lambda: bench_generate.load_pipeline(model), folder)
        check_ldm(run, folder)


if __name__ == "__main__":
    main()

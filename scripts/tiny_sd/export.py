"""Writes models/tiny-sd in the layout that `optimum-cli export onnx` gives for Stable Diffusion.

Differences from optimum's own export, all on purpose: the UNet takes one `timestep` per sample, and the VAE encoder
gives `latent_parameters` (mean and log-variance joined on the channels), so that a trainer can draw latents itself.
Every part is compared with PyTorch before it is kept.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers.models.attention_processor import AttnProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sd_export.parts import VaeDecoder, VaeEncoder, plain_config  # noqa: E402

from models import LATENT_SHAPE, TEXT_WIDTH, load_generator, load_vae, sampling_schedule
from tokenizer import CONTEXT
from world import prompt_splits

OPSET = 17
TOLERANCE = 2e-4  # of the largest value; fp32 rounding through some 700 nodes


def denoiser(unet):
    """The UNet itself, not a module around it, so that its weights keep their names; one timestep per sample."""
    unet.set_attn_processor(AttnProcessor())  # plain MatMul and Softmax
    forward = unet.forward
    unet.forward = lambda sample, timestep, states: forward(sample, timestep, states, return_dict=False)[0]
    return unet


class TextEncoder(torch.nn.Module):
    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids):
        out = self.text_encoder(input_ids)
        return out.last_hidden_state, out.pooler_output


def export_part(folder: Path, module, config, inputs: dict, outputs: list[str], axes: dict | None = None) -> None:
    """Export `module` and check it against PyTorch. `axes` names the dynamic leading axes of a value, else ("batch",)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    axes = axes or dict.fromkeys([*inputs, *outputs], ("batch",))
    arguments = tuple(inputs.values())
    with torch.no_grad():
        torch.onnx.export(
            module, arguments, str(path), input_names=list(inputs), output_names=outputs, opset_version=OPSET,
            dynamo=False, dynamic_axes={name: dict(enumerate(names)) for name, names in axes.items()},
        )
        expected = module(*arguments)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    state_output_shapes(path, {name: value.shape for name, value in zip(outputs, expected)}, axes)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for name, a, b in zip(outputs, found, expected):
        b = b.numpy()
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < TOLERANCE, f"{folder.name}: {name} differs from PyTorch by {error:.1e} of its largest value"
        print(f"{folder.name}: {name} {list(a.shape)}, differs from PyTorch by {error:.1e}", flush=True)
    write_json(folder / "config.json", config)


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def state_output_shapes(path: Path, shapes: dict, axes: dict) -> None:
    """Write the outputs' real shapes into the file; the exporter invents symbols for axes that are fixed."""
    model = onnx.load(str(path))
    for output in model.graph.output:
        names = axes[output.name]
        dims = [*names, *shapes[output.name][len(names):]]
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, dims))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def save_tokenizer(tokenizer, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "added_tokens.json").unlink(missing_ok=True)


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export_pipeline(work: Path, folder: Path, tokenizer, name: str) -> None:
    """Write the whole pipeline folder from checkpoint `name`."""
    torch.manual_seed(0)
    vae = load_vae(work)
    unet, text_encoder = load_generator(work, tokenizer, name)
    latents = torch.randn(2, *LATENT_SHAPE)
    states = torch.randn(2, CONTEXT, TEXT_WIDTH)
    ids = torch.randint(0, len(tokenizer) - 2, (2, CONTEXT))
    ids[:, 9:] = tokenizer.eos_token_id
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1

    unet_config = plain_config(unet)
    unet_inputs = {"sample": latents, "timestep": torch.tensor([17, 801]), "encoder_hidden_states": states}
    export_part(folder / "unet", denoiser(unet), unet_config, unet_inputs, ["out_sample"])
    text_config = {**text_encoder.config.to_diff_dict(), "architectures": ["CLIPTextModel"]}
    text_outputs = ["last_hidden_state", "pooler_output"]
    export_part(folder / "text_encoder", TextEncoder(text_encoder), text_config, {"input_ids": ids}, text_outputs)
    vae_config = plain_config(vae)
    export_part(folder / "vae_encoder", VaeEncoder(vae), vae_config, {"sample": pictures}, ["latent_parameters"])
    export_part(folder / "vae_decoder", VaeDecoder(vae), vae_config, {"latent_sample": latents}, ["sample"])

    save_tokenizer(tokenizer, folder / "tokenizer")
    write_json(folder / "scheduler/scheduler_config.json", sampling_schedule())
    write_json(folder / "model_index.json", MODEL_INDEX)
    for split, captions in prompt_splits().items():
        path = folder / f"prompts/{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(captions) + "\n")

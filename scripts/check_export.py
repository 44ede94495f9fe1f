#!/usr/bin/env python3
"""Checks scripts/export_sd.py: exports from folders and single files, half precision, and what it says of mistakes.

    scripts/check_export.py

Narrow pipelines of Stable Diffusion 1.x, 2.x and XL are saved as diffusers folders and as single files in Stability's
layout. Every weight of every exported network must be the same, by bytes, from both; the 2.x text encoder also brings
the last layer that its single file has and diffusers leaves out. A VAE that overflows in half precision must be written
in single precision. Every mistake must end in one line that says what is wrong, with nothing left behind. Takes a minute
and a half.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path, PurePosixPath

warnings.simplefilter("ignore")

import numpy as np
import onnx
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "fixtures")]
import export_sd  # noqa: E402
from ldm_names import names, with_weights  # noqa: E402
from sd_export import writing  # noqa: E402
from sd_export.architectures import ARCHITECTURES, VAE, letters_tokenizer, vary  # noqa: E402

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
NETWORKS = ("unet", "vae_encoder", "vae_decoder", "text_encoder", "text_encoder_2")


# --- small pipelines -------------------------------------------------------------------------------------------------------


def text_encoder(settings: dict, width: int, index: int, is_xl: bool):
    narrow = dict(hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, projection_dim=width)
    if settings["num_hidden_layers"] != 23:  # 2.x's single file is known by the number of its last layer
        narrow["num_hidden_layers"] = 2
    config = CLIPTextConfig(**{**settings, **narrow}, max_position_embeddings=77, eos_token_id=2)
    return vary((CLIPTextModel, CLIPTextModelWithProjection)[is_xl and index == 1](config))


def pipeline(name: str, folder: Path):
    """The architecture of that name with narrow layers, as diffusers holds it."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    widths = (32, 48) if architecture.is_xl else (32,)
    settings = {**architecture.unet[0], "cross_attention_dim": sum(widths)}
    levels = len(settings.get("block_out_channels", (0,) * 4))
    settings |= dict(block_out_channels=(32, 64, 64, 64)[:levels], attention_head_dim=8)
    if architecture.is_xl:
        settings |= dict(transformer_layers_per_block=(1, 2, 3))
        settings |= dict(addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + widths[1])
    vae = {**VAE, **architecture.vae, "block_out_channels": (32, 32, 64, 64)}
    texts = [text_encoder(s, w, i, architecture.is_xl) for i, (s, w) in enumerate(zip(architecture.text, widths))]
    tokenizers = [letters_tokenizer(folder / f"letters-{i}", pad=None) for i in range(len(texts))]
    parts = dict(
        unet=vary(UNet2DConditionModel(**settings)),
        vae=vary(AutoencoderKL(**vae)),
        text_encoder=texts[0],
        tokenizer=tokenizers[0],
        scheduler=DDIMScheduler(**architecture.schedule),
    )
    if architecture.is_xl:
        return StableDiffusionXLPipeline(**parts, text_encoder_2=texts[1], tokenizer_2=tokenizers[1])
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


# --- Stability's layout ----------------------------------------------------------------------------------------------------


def unet_of(unet) -> dict[str, torch.Tensor]:
    modules = names(unet, with_weights(unet))
    return {UNET + f"{modules[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in unet.state_dict().items()}


def vae_of(vae) -> dict[str, torch.Tensor]:
    last = len(vae.config.block_out_channels) - 1
    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.to_out\.0", "attn_1.proj_out"),
        (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    ]
    found = {}
    for key, value in vae.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        # What diffusers holds as matrices are convolutions there.
        is_matrix = ".attn_1." in key and value.dim() == 2
        found[FIRST_STAGE + key] = value[:, :, None, None] if is_matrix else value
    return found


def clip_of(encoder, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + "transformer." + key: value for key, value in encoder.state_dict().items()}


def open_clip_of(encoder, prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's names, with queries, keys and values in one matrix."""
    state = encoder.state_dict()
    rules = [
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn", "attn"),
    ]
    found = {}
    for key, value in state.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", f"{which}_proj")] for which in "qkv"])
            key = key.replace(".q_proj.", ".in_proj_")
        for old, new in rules:
            key = key.replace(old, new)
        if key == "text_projection.weight":
            key, value = "text_projection", value.T
        found[prefix + key] = value.contiguous()
    return found


def with_last_layer(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stable Diffusion 2's file has the 24th layer of its text encoder, whose result nobody uses, and its projection."""
    last = {k.replace(".22.", ".23."): torch.randn_like(v) for k, v in text.items() if ".resblocks.22." in k}
    width = next(v for k, v in text.items() if k.endswith("ln_final.weight")).shape[0]
    return text | last | {"cond_stage_model.model.text_projection": torch.randn(width, width)}


def single_file(name: str, pipe) -> dict[str, torch.Tensor]:
    if name == "sdxl":
        text = clip_of(pipe.text_encoder, "conditioner.embedders.0.")
        text |= open_clip_of(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    elif name == "sd21":
        text = with_last_layer(open_clip_of(pipe.text_encoder, "cond_stage_model.model."))
    else:
        text = clip_of(pipe.text_encoder, "cond_stage_model.")
    state = unet_of(pipe.unet) | vae_of(pipe.vae) | text
    return {key: value.clone().contiguous() for key, value in state.items()}


# --- exports ---------------------------------------------------------------------------------------------------------------


def export(output: Path, *arguments) -> str:
    """Run the exporter; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        export_sd.main([str(part) for part in (*arguments, "--output", output)])
    return printed.getvalue()


def weights(folder: Path) -> list[tuple[str, np.ndarray]]:
    model = onnx.load(str(folder / "model.onnx"))
    return [(t.name, onnx.numpy_helper.to_array(t)) for t in model.graph.initializer]


def compare(a: Path, b: Path) -> int:
    """How many weights there are in `b`'s networks, all of which equal those of `a`."""
    count = 0
    for network in (name for name in NETWORKS if (b / name).exists()):
        for (name, x), (other, y) in zip(weights(a / network), weights(b / network), strict=True):
            assert name == other and x.dtype == y.dtype and x.tobytes() == y.tobytes(), f"{network}: {name} differs"
            count += 1
    return count


def same_from_files(name: str, scratch: Path) -> None:
    """Export a pipeline from its folder and its single files."""
    folder = scratch / name
    pipe = pipeline(name, folder)
    pipe.save_pretrained(folder / "diffusers")
    state = single_file(name, pipe)
    save_file(state, folder / "model.safetensors")
    networks = ["--only", "unet,text_encoder"] if name == "sd21" else []  # the VAE is that of 1.x
    export(folder / "onnx", "--model", folder / "diffusers", *networks)
    files = {"model.safetensors": networks}
    if name == "sd15":
        torch.save({"state_dict": state, "global_step": 1}, folder / "model.ckpt")
        torch.save(state, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
        files |= {"model.ckpt": ["--only", "vae_encoder,text_encoder"], "legacy.ckpt": ["--only", "vae_decoder"]}
    for file, only in files.items():
        output = folder / f"from-{file}"
        export(output, "--model", folder / file, "--config", folder / "diffusers", *only)
        print(f"{name}: {compare(folder / 'onnx', output)} weights of {file} equal those of the folder", flush=True)


def variants(scratch: Path) -> None:
    """A folder with nothing but half-precision files, as people download them, is exported when that variant is named."""
    folder, only = scratch / "variant", ["--only", "unet,text_encoder"]
    pipe = StableDiffusionPipeline.from_pretrained(scratch / "sd15/diffusers", torch_dtype=torch.float16, safety_checker=None)
    pipe.save_pretrained(folder, variant="fp16")
    refused(scratch, "add --variant fp16", "--model", folder, *only)
    refused(scratch, "--variant goes with", "--model", scratch / "sd15/model.safetensors", "--variant", "fp16")
    export(scratch / "from-variant", "--model", folder, "--variant", "fp16", *only)
    half = {name: w for name, w in weights(scratch / "from-variant/unet")}
    for name, whole in weights(scratch / "sd15/onnx/unet"):
        if whole.dtype == np.float32 and whole.ndim > 1:
            assert half[name].dtype == np.float32 and np.array_equal(half[name], whole.astype(np.float16)), name
    print("a folder of .fp16.safetensors files gives the rounded weights", flush=True)


def half_precision(scratch: Path) -> None:
    """A decoder that overflows is written in single precision, the encoder beside it in half; SDXL's VAE never is in half."""
    source = scratch / "sd15/diffusers"
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(1e5)
        vae.post_quant_conv.bias.mul_(1e5)
        vae.decoder.conv_in.weight.mul_(1e-5)
    large = scratch / "overflows"
    shutil.copytree(source, large)
    vae.save_pretrained(large / "vae")
    only = ["--model", large, "--only", "vae_encoder,vae_decoder"]
    printed = export(scratch / "half", *only, "--fp16")
    line = "vae_decoder: overflows in half precision (nan); written in single precision\n"
    assert line in printed, printed
    export(scratch / "single", *only)
    assert types(scratch / "half") == {"vae_encoder": "float16", "vae_decoder": "float32"}
    shutil.rmtree(scratch / "half/vae_encoder")
    assert compare(scratch / "single", scratch / "half") > 0
    print(line, end="")
    only = ["--model", scratch / "sdxl/diffusers", "--only", "vae_decoder,text_encoder,text_encoder_2"]
    print(export(scratch / "xl", *only, "--fp16", "--fp32", "text_encoder").split("\n")[0], flush=True)
    assert types(scratch / "xl") == {"vae_decoder": "float32", "text_encoder": "float32", "text_encoder_2": "float16"}


def types(folder: Path) -> dict[str, str]:
    """The type of each network's weights."""
    found = {name: {str(w.dtype) for _, w in weights(folder / name) if w.dtype.kind == "f" and w.ndim > 1}
             for name in NETWORKS if (folder / name).exists()}
    return {name: kinds.pop() for name, kinds in found.items()}


# --- mistakes --------------------------------------------------------------------------------------------------------------


def refused(scratch: Path, words: str, *arguments, output: Path | None = None) -> None:
    """The exporter must end with one line that has `words` in it, and leave nothing behind."""
    before = sorted(scratch.rglob("*"))
    output = output or scratch / "new/refused"
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            export_sd.main([str(part) for part in (*arguments, "--output", output)])
        except SystemExit as end:
            message = end.code if isinstance(end.code, str) else errors.getvalue().strip().split("\n")[-1]
        else:
            raise AssertionError(f"{arguments} were accepted")
    assert words in message and "\n" not in message, message
    assert message.startswith("export_sd.py: ") or "error: " in message, message
    assert sorted(scratch.rglob("*")) == before, "something was left behind"
    print(f"refused: {message.replace(str(scratch), '…')}", flush=True)


def damaged_files(scratch: Path) -> None:
    """Files that are not what their names say."""
    state = {"state_dict": {"a": torch.zeros(1000)}, "callbacks": PurePosixPath("a")}
    contents = {
        "empty.ckpt": (b"", "is empty"),
        "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n", "Git LFS pointer"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "page.ckpt": (b"<!doctype html>\n<html><body>Sign in</body></html>", "web page"),
        "page.safetensors": (b"\n<html></html>", "web page"),
        "answer.safetensors": (b'{"error": "Access to model is restricted"}', "JSON"),
        "text.ckpt": (b"anything", "neither"),
        "renamed.safetensors": ((scratch / "sd15/model.ckpt").read_bytes(), "Rename it to renamed.ckpt"),
        "renamed.ckpt": ((scratch / "sd15/model.safetensors").read_bytes(), "Rename it to renamed.safetensors"),
    }
    for name, kind in {"model.safetensors": "cut", "model.ckpt": "cut", "legacy.ckpt": "cut-legacy"}.items():
        whole = (scratch / "sd15" / name).read_bytes()
        contents[kind + Path(name).suffix] = (whole[: len(whole) // 2], "Download it again, completely")
    for new in (True, False):
        held = io.BytesIO()
        torch.save(state, held, _use_new_zipfile_serialization=new)
        contents[f"objects-{new}.ckpt"] = (held.getvalue(), "holds Python objects (pathlib")
    for name, (content, words) in contents.items():
        file = scratch / name
        file.write_bytes(content)
        refused(scratch, words, "--model", file, "--config", scratch / "sd15/diffusers")
        file.unlink()


def other_models(scratch: Path) -> None:
    """Checkpoints and folders of models that cannot be trained."""
    state = load_file(scratch / "sd15/model.safetensors")
    first = UNET + "input_blocks.0.0.weight"
    xl = {k: v for k, v in load_file(scratch / "sdxl/model.safetensors").items() if not k.startswith("conditioner")}
    others = {
        "inpainting": (state | {first: torch.zeros(32, 9, 3, 3)}, "an inpainting model"),
        "refiner": (xl | {"conditioner.embedders.0.model.positional_embedding": torch.zeros(77, 32)}, "refiner"),
        "sd3": ({UNET + "joint_blocks.0.x_block.mlp.fc1.weight": torch.zeros(4, 4)}, "Stable Diffusion 3"),
        "lora": ({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 4)}, "LoRA"),
        "no-vae": ({k: v for k, v in state.items() if not k.startswith(FIRST_STAGE)}, "no VAE"),
        "no-text": (xl, "no text encoder"),
    }
    for name, (tensors, words) in others.items():
        file = scratch / f"{name}.safetensors"
        save_file(tensors, file)
        refused(scratch, words, "--model", file, "--config", scratch / "sd15/diffusers")
        file.unlink()
    folder = scratch / "inpainting"
    shutil.copytree(scratch / "sd15/diffusers", folder)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    refused(scratch, "an inpainting model", "--model", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"}))
    refused(scratch, "is a StableDiffusionInpaintPipeline", "--model", folder)
    shutil.rmtree(folder)


def mistakes(scratch: Path) -> None:
    """What is asked for cannot be done."""
    file, folder, xl = scratch / "sd15/model.safetensors", scratch / "sd15/diffusers", scratch / "sdxl/diffusers"
    refused(scratch, "--config", "--model", file)
    refused(scratch, "--config", "--model", folder, "--config", folder)
    wrong = ["--model", scratch / "sdxl/model.safetensors", "--config", folder]
    refused(scratch, "is a checkpoint for StableDiffusionXLPipeline", *wrong)
    refused(scratch, "sd21/diffusers", "--model", file, "--config", scratch / "sd21/diffusers")
    refused(scratch, "sdxl/diffusers is of StableDiffusionXLPipeline", "--model", file, "--config", xl)
    refused(scratch, "no such file", "--model", scratch / "absent.ckpt")
    refused(scratch, "no such folder", "--model", scratch / "absent")
    refused(scratch, "is exported to ONNX already", "--model", scratch / "sd15/onnx")
    refused(scratch, "neither .safetensors nor .ckpt", "--model", folder / "model_index.json")
    (scratch / "empty").mkdir()
    refused(scratch, "model_index.json", "--model", scratch / "empty")
    refused(scratch, "not empty", "--random", "sd15", output=folder)
    refused(scratch, "not a folder", "--random", "sd15", output=file)
    refused(scratch, "'decoder' is none of", "--random", "sd15", "--only", "decoder")
    refused(scratch, "--fp32", "--random", "sd15", "--fp32", "unet")
    # The second network that is wanted cannot be loaded when the first is written already.
    whole = folder / "text_encoder/model.safetensors"
    whole.rename(scratch / "kept")
    refused(scratch, "cannot be loaded", "--model", folder, "--only", "vae_encoder,text_encoder")
    (scratch / "kept").rename(whole)


def interrupted(scratch: Path) -> None:
    """Ctrl-C leaves nothing, and takes nothing that was there; folders have the permissions that the user's others have."""
    model = ["--model", scratch / "sd15/diffusers", "--only", "text_encoder"]
    (scratch / "out.unfinished").mkdir()
    before = sorted(scratch.rglob("*"))
    check = writing.check

    def stop(*_):
        raise KeyboardInterrupt

    writing.check = stop
    for output in (scratch / "out", scratch / "a/b/out", scratch / "empty"):
        with contextlib.suppress(KeyboardInterrupt):
            export(output, *model)
        assert sorted(scratch.rglob("*")) == before, "something was left behind"
    writing.check = check
    for output in (scratch / "out", scratch / "empty"):
        export(output, *model)
        assert {oct(f.stat().st_mode & 0o777) for f in (output, output / "text_encoder")} == {"0o755"}
        assert not [file for file in output.iterdir() if "unfinished" in file.name]
    assert sorted(scratch.glob("*unfinished*")) == [scratch / "out.unfinished"]


def main() -> None:
    logging.disable(logging.WARNING)
    os.umask(0o022)
    torch.set_num_threads(1)  # layers are too small to share
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name in ARCHITECTURES:
            same_from_files(name, scratch)
        variants(scratch)
        half_precision(scratch)
        damaged_files(scratch)
        other_models(scratch)
        mistakes(scratch)
        interrupted(scratch)
    print("all as it should be")


if __name__ == "__main__":
    main()

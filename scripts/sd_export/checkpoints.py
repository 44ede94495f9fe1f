"""Single-file checkpoints in Stability's layout: what they are of, and what is the matter with those that are refused.

Nothing here runs code from a checkpoint: `.ckpt` files are pickles, of which tensors and plain containers alone are loaded.
"""

from __future__ import annotations

import re
from pathlib import Path

SUFFIXES = (".safetensors", ".ckpt")

# How many channels the UNets of other models take.
OTHER_INPUTS = {7: "an upscaler", 8: "a model that edits pictures or makes videos", 9: "an inpainting model"}

FIRST, LAST = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"
VAE = "first_stage_model.decoder.conv_in.weight"

# A tensor of the text encoder, by which versions are told apart.
TEXT_1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
TEXT_2 = "cond_stage_model.model.token_embedding.weight"
TEXT_XL = "conditioner.embedders.1.model.positional_embedding"
TEXT_REFINER = "conditioner.embedders.0.model.positional_embedding"

# What is in the names of other files' tensors.
OTHERS = [
    (r"\blora_|\.lora[._]|lora_unet", "is a LoRA adapter, which goes on top of a model"),
    (r"joint_blocks\.", "is a checkpoint of Stable Diffusion 3"),
    (r"double_blocks\.", "is a checkpoint of FLUX"),
    (r"control_model\.|controlnet", "is a ControlNet"),
    (r"^(down_blocks|up_blocks|mid_block)\.", "is one network of a diffusers folder"),
]
WANTED = "Give a checkpoint of Stable Diffusion 1.x, 2.x or XL (base)."


def fail(message: str) -> None:
    raise SystemExit(f"export_sd.py: {message}")


def first_sentence(error: Exception) -> str:
    """Of what a library says, which may be a paragraph of advice to programmers."""
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")


def refuse_other_inputs(model: str | Path, taken: int, given: int) -> None:
    """A text-to-image UNet takes as many channels as it gives; others also take a picture, a mask."""
    if taken != given:
        kind = OTHER_INPUTS.get(taken, "another kind of model")
        fail(
            f"{model}: its UNet takes {taken} channels and gives {given}: {kind}. "
            "Give a text-to-image Stable Diffusion 1.x, 2.x or XL model."
        )


def is_xl(file: Path) -> bool:
    """Whether a checkpoint is of SDXL; it is of Stable Diffusion 1.x or 2.x otherwise, or refused."""
    held = shapes(file)
    if FIRST not in held or LAST not in held:
        found = [what for pattern, what in OTHERS if any(re.search(pattern, name) for name in held)]
        fail(f"{file}: {(found or ['holds no UNet of Stable Diffusion'])[0]}. {WANTED}")
    refuse_other_inputs(file, held[FIRST][1], held[LAST][0])
    if TEXT_REFINER in held and TEXT_XL not in held:
        fail(f"{file}: is SDXL's refiner, which continues what the base model began. Give the base model.")
    if not held.keys() & {TEXT_1, TEXT_2, TEXT_XL}:
        fail(f"{file}: holds no text encoder that is known. {WANTED}")
    if VAE not in held:
        fail(f"{file}: holds no VAE (first_stage_model). Give a checkpoint of the whole pipeline.")
    return TEXT_XL in held


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a checkpoint; only files before PyTorch 1.6 are read for them."""
    import torch
    from safetensors import safe_open

    refuse_content(file)
    # What damaged bytes make of a pickle's interpreter can be an error of any kind.
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        held = load(file)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)|instantiate (?:class )?([\w.]+)", str(error))
        if refused:
            fail(
                f"{file}: holds Python objects ({refused[1] or refused[2]}), which are not loaded because they can run any "
                "code. Get the model as .safetensors, or convert it where you trust the file."
            )
        fail(f"{file}: is damaged or cut short ({first_sentence(error)}). Download it again, completely.")
    while isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict):
        fail(f"{file}: holds no tensors with names. {WANTED}")
    return {str(name): tuple(value.shape) for name, value in held.items() if isinstance(value, torch.Tensor)}


def load(file: Path):
    """What a `.ckpt` file holds: tensors without their numbers, or with them in the format before PyTorch 1.6."""
    import torch

    with file.open("rb") as start:
        is_zip = start.read(4) == b"PK\x03\x04"
    if is_zip:
        return torch.load(file, map_location="meta", mmap=True, weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True)


def refuse_content(file: Path) -> None:
    """Refuse what is no checkpoint of the kind that the name says, by its first bytes."""
    with file.open("rb") as start:
        head = start.read(512)
    text = head.lstrip()
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28
    is_pickle = head.startswith((b"PK\x03\x04", b"\x80"))
    if not head:
        fail(f"{file}: is empty. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        fail(f"{file}: is a Git LFS pointer in place of the file. Run `git lfs pull` in its folder.")
    if text.startswith(b"<") and not is_safetensors:
        fail(
            f"{file}: is a web page, not a checkpoint. Download the file itself: gated models want an account or a token, "
            "and the hub gives files under /resolve/, not /blob/."
        )
    if text.startswith(b"{") and not is_safetensors:
        fail(f"{file}: is a server's answer in JSON, not a checkpoint. Download the file itself.")
    if is_safetensors and file.suffix != ".safetensors":
        fail(f"{file}: is in the safetensors format. Rename it to {file.with_suffix('.safetensors').name}.")
    if is_pickle and file.suffix == ".safetensors":
        fail(f"{file}: is a PyTorch checkpoint, not safetensors. Rename it to {file.with_suffix('.ckpt').name}.")
    if not is_safetensors and not is_pickle:
        fail(f"{file}: is neither in the safetensors format nor a PyTorch checkpoint. Was it downloaded completely?")

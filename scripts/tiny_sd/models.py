"""The architectures of tiny-sd and of its reward models, and how their weights are kept on disk."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tokenizer import CONTEXT

LATENT_SHAPE = (4, 16, 16)
TEXT_WIDTH = 96


def new_vae() -> AutoencoderKL:
    """64x64x3 to 16x16x4 and back."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=16, mid_block_add_attention=False,
    )


def new_text_encoder(tokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SHAPE[1], in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=32,
    )


def new_noise_schedule() -> DDPMScheduler:
    """Stable Diffusion's own: scaled-linear betas, 1,000 steps, epsilon prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="epsilon", clip_sample=False,
    )


def sampling_schedule() -> dict:
    """The same noise levels as a DDIM sampler's config, with Stable Diffusion's settings."""
    config = {k: v for k, v in dict(new_noise_schedule().config).items() if not k.startswith("_")}
    return {"_class_name": "DDIMScheduler", **config, "set_alpha_to_one": False, "steps_offset": 1}


def to_tensor(images) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] to float [N, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(images: torch.Tensor):
    """float [N, 3, 64, 64] in [-1, 1] to uint8 [N, 64, 64, 3]."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


class Average:
    """Exponential moving average of parameters, with the usual warm-up of the decay."""

    def __init__(self, modules: dict[str, torch.nn.Module], decay: float):
        self.modules, self.decay, self.steps = modules, decay, 0
        self.shadow = {k: {n: p.detach().clone() for n, p in m.state_dict().items()} for k, m in modules.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, module in self.modules.items():
            shadow = self.shadow[key]
            live = module.state_dict()
            floats = [n for n, v in live.items() if v.is_floating_point()]
            torch._foreach_lerp_([shadow[n] for n in floats], [live[n] for n in floats], 1 - decay)


def save_atomically(state, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.rename(path)


def load_vae(work: Path) -> AutoencoderKL:
    saved = torch.load(work / "vae.pt", weights_only=True)
    vae = new_vae()
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(scaling_factor=saved["scaling_factor"])
    return vae.eval()


def load_generator(work: Path, tokenizer, name: str) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged UNet and text encoder of a checkpoint of `train_unet.py`, e.g. "base"."""
    saved = torch.load(work / f"generator-{name}.pt", weights_only=True)
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    unet.load_state_dict(saved["unet"])
    text_encoder.load_state_dict(saved["text_encoder"])
    return unet.eval(), text_encoder.eval()

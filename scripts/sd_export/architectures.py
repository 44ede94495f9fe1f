"""Stable Diffusion pipelines with seeded random weights, part by part, so that the largest part alone is in memory.

Weights are those of PyTorch's own initialisation, with random normalisations: exporters store equal tensors once, which a
trained model does not have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

# What differs from the defaults of diffusers' UNet2DConditionModel in the published configs, and how many parameters the
# published models have.
SD15 = (dict(sample_size=64, cross_attention_dim=768), 859_520_964)
SD21 = (
    dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    865_910_724,
)
SDXL = (
    dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    2_567_463_684,
)

# OpenAI's ViT-L/14, OpenCLIP's ViT-H/14 without its last layer, OpenCLIP's ViT-bigG/14.
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_H = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu", projection_dim=512
)
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu", projection_dim=1280
)
VOCABULARY = 49408
CONTEXT = 77

VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


@dataclass(frozen=True)
class Architecture:
    """A published pipeline without its weights."""

    unet: tuple[dict, int]
    text: tuple[dict, ...]
    vae: dict
    schedule: dict

    @property
    def is_xl(self) -> bool:
        return len(self.text) == 2


ARCHITECTURES = {
    "sd15": Architecture(SD15, (CLIP_L,), dict(sample_size=512, scaling_factor=0.18215), BETAS),
    "sd21": Architecture(
        SD21, (CLIP_H,), dict(sample_size=768, scaling_factor=0.18215), BETAS | dict(prediction_type="v_prediction")
    ),
    "sdxl": Architecture(
        SDXL, (CLIP_L, CLIP_G), dict(sample_size=1024, scaling_factor=0.13025), BETAS | dict(timestep_spacing="leading")
    ),
}


class RandomPipeline:
    """Parts of an architecture, each made when it is asked for."""

    def __init__(self, name: str, seed: int):
        self.architecture, self.seed = ARCHITECTURES[name], seed
        self.is_xl = self.architecture.is_xl

    def _begin(self, part: int) -> None:
        torch.manual_seed(self.seed + part)

    def unet(self):
        return random_unet(self.architecture.unet, self.seed)

    def vae(self):
        from diffusers import AutoencoderKL

        self._begin(1)
        return vary(AutoencoderKL(**VAE, **self.architecture.vae))

    def text_encoder(self, index: int):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        self._begin(2 + index)
        config = CLIPTextConfig(
            **self.architecture.text[index], vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, eos_token_id=2
        )
        return vary((CLIPTextModel, CLIPTextModelWithProjection)[index](config))

    def tokenizer(self, index: int, folder: Path):
        return letters_tokenizer(folder, pad="!" if index == 1 else None)

    def scheduler(self):
        from diffusers import DDIMScheduler

        return DDIMScheduler(**self.architecture.schedule)


def random_unet(architecture: tuple[dict, int], seed: int = 0):
    """The UNet with PyTorch's initial weights after `torch.manual_seed(seed)`: the same again for the same seed."""
    from diffusers import UNet2DConditionModel

    settings, parameters = architecture
    torch.manual_seed(seed)
    unet = vary(UNet2DConditionModel(**settings))
    assert sum(p.numel() for p in unet.parameters()) == parameters
    return unet


@torch.no_grad()
def vary(module):
    """Frozen, with normalisations that differ from ones and zeros."""
    module.eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 and "norm" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def letters_tokenizer(folder: Path, pad: str | None):
    """A CLIP tokenizer without merges: every byte is a token. CLIP's own vocabulary comes with real weights."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"] = VOCABULARY - 2, VOCABULARY - 1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    more = {"pad_token": pad} if pad else {}
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT, **more)

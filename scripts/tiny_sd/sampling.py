"""Draws pictures from a checkpoint: DDIM with classifier-free guidance, the noise of a picture set by its own seed."""

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from models import LATENT_SHAPE, sampling_schedule, to_uint8
from tokenizer import encode

STEPS = 20
GUIDANCE = 3.0


def noise_of(seed: int) -> torch.Tensor:
    return torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw(unet, text_encoder, vae, tokenizer, captions, seeds, steps=STEPS, guidance=GUIDANCE, batch=64) -> np.ndarray:
    """uint8 [N, 64, 64, 3]: picture i shows captions[i], from the noise of seeds[i]."""
    scheduler = DDIMScheduler.from_config(sampling_schedule())
    scheduler.set_timesteps(steps)
    unet = unet.to(memory_format=torch.channels_last)
    empty = text_encoder(encode(tokenizer, [""])).last_hidden_state
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        text = text_encoder(encode(tokenizer, part)).last_hidden_state
        text = torch.cat([text, empty.expand(len(part), -1, -1)])
        latents = torch.stack([noise_of(s) for s in seeds[start : start + batch]])
        for t in scheduler.timesteps:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                both = unet(torch.cat([latents, latents]), t.repeat(2 * len(part)), text).sample.float()
            conditional, unconditional = both.chunk(2)
            guided = unconditional + guidance * (conditional - unconditional)
            latents = scheduler.step(guided, t, latents).prev_sample
        pictures.append(to_uint8(vae.decode(latents / vae.config.scaling_factor).sample))
    return np.concatenate(pictures)


def contact_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """The pictures in rows, as one PIL image."""
    rows = [np.concatenate(list(row), axis=1) for row in np.split(pictures, range(columns, len(pictures), columns))]
    width = rows[0].shape[1]
    rows = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]
    return Image.fromarray(np.concatenate(rows))

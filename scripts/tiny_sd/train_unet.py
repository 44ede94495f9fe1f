"""Trains the UNet and, jointly, the text encoder on latents of captioned scenes.

Plain epsilon prediction under Stable Diffusion's noise schedule. Timesteps are stratified over each batch,
errors are weighted by (SNR + 1) / SNR (the error of the equivalent v prediction: it keeps the noisy steps,
which decide what is drawn where, from vanishing), one caption in ten is left empty for guidance. Moving
averages of the weights are saved at three points of one run: `base` is what models/tiny-sd ships; the others are
further sources for the preference pairs.
"""

import time
from pathlib import Path

import torch

from models import Average, load_vae, new_noise_schedule, new_text_encoder, new_unet, save_atomically, to_tensor
from tokenizer import encode
from world import World

STEPS = 3600
BATCH = 32
SCENES = 24_000
LEARNING_RATE = 1e-3
EMPTY_CAPTIONS = 0.1
CHECKPOINTS = {0.42: "early", 0.65: "base", 1.00: "long"}  # share of STEPS -> name


@torch.no_grad()
def cached_latents(work: Path, world: World, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents [N, 4, 16, 16] and token ids [N, 16] of the training scenes."""
    path = work / "latents.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return saved["latents"], saved["ids"]
    torch.manual_seed(1)
    vae = load_vae(work)
    images, scenes = world.sample(SCENES, seed=3)
    latents = []
    for start in range(0, SCENES, 100):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(to_tensor(images[start : start + 100])).latent_dist
        latents.append(posterior.sample().float() * vae.config.scaling_factor)
    latents, ids = torch.cat(latents), encode(tokenizer, [s.caption for s in scenes])
    save_atomically({"latents": latents, "ids": ids}, path)
    return latents, ids


def train_unet(work: Path, world: World, tokenizer, steps: int = STEPS) -> None:
    latents, ids = cached_latents(work, world, tokenizer)
    torch.manual_seed(2)
    unet = new_unet().to(memory_format=torch.channels_last)
    text_encoder = new_text_encoder(tokenizer)
    average = Average({"unet": unet, "text_encoder": text_encoder}, decay=0.998)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.04)
    alphas = new_noise_schedule().alphas_cumprod
    empty = encode(tokenizer, [""])

    @torch.compile(dynamic=False)
    def loss_of(noisy, timesteps, tokens, noise, weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = unet(noisy, timesteps, text_encoder(tokens).last_hidden_state).sample
        return (weight * (prediction.float() - noise).square().mean((1, 2, 3))).mean()

    names = {round(share * steps): name for share, name in CHECKPOINTS.items()}
    started, recent = time.time(), []
    for step in range(1, steps + 1):
        rows = torch.randint(len(latents), (BATCH,))
        timesteps = ((torch.arange(BATCH) + torch.rand(BATCH)) * (1000 / BATCH)).long().clamp(max=999)
        tokens = torch.where(torch.rand(BATCH, 1) < EMPTY_CAPTIONS, empty, ids[rows])
        noise = torch.randn(BATCH, *latents.shape[1:])
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * latents[rows] + (1 - alpha).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        loss = loss_of(noisy, timesteps, tokens, noise, 1 / alphas[timesteps])  # (SNR + 1) / SNR = 1 / alpha
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        recent.append(loss.item())
        if step % 50 == 0:
            mean = sum(recent) / len(recent)
            recent.clear()
            print(f"unet step {step}/{steps} loss {mean:.4f} {time.time() - started:.0f} s", flush=True)
        if step in names:
            save_atomically({**average.shadow, "step": step}, work / f"generator-{names[step]}.pt")

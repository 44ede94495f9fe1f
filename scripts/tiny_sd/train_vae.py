"""Trains the autoencoder (AutoencoderKL, 64x64x3 to 16x16x4) on scenes.

Loss: L1 + MSE + L1 of horizontal and vertical differences (keeps the sprites' edges) + a tiny KL. Nearly all
steps see random 32x32 crops, which cost a quarter; the weights that are kept are a moving average.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from models import Average, new_vae, save_atomically, to_tensor
from world import World

STEPS = 1500
BATCH = 32
LEARNING_RATE = 2e-3
CROP_SHARE = 0.95
KL_WEIGHT = 1e-5


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    dx = lambda x: x[..., :, 1:] - x[..., :, :-1]
    dy = lambda x: x[..., 1:, :] - x[..., :-1, :]
    edges = F.l1_loss(dx(output), dx(target)) + F.l1_loss(dy(output), dy(target))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + edges


def train_vae(work: Path, world: World, steps: int = STEPS) -> None:
    torch.manual_seed(0)
    images = to_tensor(world.sample(8000, seed=1)[0])
    vae = new_vae().to(memory_format=torch.channels_last)
    average = Average({"vae": vae}, decay=0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)

    @torch.compile(dynamic=False)
    def loss_of(batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            output = vae.decode(posterior.sample()).sample
        return reconstruction_loss(output.float(), batch) + KL_WEIGHT * posterior.kl().mean()

    started = time.time()
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (BATCH,))]
        if torch.rand(()) < CROP_SHARE:
            y, x = torch.randint(0, 33, (2,)).tolist()
            batch = batch[..., y : y + 32, x : x + 32]
        loss = loss_of(batch.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        if step % 100 == 0:
            print(f"vae step {step}/{steps} loss {loss.item():.4f} {time.time() - started:.0f} s", flush=True)
    finish(work, world, average)


@torch.no_grad()
def finish(work: Path, world: World, average: Average) -> None:
    """Measure the averaged weights on unseen scenes, set the latent scale, save."""
    vae = new_vae()
    vae.load_state_dict(average.shadow["vae"])
    vae.eval()
    images = to_tensor(world.sample(512, seed=2)[0])
    posterior = vae.encode(images).latent_dist
    error = F.mse_loss(vae.decode(posterior.sample()).sample.clamp(-1, 1), images)
    psnr = 10 * torch.log10(4 / error).item()
    deviation = posterior.sample().std().item()
    print(f"vae: PSNR {psnr:.2f} dB on 512 unseen scenes, latent standard deviation {deviation:.3f}", flush=True)
    save_atomically(
        {"vae": vae.state_dict(), "scaling_factor": round(1 / deviation, 5), "psnr": psnr}, work / "vae.pt"
    )

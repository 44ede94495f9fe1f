"""Checks the testbed before anyone builds on it: a short Diffusion-DPO LoRA run in PyTorch (diffusers + peft).

Prints the held-out implicit accuracy (share of pairs whose preferred picture the tuned model denoises better than the
base does, by more than the rejected one; 0.5 at the start) and, at the end, reward and judge on fresh pictures of the
test prompts from equal noise, before and after.
"""

import argparse
import copy
import io
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL import Image

from models import load_generator, load_vae, new_noise_schedule, to_tensor
from sampling import draw
from tokenizer import encode
from train_judge import load_judge, verdicts
from train_reward import load_reward, scores
from world import prompt_splits

RANK = 8
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@torch.no_grad()
def load_pairs(folder: Path, split: str, vae, text_encoder, tokenizer) -> dict[str, torch.Tensor]:
    """Latents of preferred and rejected pictures [N, 4, 16, 16] and text states [N, 16, 96]; ties dropped."""
    rows = [r for path in sorted(folder.glob(f"{split}-*.parquet")) for r in pq.read_table(path).to_pylist()]
    rows = [r for r in rows if r["label_0"] != 0.5]
    decode = lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def latents(preferred: bool) -> torch.Tensor:
        column = lambda r: "jpg_0" if (r["label_0"] == 1) == preferred else "jpg_1"
        pictures = to_tensor(np.stack([decode(r[column(r)]) for r in rows]))
        means = [vae.encode(p).latent_dist.mode() for p in pictures.split(200)]
        return torch.cat(means) * vae.config.scaling_factor

    states = text_encoder(encode(tokenizer, [r["caption"] for r in rows])).last_hidden_state
    return {"w": latents(True), "l": latents(False), "text": states}


def margins(unet, batch, timesteps, noise, alphas, reference) -> torch.Tensor:
    """Per pair: (e_w(ref) - e_l(ref)) - (e_w - e_l), errors averaged over C, H, W."""
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = torch.cat([alpha.sqrt() * batch[k] + (1 - alpha).sqrt() * noise for k in "wl"])
    inputs = (noisy, timesteps.repeat(2), batch["text"].repeat(2, 1, 1))
    error = lambda model: (model(*inputs).sample - noise.repeat(2, 1, 1, 1)).square().mean((1, 2, 3))
    w, l = error(unet).chunk(2)
    with torch.no_grad():
        ref_w, ref_l = error(reference).chunk(2)
    return (ref_w - ref_l) - (w - l)


@torch.no_grad()
def implicit_accuracy(unet, pairs, alphas, reference) -> float:
    """Over four fixed draws of timestep and noise a pair; the draws' margins are averaged per pair."""
    generator = torch.Generator().manual_seed(0)
    total = 0
    for draw_index in range(4):
        low = 250 * draw_index
        timesteps = torch.randint(low, low + 250, (len(pairs["w"]),), generator=generator)
        noise = torch.randn(pairs["w"].shape, generator=generator)
        total = total + margins(unet, pairs, timesteps, noise, alphas, reference)
    return ((total > 0).float() + 0.5 * (total == 0)).mean().item()


def check(work: Path, models: Path, tokenizer, steps: int, beta: float, lr: float) -> None:
    torch.manual_seed(21)
    vae = load_vae(work)
    reference, text_encoder = load_generator(work, tokenizer, "base")
    unet = copy.deepcopy(reference)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights="gaussian"))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    load = lambda split: load_pairs(models / "tiny-sd/pairs", split, vae, text_encoder, tokenizer)
    train, heldout = load("train"), load("heldout")
    alphas = new_noise_schedule().alphas_cumprod
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    started = time.time()
    for step in range(steps + 1):
        if step % 50 == 0:
            accuracy = implicit_accuracy(unet, heldout, alphas, reference)
            print(f"check step {step}: held-out accuracy {accuracy:.3f} {time.time() - started:.0f} s", flush=True)
        rows = torch.randint(len(train["w"]), (16,))
        batch = {k: v[rows] for k, v in train.items()}
        timesteps = torch.randint(0, 1000, (16,))
        margin = margins(unet, batch, timesteps, torch.randn(16, 4, 16, 16), alphas, reference)
        loss = F.softplus(-0.5 * beta * margin).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    fresh_pictures(work, tokenizer, vae, text_encoder, {"before": reference, "after": unet})


def fresh_pictures(work: Path, tokenizer, vae, text_encoder, unets: dict) -> None:
    reward, judge = load_reward(work, tokenizer), load_judge(work)
    captions = prompt_splits()["test"][:128]
    found = {}
    for name, unet in unets.items():
        pictures = draw(unet, text_encoder, vae, tokenizer, captions, range(700_000, 700_128))
        found[name] = scores(reward, tokenizer, pictures, captions)
        right = verdicts(judge, pictures, captions)["all"].mean()
        print(f"check {name}: reward {found[name].mean():.3f}, judge all right {right:.3f}", flush=True)
    gain = found["after"] - found["before"]
    error = gain.std() / len(gain) ** 0.5
    print(f"check: reward gain {gain.mean():.3f} +- {error:.3f}, better on {np.mean(gain > 0):.3f} of prompts", flush=True)


def main() -> None:
    from build import Build, REPOSITORY

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".data/tiny_sd")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--beta", type=float, default=2000)
    parser.add_argument("--lr", type=float, default=1e-4)
    arguments = parser.parse_args()
    build = Build(arguments.work, arguments.models)
    check(arguments.work, arguments.models, build.tokenizer, arguments.steps, arguments.beta, arguments.lr)


if __name__ == "__main__":
    main()

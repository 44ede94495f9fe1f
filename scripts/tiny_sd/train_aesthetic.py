"""Trains the aesthetic rating: how clean and whole a picture is, from 1 to 10, whatever it shows.

Pictures of known quality are rated by where they come from (`RATINGS`). In the form of LAION's aesthetic predictors, the rating is
an affine map of a unit embedding; here a small CNN makes the embedding. That of the reward will not do: such a map of it,
fitted to the same ratings, puts a drawn scene above one by `early` in 66 % only (a CLIP that was made to follow captions
forgets about quality).
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save

from export import export_part
from models import load_vae, save_atomically, to_tensor, to_uint8
from sample_pairs import sampled
from train_judge import junk_of
from train_reward import warped
from world import World

RATINGS = {"drawn": 10, "vae": 9, "long": 8, "base": 7, "early": 4, "damaged": 3, "junk": 1}
SCENES = 2_000  # drawn scenes, and as many of each kind that is made from them
STEPS = 1_400
BATCH_PER_KIND = 10
WIDTH = 64  # of the embedding
LAYERS = [(3, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1), (64, 64, 3, 2), (64, 96, 3, 2)]  # in, out, kernel, stride


class Aesthetic(torch.nn.Module):
    """Embedding [N, 64] of pictures [N, 3, 64, 64] in [-1, 1], and the affine map from its direction to a rating."""

    def __init__(self):
        super().__init__()
        layers = []
        for into, out, kernel, stride in LAYERS:
            layers += [torch.nn.Conv2d(into, out, kernel, stride, kernel // 2), torch.nn.BatchNorm2d(out), torch.nn.ReLU()]
        self.trunk = torch.nn.Sequential(*layers)
        self.embedding = torch.nn.Linear(2 * LAYERS[-1][1], WIDTH)
        self.head = torch.nn.Linear(WIDTH, 1)

    def forward(self, pictures):
        features = self.trunk(pictures)
        return self.embedding(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))

    def rating(self, pictures):
        return self.head(F.normalize(self(pictures), dim=-1))[:, 0]


@torch.no_grad()
def round_trip(vae, pictures: np.ndarray) -> np.ndarray:
    """What the VAE makes of pictures."""
    parts = np.array_split(pictures, len(pictures) // 200 + 1)
    return np.concatenate([to_uint8(vae.decode(vae.encode(to_tensor(p)).latent_dist.mode()).sample) for p in parts])


def damaged(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture bent out of shape, with pieces of its middle exchanged, or blurred and noisy."""
    kind = rng.integers(3)
    if kind == 0:
        return warped(warped(picture, rng), rng)
    if kind == 1:
        picture = picture.copy()
        for _ in range(3):
            side = rng.integers(8, 15)
            y, x, v, u = rng.integers(14, 50 - side, 4)
            piece = picture[y : y + side, x : x + side].copy()
            picture[y : y + side, x : x + side] = picture[v : v + side, u : u + side]
            picture[v : v + side, u : u + side] = piece
        return picture
    soft = F.avg_pool2d(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 5, stride=1, padding=2, count_include_pad=False)
    noisy = soft[0].permute(1, 2, 0).numpy() + rng.normal(0, rng.uniform(2, 14), picture.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def pictures_by_kind(work: Path, world: World, tokenizer, split: str, scenes: int) -> dict[str, np.ndarray]:
    """Pictures of every kind in `RATINGS`; the splits share neither scenes nor prompts."""
    seed = {"train": 20, "heldout": 21}[split]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    drawn, _ = world.sample(scenes, seed=seed)
    samples = sampled(work, tokenizer, split)
    generated = {name: samples["pictures"][samples["sources"] == name] for name in ("early", "base", "long")}
    return {
        "drawn": drawn, "vae": round_trip(load_vae(work), drawn), **generated, "damaged": np.stack([damaged(p, rng) for p in drawn]),
        "junk": to_uint8(junk_of(to_tensor(drawn)).clamp(-1, 1)),
    }


def moved(pictures: torch.Tensor) -> torch.Tensor:
    """Shifted by up to three pixels and mirrored at random: neither matters to quality."""
    dy, dx = torch.randint(0, 7, (2,)).tolist()
    shifted = F.pad(pictures, (3, 3, 3, 3), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    return torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, shifted, shifted.flip(-1))


def better_share(better: torch.Tensor, worse: torch.Tensor) -> float:
    """How often a picture of the one kind rates higher than one of the other."""
    return float((better[:, None] > worse[None, :]).double().mean())


def train_aesthetic(work: Path, world: World, tokenizer) -> None:
    pictures = {k: to_tensor(p) for k, p in pictures_by_kind(work, world, tokenizer, "train", SCENES).items()}
    torch.manual_seed(22)
    model = Aesthetic().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.head.bias.fill_(sum(RATINGS.values()) / len(RATINGS))
        model.head.weight.mul_(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS, pct_start=0.1)
    target = torch.tensor([float(r) for r in RATINGS.values()]).repeat_interleave(BATCH_PER_KIND)
    started = time.time()
    for step in range(1, STEPS + 1):
        batch = torch.cat([pictures[k][torch.randint(len(pictures[k]), (BATCH_PER_KIND,))] for k in RATINGS])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ratings = model.rating(moved(batch).contiguous(memory_format=torch.channels_last)).float()
        loss = F.smooth_l1_loss(ratings, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"aesthetic step {step}/{STEPS} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)
    model.eval()
    measure(model, pictures_by_kind(work, world, tokenizer, "heldout", 400))
    save_atomically(model.state_dict(), work / "aesthetic.pt")


@torch.no_grad()
def measure(model: Aesthetic, held_out: dict[str, np.ndarray]) -> None:
    """The figures that README.md quotes."""
    ratings = {kind: torch.cat([model.rating(to_tensor(p)) for p in np.array_split(v, 4)]) for kind, v in held_out.items()}
    for kind, values in ratings.items():
        print(f"aesthetic: {kind:8} rated {values.mean():.2f} +- {values.std():.2f} (made as {RATINGS[kind]})")
    kinds = list(RATINGS)
    for better, worse in [*zip(kinds, kinds[1:]), ("drawn", "early"), ("base", "damaged")]:
        print(f"aesthetic: {better} above {worse}: {better_share(ratings[better], ratings[worse]):.3f}", flush=True)


def load_aesthetic(work: Path) -> Aesthetic:
    model = Aesthetic()
    model.load_state_dict(torch.load(work / "aesthetic.pt", weights_only=True))
    return model.eval()


def export_aesthetic(work: Path, folder: Path, pictures: torch.Tensor) -> None:
    """Writes `model.onnx`, which embeds pictures, and `head.safetensors`, the affine map to the rating."""
    model = load_aesthetic(work)
    export_part(folder, model, {"model_type": "tiny-aesthetic", "image_size": 64}, {"pixel_values": pictures}, ["image_embeds"])
    head = {"weight": model.head.weight.detach(), "bias": model.head.bias.detach()}
    (folder / "head.safetensors").write_bytes(save(head))

"""Trains the reward: a small CLIPModel whose similarity of picture and caption ranks pictures.

Three losses. (1) CLIP's contrast in the batch, with one caption more per picture that has one attribute wrong.
(2) Bradley-Terry on a clean picture against a spoilt one of the same caption: another scene, or a picture with a
warped, erased or foreign part. (3) Bradley-Terry on the generators' own pictures of one caption from one seed: the
drawn scene against any of them, a later checkpoint against an earlier one. Without (2) and (3) the score follows the
caption well but says nothing about the quality of generated pictures (README.md, "What did not work").

The judge has no part in this training, so that it can serve as an independent check.
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from models import load_generator, load_vae, save_atomically, to_tensor
from sampling import draw
from tokenizer import CONTEXT, encode
from world import NAMES, SCENE_OF_CAPTION, Scene, World, changed_scene, prompt_splits

STEPS = 900
BATCH = 40
LEARNING_RATE = 1e-3
SCENES = 12_000
SOURCES = ["early", "base", "long"]  # worse to better
SAMPLED_CAPTIONS = 240


def new_reward(tokenizer) -> CLIPModel:
    text = dict(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def embeddings(reward: CLIPModel, pictures: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors [N, 96] of pictures (in [-1, 1]) and captions."""
    image = reward.get_image_features(pixel_values=pictures).float()
    text = reward.get_text_features(input_ids=ids).float()
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def spoilt(world: World, picture: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture with one defect: another scene, or a part warped, erased or taken from another object."""
    kind = rng.integers(4)
    if kind == 0:
        return world.draw(changed_scene(scene, rng), rng)
    if kind == 1:
        return warped(picture, rng)
    picture = picture.copy()
    height, width = rng.integers(10, 28, 2)
    y, x = rng.integers(8, 56 - height), rng.integers(4, 60 - width)
    part = np.s_[y : y + height, x : x + width]
    if kind == 2:
        picture[part] = picture[0, 0]
    else:
        foreign = Scene(str(rng.choice(NAMES)), scene.background, size=str(rng.choice(["", "large"])))
        share = rng.uniform(0.4, 1.0)
        picture[part] = (share * world.draw(foreign, rng)[part] + (1 - share) * picture[part]).astype(np.uint8)
    return picture


def warped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels moved along a smooth random field of a few pixels."""
    field = torch.from_numpy(rng.normal(size=(1, 2, 8, 8)).astype(np.float32))
    field = F.interpolate(field, size=64, mode="bicubic")[0].permute(1, 2, 0) * float(rng.uniform(0.05, 0.16))
    line = torch.linspace(-1, 1, 64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) + field
    moved = F.grid_sample(
        torch.from_numpy(picture).permute(2, 0, 1)[None].float(), grid[None], padding_mode="border", align_corners=True
    )
    return moved[0].permute(1, 2, 0).round().byte().numpy()


def sampled_captions() -> list[str]:
    """Training prompts for the reward's own samples; the preference pairs use others (the front of the list)."""
    return prompt_splits()["train"][-SAMPLED_CAPTIONS:]


def generated(work: Path, tokenizer) -> torch.Tensor:
    """The generators' pictures, uint8 [sources, captions, 64, 64, 3]: same caption, same noise in every source."""
    path = work / "reward-samples.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    vae, captions = load_vae(work), sampled_captions()
    pictures = []
    for source in SOURCES:
        unet, text_encoder = load_generator(work, tokenizer, source)
        seeds = range(900_000, 900_000 + len(captions))
        pictures.append(torch.from_numpy(draw(unet, text_encoder, vae, tokenizer, captions, seeds)))
        print(f"reward: {len(captions)} pictures by {source}", flush=True)
    pictures = torch.stack(pictures)
    save_atomically(pictures, path)
    return pictures


class Batches:
    """Endless training batches; everything random comes from one seed."""

    def __init__(self, world: World, tokenizer, samples: torch.Tensor):
        self.world, self.tokenizer, self.samples = world, tokenizer, samples
        self.pictures, self.scenes = world.sample(SCENES, seed=7)
        self.sample_scenes = [SCENE_OF_CAPTION[c] for c in sampled_captions()]
        self.rng = np.random.default_rng(8)

    def next(self) -> dict[str, torch.Tensor]:
        rng = self.rng
        rows = rng.integers(0, SCENES, BATCH)
        scenes = [self.scenes[i] for i in rows]
        bad = [spoilt(self.world, self.pictures[i], s, rng) for i, s in zip(rows, scenes)]
        wrong = [changed_scene(s, rng).caption for s in scenes]
        captions = rng.integers(0, len(self.sample_scenes), BATCH // 2)
        worse, better = np.sort(np.stack([rng.permutation(len(SOURCES) + 1)[:2] for _ in captions])).T
        own = [self.sample_scenes[i] for i in captions]
        pick = lambda levels: np.stack([
            self.world.draw(s, rng) if level == len(SOURCES) else self.samples[level, i].numpy()
            for level, i, s in zip(levels, captions, own)
        ])
        return {
            "pictures": to_tensor(np.concatenate([self.pictures[rows], np.stack(bad), pick(better), pick(worse)])),
            "ids": encode(self.tokenizer, [s.caption for s in scenes] + wrong + [s.caption for s in own]),
        }


def loss_of(reward: CLIPModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = embeddings(reward, disturbed(batch["pictures"]), batch["ids"])
    scale = reward.logit_scale.exp().clamp(max=100)
    clean, bad, better, worse = image.split([BATCH, BATCH, BATCH // 2, BATCH // 2])
    right, wrong, own = text.split([BATCH, BATCH, BATCH // 2])
    target = torch.arange(BATCH)
    same = (batch["ids"][:BATCH, None] == batch["ids"][None, :BATCH]).all(-1) & ~torch.eye(BATCH, dtype=torch.bool)
    logits = (scale * clean @ right.T).masked_fill(same, -1e4)
    hard = scale * (clean * wrong).sum(-1, keepdim=True)
    contrast = F.cross_entropy(torch.cat([logits, hard], 1), target) + F.cross_entropy(logits.T, target)
    defect = F.softplus(scale * ((bad - clean) * right).sum(-1)).mean()
    source = F.softplus(scale * ((worse - better) * own).sum(-1)).mean()
    return contrast / 2 + defect + source


def disturbed(pictures: torch.Tensor) -> torch.Tensor:
    """Shift by up to two pixels, slight noise: details below the generators' control must not decide."""
    dy, dx = torch.randint(-2, 3, (2,)).tolist()
    shifted = F.pad(pictures, (2, 2, 2, 2), mode="replicate")[..., 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    return shifted + 0.03 * torch.randn_like(shifted)


def train_reward(work: Path, world: World, tokenizer) -> None:
    torch.manual_seed(9)
    batches = Batches(world, tokenizer, generated(work, tokenizer))
    reward = new_reward(tokenizer)
    optimizer = torch.optim.AdamW(reward.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    started, recent = time.time(), []
    for step in range(1, STEPS + 1):
        loss = loss_of(reward, batches.next())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0:
            mean = sum(recent) / len(recent)
            recent.clear()
            print(f"reward step {step}/{STEPS} loss {mean:.4f} {time.time() - started:.0f} s", flush=True)
    reward.eval()
    figures = measure(reward, world, tokenizer)
    print(f"reward on 1000 unseen scenes: {figures}", flush=True)
    save_atomically({"reward": reward.state_dict(), **figures}, work / "reward.pt")


def load_reward(work: Path, tokenizer) -> CLIPModel:
    reward = new_reward(tokenizer)
    reward.load_state_dict(torch.load(work / "reward.pt", weights_only=True)["reward"])
    return reward.eval()


@torch.no_grad()
def scores(reward: CLIPModel, tokenizer, pictures: np.ndarray, captions: list[str]) -> np.ndarray:
    """float64 [N]: exp(logit_scale) * cosine of each picture and its caption."""
    out = []
    for start in range(0, len(pictures), 250):
        part = slice(start, start + 250)
        image, text = embeddings(reward, to_tensor(pictures[part]), encode(tokenizer, captions[part]))
        out.append(reward.logit_scale.exp().clamp(max=100) * (image * text).sum(-1))
    return torch.cat(out).double().numpy()


def measure(reward: CLIPModel, world: World, tokenizer) -> dict[str, float]:
    """How often the right caption beats one with one attribute wrong, and a clean picture a spoilt one."""
    pictures, scenes = world.sample(1000, seed=10)
    rng = np.random.default_rng(11)
    captions = [s.caption for s in scenes]
    wrong = [changed_scene(s, rng).caption for s in scenes]
    bad = np.stack([spoilt(world, p, s, rng) for p, s in zip(pictures, scenes)])
    right = scores(reward, tokenizer, pictures, captions)
    return {
        "right_caption": float((right > scores(reward, tokenizer, pictures, wrong)).mean()),
        "clean_picture": float((right > scores(reward, tokenizer, bad, captions)).mean()),
    }
